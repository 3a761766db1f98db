"""Run the recipe of every RL tool under ``clients/`` in a virtual environment of its own.

    python tools/clients_tool.py [NAME ...] [--force]

``clients/NAME`` holds requirements.txt and one or more recipes; ``alone.txt``, where there is one, lists
packages that are installed without what they ask for. What came of each recipe is kept in
docs/results/clients, after each: a run that was stopped goes on where it was. One that passed is not
run again for the same versions and the same recipe, unless forced.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CLIENTS = ROOT / "clients"
KEPT = ROOT / "docs" / "results" / "clients" / "clients.json"
VENVS = Path(os.environ.get("CLIENT_VENVS", ROOT / ".venv-clients"))
LIMIT_S = 900
NOT_RUN = 77
"""Exit code of a recipe that says what it lacks, "not run: ..."."""
WITH_ALL = ("llmgym", "gymnasium", "jax", "numpy", "pandas")
"""Packages whose versions are kept for every client, if it has them."""

RESULT = re.compile(r"^[\w'., -]+: (?:\d[\d,]* steps|passed).*$", re.MULTILINE)
"""A line in which a recipe says what it did."""


def recipes() -> dict[str, Path]:
    """Recipes by name: that of the folder, or folder/file where a folder has several."""
    found = {}
    for folder in sorted(path.parent for path in CLIENTS.glob("*/requirements.txt")):
        files = sorted(folder.glob("*.py"))
        for file in files:
            found[folder.name if len(files) == 1 else f"{folder.name}/{file.stem}"] = file
    return found


def digest(*files: Path) -> str:
    """Of the content of files; those that do not exist count as empty."""
    content = b"\0".join(f.read_bytes() if f.exists() else b"" for f in files)
    return hashlib.sha256(content).hexdigest()[:16]


def install(folder: Path) -> Path:
    """The interpreter of the environment of a client, which is made or renewed where needed."""
    venv = VENVS / folder.name
    python, stamp = venv / "bin" / "python", venv / "client.stamp"
    wanted, alone = folder / "requirements.txt", folder / "alone.txt"
    state = digest(wanted, alone, CLIENTS / "constraints.txt", ROOT / "pyproject.toml")
    if stamp.exists() and stamp.read_text() == state:
        return python
    run([sys.executable, "-m", "venv", "--clear", str(venv)])
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    # By the environment, as builds of packages heed it there too.
    pinned = {**os.environ, "PIP_CONSTRAINT": str(CLIENTS / "constraints.txt")}
    run([*pip, "-e", str(ROOT), "-r", str(wanted)], env=pinned)
    if alone.exists():
        run([*pip, "--no-deps", "--ignore-requires-python", "-r", str(alone)], env=pinned)
    stamp.write_text(state)
    return python


def run(command: list[str], **settings: Any) -> str:
    """What a command prints. It and all that it started end with it. Raises RuntimeError if it fails."""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        **settings,
    ) as process:
        try:
            out, errors = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"took more than {LIMIT_S} s") from None
        finally:
            stop(process)
    if process.returncode == NOT_RUN:
        raise RuntimeError(last_line(out))
    if process.returncode:
        raise RuntimeError(last_line(errors) or last_line(out) or f"exit {process.returncode}")
    return out


def stop(process: subprocess.Popen[str]) -> None:
    """End a process and what it started, also where this program is interrupted."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def last_line(text: str) -> str:
    """The last line that says something, which of a traceback is the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception)\b", line)]
    return (errors or lines or [""])[-1][:400]


def versions(python: Path, folder: Path) -> dict[str, str]:
    """Versions of the tool's own packages, then of those that matter to all."""
    names = []
    for line in [*lines_of(folder / "requirements.txt"), *lines_of(folder / "alone.txt")]:
        name = re.match(r"[\w.-]+", line)
        assert name is not None, f"{folder.name}: {line}"
        names.append(name[0])
    program = (
        "import sys, json; from importlib import metadata as m; "
        "have = {d.name.lower().replace('_', '-'): d.version for d in m.distributions()}; "
        "print(json.dumps({n: have[k] for n in sys.argv[1:] "
        "if (k := n.lower().replace('_', '-')) in have}))"
    )
    found = json.loads(run([str(python), "-c", program, *dict.fromkeys([*names, *WITH_ALL])]))
    return {**found, "python": sys.version.split()[0]}


