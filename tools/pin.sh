#!/usr/bin/env bash
# Write constraints.txt again: the versions that pip chooses today for llmgym with all its extras.
# Arguments hold packages at a version: tools/pin.sh torch==2.13.0
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
printf '%s\n' "$@" >"$work/held.txt"
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -c "$work/held.txt" -e ".[sb3,notebooks,test,dev,docs]"

{
    echo "# What the tests run with, on Python 3.11. Written by tools/pin.sh $*"
    # Without pip itself, and without build tags such as +cpu.
    "$work/venv/bin/pip" freeze --all --exclude pip --exclude-editable | sed -E 's/\+[a-z0-9.]+$//'
} >"$work/constraints.txt"
mv "$work/constraints.txt" constraints.txt
