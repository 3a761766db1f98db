"""The first training run of README beats every constant choice and greedy_rate, by what README says."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmgym
from llmgym.baselines.tiles import tile_batch

pytest.importorskip("sb3_contrib")

README = (Path(__file__).parents[2] / "README.md").read_text()
LOADS = (0.6, 0.7, 0.8, 0.9, 0.95)
SETTINGS = {"duration_s": 300, "num_envs": 16, "seed": 1000}


def program() -> str:
    (found,) = (c for c in re.findall(r"```python\n(.*?)```", README, re.S) if ".learn(" in c)
    return found


def margins() -> dict[str, float]:
    """By policy, how far README says that its mean is below theirs, at least, in percent."""
    told = re.search(r"at least (\d+) %\s+below\s+`greedy_rate`\s+and\s+(\d+) %\s+below", README)
    assert told is not None
    return {"greedy_rate": float(told[1]), "constant": float(told[2])}


def mean_of(policy: object) -> float:
    """Mean time in system over the loads, in ms."""
    runs = [llmgym.simulate("latency", policy, load=x, **SETTINGS) for x in LOADS]  # type: ignore[arg-type]
    return float(np.mean([run.summary["e2e_ms"]["mean"] for run in runs]))


def tiles(count: int) -> object:
    """The policy that always opens so many tiles, as action ``count - 1`` of ``tiles`` does."""

    def policy(key: jax.Array, view: llmgym.View) -> llmgym.Batch:
        return tile_batch(view, jnp.full_like(view.token_budget, count * 128))

    return policy


@pytest.mark.slow
@pytest.mark.long_runs
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_it_learns_beats_greedy_rate_and_every_constant(
    capsys: pytest.CaptureFixture[str],
) -> None:
    exec(compile(program(), "README.md", "exec"), {})
    printed: dict[str, list[float]] = {}
    for line in capsys.readouterr().out.splitlines():
        name, _, latency = line.rsplit(" ", 2)
        printed.setdefault(name, []).append(float(latency))
    assert [len(x) for x in printed.values()] == [len(LOADS)] * 3
    trained, greedy, sarathi = (float(np.mean(x)) for x in printed.values())
    constants = [mean_of(tiles(count)) for count in range(1, 5)]
    assert min(constants) == pytest.approx(sarathi, rel=0.01)  # the best one is two tiles
    assert trained < (1 - margins()["greedy_rate"] / 100) * greedy
    assert trained < (1 - margins()["constant"] / 100) * min(constants)
