"""README and documentation: links lead somewhere, commands and names exist, code runs, tables are current."""

from __future__ import annotations

import importlib.util
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from llmgym import agents, baselines
from llmgym.cli.main import app
from llmgym.scenario import library

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
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


def test_readme_is_a_front_door() -> None:
    text = text_of(ROOT / "README.md")
    assert len(text.splitlines()) <= 200
    for needed in (
        "make benchmark",
        "make test",
        "model.learn(",
        "make benchmark TRACE=",
        "CITATION.cff",
    ):
        assert needed in text
    # Every page under docs/ is one click away.
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name})" in text, f"README does not lead to docs/{page.name}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_rows_of_tables_have_the_cells_of_their_header(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    for table in re.findall(r"(?:^\|.*\n)+", prose, re.MULTILINE):
        header, rule, *rows = table.splitlines()
        assert re.fullmatch(r"\|( ?:?-+:? ?\|)+", rule), f"{page.name}: {header}"
        for row in (rule, *rows):
            assert row.count("|") == header.count("|"), f"{page.name}: {row}"


def texts() -> list[tuple[str, str]]:
    """Everything that a person reads about llmgym, by file: pages, notebooks, code and help."""
    found = [(name, text_of(page)) for page, name in zip(PAGES, NAMES, strict=True)]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        prose = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        found.append((path.name, "\n\n".join(prose)))
    for folder in ("llmgym", "baselines", "agents", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found.append((path.relative_to(ROOT).as_posix(), path.read_text()))
    return found


def commands() -> list[tuple[str, str]]:
    """Every command line of llmgym in pages, notebooks and code, with the file where it stands."""
    found = []
    for name, text in texts():
        blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        lines = [line for block in blocks for line in block.replace("\\\n", "").splitlines()]
        if name.endswith(".py"):  # the usage in a docstring
            lines += [
                line.strip() for line in re.findall(r"^    llmgym [a-z].*$", text, re.MULTILINE)
            ]
        lines += [" ".join(line.split()) for line in re.findall(r"`(llmgym [a-z][^`]*)`", text)]
        found += [(name, line) for line in lines if line.startswith("llmgym ")]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_and_options_exist(page: str, line: str) -> None:
    group = typer.main.get_command(app)
    name, *arguments = shlex.split(line.replace("'", ""), comments=True)[1:]
    known: dict[str, Any] = group.commands  # type: ignore[attr-defined]
    assert name in known, f"{page}: llmgym {name}"
    options = {o for p in known[name].params for o in (*p.opts, *p.secondary_opts)}
    for argument in arguments:
        if re.fullmatch(r"--?[a-z][a-z0-9-]*", argument):
            assert argument in options, f"{page}: llmgym {name} {argument}"


@pytest.mark.parametrize(("page", "line"), commands())
def test_scenarios_and_policies_of_commands_exist(page: str, line: str) -> None:
    for option, value in re.findall(r"(?<!\S)(--scenario|-s|--policy|-p)[ =]([^\s'`]+)", line):
        name = value.partition(":")[0]
        if name.isupper() or "/" in name or "{" in name or name.endswith((".toml", ".py", ".npz")):
            continue  # a placeholder or a file
        scenario = option in ("--scenario", "-s")
        known = library.names() if scenario else [*baselines.names(), *agents.names()]
        assert name in known, f"{page}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_names_of_the_package_exist(page: Path) -> None:
    for name in set(re.findall(r"\bllmgym(?:\.\w+)+", text_of(page))):
        try:
            pkgutil.resolve_name(name)  # also where a function has the name of a package
        except (ImportError, AttributeError):
            pytest.fail(f"{page.name}: {name}")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_targets_of_make_and_paths_exist(page: Path) -> None:
    text = text_of(page)
    targets = re.findall(r"^([a-z-]+(?: [a-z-]+)*):(?!=)", (ROOT / "Makefile").read_text(), re.M)
    known = {target for names in targets for target in names.split()}
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE):
        assert target in known, f"{page.name}: make {target}"
    folders = "agents|baselines|docs|llmgym|notebooks|tests|tools"
    for path in re.findall(rf"`((?:{folders})/[\w./-]*)`", text):
        if re.search(r"-v\d$|/my_rule\.py$", path):
            continue  # the id of an environment, or a file that the reader writes
        assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_a_scenario_is_written_shown_and_simulated_as_its_guide_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = ROOT / "docs" / "guides" / "scenario.md"
    (program,) = (code for code in code_of(page, "python") if '"mine.toml"' in code)
    monkeypatch.chdir(tmp_path)
    exec(compile(program, str(page), "exec"), {})
    assert "token_budget" in (tmp_path / "mine.toml").read_text()
    for line in code_of(page, "sh")[0].splitlines():
        command = shlex.split(line, comments=True)[1:]
        if command[0] == "simulate":
            command += ["--duration-s", "5"]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output


def update_readme(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tool that writes the tables, as a module."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    path = ROOT / "tools" / "update_readme.py"
    spec = importlib.util.spec_from_file_location("update_readme", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_those_of_the_result_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = update_readme(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["update_readme.py", "--check"])
    assert tool.main() == 0, capsys.readouterr().out
    shown = [name for page in PAGES for _, name, _ in tool.MARKED.findall(text_of(page))]
    assert sorted(shown) == sorted(tool.TABLES)  # each once, on some page


def test_a_table_that_was_edited_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = update_readme(monkeypatch)
    page = text_of(ROOT / "docs" / "speed.md")
    edited = re.sub(r"\| 64 \|", "| 65 |", page, count=1)
    assert edited != page
    assert tool.filled(edited) == page


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
