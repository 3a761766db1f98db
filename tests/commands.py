"""Commands of llmgym in the process of the test."""

from __future__ import annotations

import sys

import pytest

from llmgym import cli


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    argv, sys.argv = sys.argv, ["llmgym", *arguments]
    try:
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.argv = argv
    captured = capsys.readouterr()
    return code, captured.out, captured.err
