"""The recipes for RL tools, and the program that runs them; the tools themselves are not needed here."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "clients").glob("*/*.py"))


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program as a module, with a folder of clients of its own and this interpreter for all."""
    spec = importlib.util.spec_from_file_location(
        "clients_tool", ROOT / "tools" / "clients_tool.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "CLIENTS", tmp_path / "clients")
    monkeypatch.setattr(module, "KEPT", tmp_path / "results" / "clients.json")
    monkeypatch.setattr(module, "install", lambda folder: Path(sys.executable))
    return module


def client(tool: Any, name: str, *recipes: tuple[str, str]) -> None:
    folder = tool.CLIENTS / name
    folder.mkdir(parents=True)
    (folder / "requirements.txt").write_text("# its own list\nllmgym[sb3]\nnumpy>=2\n")
    for file, text in recipes:
        (folder / file).write_text(f'"""What it does."""\n\n{text}\n')


def run(tool: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["clients_tool.py", *arguments])
    tool.main()
    kept: dict[str, Any] = json.loads(tool.KEPT.read_text())
    return kept


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.parent.name)
def test_a_recipe_is_short_and_says_what_it_is(recipe: Path) -> None:
    text = recipe.read_text()
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 70
    assert "print(" in text


def test_every_client_has_its_packages_and_its_place_on_the_page() -> None:
    page = (ROOT / "docs" / "guides" / "rl-tools.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for recipe in RECIPES:
        wanted = (recipe.parent / "requirements.txt").read_text()
        for extra in re.findall(r"^llmgym\[([\w-]+)\]", wanted, re.MULTILINE):
            assert extra in project["optional-dependencies"], recipe.parent.name
        assert "\n<!-- table: recipe-" + recipe.parent.name in page


def test_a_recipe_that_passes_is_kept_and_not_run_again(
    tool: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    count = f"open({str(runs)!r}, 'a').write('x')"
    client(tool, "good", ("recipe.py", f"{count}\nprint('noise')\nprint('PPO: 12 steps, fine')"))
    found = run(tool, monkeypatch)["good"]
    assert (found["passed"], found["says"]) == (True, ["PPO: 12 steps, fine"])
    assert found["versions"]["numpy"]
    run(tool, monkeypatch)
    assert runs.read_text() == "x"
    run(tool, monkeypatch, "--force")
    assert runs.read_text() == "xx"
    recipe = tool.CLIENTS / "good" / "recipe.py"
    recipe.write_text(recipe.read_text() + "# changed\n")
    run(tool, monkeypatch, "good")
    assert runs.read_text() == "xxx"
    assert "| good |" in tool.table()[-1]


def test_failures_say_what_failed(
    tool: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client(tool, "bad", ("a.py", "raise KeyError('frameskip')"), ("b.py", "print('no result')"))
    client(tool, "lacks", ("recipe.py", "print('not run: a clone is needed')\nexit(77)"))
    found = run(tool, monkeypatch)
    assert list(found) == ["bad/a", "bad/b", "lacks"]
    assert found["bad/a"]["error"] == "KeyError: 'frameskip'"
    assert "without a result: no result" in found["bad/b"]["error"]
    assert found["lacks"]["error"] == "not run: a clone is needed"
    assert [tool.failed(f) for f in found.values()] == [True, True, False]
    assert tool.main() == 1
    assert "FAILED" in capsys.readouterr().out


def test_a_recipe_without_end_is_ended(tool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "LIMIT_S", 1)
    with pytest.raises(RuntimeError, match="more than 1 s"):
        tool.run([sys.executable, "-c", "import time; time.sleep(60)"])


def test_unknown_clients_are_named(tool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client(tool, "good", ("recipe.py", "print('PPO: 1 steps')"))
    with pytest.raises(SystemExit, match="Known: good"):
        run(tool, monkeypatch, "bad")
