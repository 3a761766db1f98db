"""README and documentation: links lead somewhere, commands and options exist, code runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from llmgym.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
GENERATED = ("api/", "baselines/", "scenarios/", "index.md")
"""Made when the documentation is built: see tools/docs_pages.py."""


def text_of(page: Path) -> str:
    return page.read_text()


def code_of(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith(("http://", "https://", "#")):
            continue
        path = (page.parent / target.partition("#")[0]).resolve()
        docs = path.relative_to(ROOT / "docs").as_posix() if "docs" in path.parts else ""
        assert path.exists() or docs.startswith(GENERATED), f"{page.name}: {target}"


def commands() -> list[tuple[str, str]]:
    """Every command line of llmgym in the documentation, with the page that it stands on."""
    found = []
    for page, name in zip(PAGES, NAMES, strict=True):
        lines = [
            line for block in code_of(page, "sh") for line in block.replace("\\\n", "").splitlines()
        ]
        lines += re.findall(r"`(llmgym [a-z][^`]*)`", text_of(page))
        found += [(name, line) for line in lines if line.startswith("llmgym ")]
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_and_options_exist(page: str, line: str) -> None:
    group = typer.main.get_command(app)
    name, *arguments = shlex.split(line, comments=True)[1:]
    known: dict[str, Any] = group.commands  # type: ignore[attr-defined]
    assert name in known, f"{page}: llmgym {name}"
    options = {o for p in known[name].params for o in (*p.opts, *p.secondary_opts)}
    for argument in arguments:
        if re.fullmatch(r"--?[a-z][a-z0-9-]*", argument):
            assert argument in options, f"{page}: llmgym {name} {argument}"


def blocks() -> list[tuple[str, int, str]]:
    # docs/train.md has a test of its own, with less to train.
    pages = [(p, n) for p, n in zip(PAGES, NAMES, strict=True) if p.name != "train.md"]
    return [(n, k, code) for p, n in pages for k, code in enumerate(code_of(p, "python"))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "number", "code"), blocks(), ids=[f"{n}-{k}" for n, k, _ in blocks()]
)
def test_code_runs(page: str, number: int, code: str, tmp_path: Path) -> None:
    """As it stands, in a folder of its own, but for shorter training."""
    code = re.sub(r"(?<=steps=)[\d_]{6,}|(?<=learn\()[\d_]+", "20_000", code)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    quiet = {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "WARNING" not in done.stderr
    page = (tmp_path / "site" / "baselines" / "sarathi.html").read_text()
    assert "arXiv:2403.02310" in page