def lines_of(file: Path) -> Iterator[str]:
    """The packages that a file lists."""
    if file.exists():
        for line in file.read_text().splitlines():
            if line.strip() and not line.startswith(("#", "-")):
                yield line.strip()


def try_recipe(name: str, recipe: Path, kept: dict[str, Any], force: bool) -> dict[str, Any]:
    """Install a client and run a recipe, unless it passed before; what came of it."""
    folder, before = recipe.parent, kept.get(name, {})
    asked = digest(recipe, *sorted(folder.glob("*.yml")))
    found: dict[str, Any] = {"recipe": asked, "passed": False, "versions": {}, "seconds": None}
    try:
        python = install(folder)
        found["versions"] = versions(python, folder)
        same = all(before.get(key) == found[key] for key in ("recipe", "versions"))
        if before.get("passed") and same and not force:
            return before
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as place:
            out = run([str(python), str(recipe)], cwd=place, env=surroundings(place))
        found["seconds"] = round(time.monotonic() - start)
        found["says"] = RESULT.findall(out)
        if not found["says"]:
            raise RuntimeError(f"ended without a result: {last_line(out)}")
        found["passed"] = True
    except RuntimeError as error:
        found["error"] = str(error)
    return found


def surroundings(place: str) -> dict[str, str]:
    """Environment variables of a recipe: what tools write goes into its folder, nothing is reported."""
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "WANDB_MODE": "offline"}
    # Small networks: more threads of torch than one would wait for each other.
    return {
        **os.environ,
        **quiet,
        "OMP_NUM_THREADS": "1",
        "HOME": place,
        "PYTHONWARNINGS": "ignore",
    }


def outcome(found: dict[str, Any]) -> str:
    """What came of a recipe, in a line."""
    if found["passed"]:
        return "; ".join(found["says"])
    return f"**fails**: {found['error']}" if failed(found) else found["error"]


def table() -> list[str]:
    """The outcomes as lines of Markdown."""
    rows = ["| client | versions | seconds | outcome |", "|---|---|---|---|"]
    for name, found in json.loads(KEPT.read_text()).items():
        shown = [f"{k} {v}" for k, v in found["versions"].items() if k not in ("llmgym", "python")]
        cells = (name, ", ".join(shown), str(found["seconds"] or ""), outcome(found))
        rows.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return rows


def code(name: str) -> list[str]:
    """A recipe as a block of Markdown, without its docstring."""
    text = recipes()[name].read_text().split('"""', 2)[2].strip()
    return [
        "```py",
        *text.replace("  # noqa: F401 - registers", "  # registers").splitlines(),
        "```",
    ]


def main() -> int:
    """Try the clients; the exit code is 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="folders under clients/; none: all")
    parser.add_argument("--force", action="store_true", help="also those that passed before")
    asked = parser.parse_args()
    known = recipes()
    chosen = {
        name: file
        for name, file in known.items()
        if not asked.names or {name, file.parent.name} & set(asked.names)
    }
    if not chosen:
        sys.exit(f"No client {' '.join(asked.names)!r}. Known: {', '.join(known)}.")
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for n, (name, recipe) in enumerate(chosen.items(), 1):
        print(f"[{n}/{len(chosen)}] {name} ...", end=" ", flush=True)
        found = try_recipe(name, recipe, kept, asked.force)
        took = "before" if found is kept.get(name) else f"after {found['seconds'] or 0} s"
        print(
            f"{'passed' if found['passed'] else 'FAILED' if failed(found) else ''} {took}: {outcome(found)}"
        )
        kept[name] = found
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        ordered = {key: kept[key] for key in known if key in kept}
        KEPT.with_suffix(".part").write_text(json.dumps(ordered, indent=2) + "\n")
        KEPT.with_suffix(".part").replace(KEPT)
    return int(any(failed(kept[name]) for name in chosen))


def failed(found: dict[str, Any]) -> bool:
    """Whether a recipe ran and failed."""
    return not found["passed"] and not found["error"].startswith("not run")


if __name__ == "__main__":
    sys.exit(main())
