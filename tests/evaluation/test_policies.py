"""What a text stands for where a policy is asked for."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from llmgym import LLMGymError, baselines
from llmgym.evaluation import policies

MINE = """
from llmgym.engine.fill import fill

def decodes_only(key, view):
    return fill(view, view.empty(), view.decode)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_names_settings_and_objects() -> None:
    assert policies.resolve("orca") == baselines.make("orca")
    found = policies.resolve("vllm:prompts=split,token_budget=128")
    assert found == baselines.make("vllm", prompts="split", token_budget=128)
    assert policies.resolve("index:prefill_weight=0.7") == baselines.make(
        "index", prefill_weight=0.7
    )
    assert policies.resolve(found) is found


def test_a_function_in_a_file(file: Path) -> None:
    found = policies.resolve(f"{file}:decodes_only")
    assert found.__name__ == "decodes_only"  # type: ignore[attr-defined]
    assert policies.resolve(f"{file}:decodes_only") is found
    name = f"{file}:decodes_only"
    expected = hashlib.sha256(MINE.encode()).hexdigest()
    assert policies.digests((name, "sarathi")) == {name: expected}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sarathy", "Did you mean 'sarathi'"),
        ("sarathi:128", "name:setting=value"),
        ("sarathi:budget=128", "token_budget"),
        ("missing.py:mine", "Cannot read policy .*missing.py: No such file"),
        ("{file}:decode_only", "Did you mean 'decodes_only'"),
        ("missing.npz", "no checkpoint"),
    ],
)
def test_what_stands_for_nothing_is_refused(text: str, message: str, file: Path) -> None:
    with pytest.raises(LLMGymError, match=message):
        policies.resolve(text.format(file=file))


def test_a_file_that_fails_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("import no_such_module_anywhere")
    with pytest.raises(LLMGymError, match=r"broken\.py cannot be imported: ModuleNotFoundError"):
        policies.resolve(f"{path}:mine")
    path.write_text("mine = 3")
    with pytest.raises(LLMGymError, match="A policy is a name or a function"):
        policies.resolve(f"{path}:mine")
