"""The programs of docs/train.md run as they stand, but for their sizes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "train.md"

SMALLER = {
    r"slots=\d+": "slots=48",
    r"steps=[\d_]+": "steps=600",
    r"num_envs=64": "num_envs=4",
    r"progress_bar=True": "progress_bar=True, num_envs=4",
    r"\(0\.6, 0\.75, 0\.87, 0\.95\)": "(0.6, 0.87)",
    r"seeds=\(0, 1\)": "seeds=(0,)",
    r"duration_s=600": "duration_s=5",
}


def programs() -> dict[str, str]:
    found = re.findall(r"^## With (\S+)\n\n```python\n(.*?)```", PAGE.read_text(), re.M | re.S)
    return dict(found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", list(programs()))
def test_the_programs_of_the_page_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "Stable-Baselines3":
        pytest.importorskip("sb3_contrib")
    program = programs()[name]
    for large, small in SMALLER.items():
        program = re.sub(large, small, program)
    monkeypatch.chdir(tmp_path)
    exec(compile(program, str(PAGE), "exec"), {})
    assert (tmp_path / "results" / "mine" / "agent-0.npz").exists()
    assert "'mean': " in capsys.readouterr().out


def test_the_page_has_a_short_program_for_each_way() -> None:
    assert {"Stable-Baselines3", "JAX"} == set(programs())
    for program in programs().values():
        assert len(program.split("\n\n")[1].splitlines()) <= 10
        compile(program, "train.md", "exec")
