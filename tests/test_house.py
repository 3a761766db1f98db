"""The house rules: files and functions stay short, and the page that explains the house is true."""

import ast
import re
import runpy
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("llmgym", "agents", "baselines", "tools", "tests")

MOST_LINES_OF_A_FILE = 350
MOST_LINES_OF_A_FUNCTION = 60

LONG_FUNCTIONS = {
    "llmgym/engine/simulator.py::step": "the one step body: a dozen stages in order, and two records",
}
"""Functions that may be longer, as path::name, each with its reason."""

PAGE = (ROOT / "docs" / "how-it-works.md").read_text()


def sources() -> list[Path]:
    """All Python files; the links inside llmgym are not followed, so each comes once."""
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def functions(path: Path) -> dict[str, int]:
    """Lines of every function of a file, from ``def`` to its end."""
    tree = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        f"{path.relative_to(ROOT)}::{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(tree)
        if isinstance(node, kinds)
    }


def test_dataclasses_are_frozen() -> None:
    """Values do not change behind the back of those who share them; what runs keeps its state."""
    with_state = {
        "agents/training.py::Run",
        "llmgym/cli/progress.py::Task",
        "llmgym/reporting/html.py::Page",
        "llmgym/traces/rows.py::Rows",
    }
    found = set()
    for path in sources():
        if path.is_relative_to(ROOT / "tests"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            made = [ast.unparse(x) for x in getattr(node, "decorator_list", ())]
            if any(x.startswith("dataclass") and "frozen=True" not in x for x in made):
                found.add(f"{path.relative_to(ROOT)}::{node.name}")
    assert found == with_state


def test_files_are_short() -> None:
    lines = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in sources()}
    assert len(lines) > 200
    assert {n: k for n, k in lines.items() if k > MOST_LINES_OF_A_FILE} == {}


def test_functions_are_short_or_have_a_reason() -> None:
    found = {name: n for path in sources() for name, n in functions(path).items()}
    long = {name: n for name, n in found.items() if n > MOST_LINES_OF_A_FUNCTION}
    assert {name: n for name, n in long.items() if name not in LONG_FUNCTIONS} == {}
    assert LONG_FUNCTIONS.keys() <= long.keys()  # those that became short need no reason


def test_the_page_lists_the_packages_on_their_floors() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (layers,) = (c["layers"] for c in project["tool"]["importlinter"]["contracts"] if "layers" in c)
    floors = [[name.strip() for name in layer.split("|")] for layer in layers]
    assert len(floors) <= 10
    table = re.findall(r"^\| (`llmgym/.*?) \|", PAGE, re.MULTILINE)
    shown = [[p.replace("/", ".") for p in re.findall(r"`(\w+/\w+)/`", row)] for row in table]
    assert shown == floors
    packages = {path.parent.name for path in (ROOT / "llmgym").glob("*/__init__.py")}
    assert {f"llmgym.{name}" for name in packages} == {name for floor in floors for name in floor}


@pytest.mark.parametrize(
    ("name", "path"),
    re.findall(r"`(\w+)`(?:\s\w+)?\s(?:in\s|\()`(\w[\w/]*\.py)`", PAGE),
)
def test_the_page_names_what_is_in_its_files(name: str, path: str) -> None:
    tree = ast.parse((ROOT / path).read_text())
    kinds = (ast.FunctionDef, ast.ClassDef)
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def public_functions(path: Path) -> list[tuple[str, list[str], str, bool]]:
    """Name, parameters, docstring, and whether it is a method, of each public function of a file."""
    found = []

    def look(body: list[ast.stmt], owner: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                look(node.body, node.name)
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                if any("command" in ast.unparse(d) for d in node.decorator_list):
                    continue  # its options have help texts
                args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                names = [a.arg for a in args if a.arg not in ("self", "cls")]
                found.append((node.name, names, ast.get_docstring(node) or "", bool(owner)))

    look(ast.parse(path.read_text()).body, "")
    return found


def test_functions_of_more_than_two_parameters_explain_them() -> None:
    """All but methods that do what another class's method of that name, explained there, is to do."""
    folders = ("llmgym", "agents", "baselines")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    every = [(path, *rest) for path in paths for rest in public_functions(path)]
    assert len(every) > 1000
    explained = {name for _, name, _, text, method in every if method and "Args:\n" in text}
    silent = [
        f"{path.relative_to(ROOT)}::{name}"
        for path, name, parameters, text, method in every
        if len(parameters) > 2 and "Args:\n" not in text and not (method and name in explained)
    ]
    assert silent == []


def test_the_mutation_tool_names_what_there_is() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "mutate.py"))
    groups = [group for package in tool["PACKAGES"].values() for group in package]
    for modules, tests in groups:
        for folder, names in (("llmgym", modules), ("tests", tests)):
            for name in names.split():
                path, _, function = name.partition("::")
                assert (ROOT / folder / path).exists(), name
                assert not function or f"def {function}(" in (ROOT / folder / path).read_text()
