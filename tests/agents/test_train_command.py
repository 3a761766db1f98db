"""``llmgym train``: what its options make of the learner, and one line for every fault."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import llmgym
from llmgym import LLMGymError, cli
from llmgym.agents.budgets import BudgetChoice
from llmgym.agents.scores import ScoreChoice
from llmgym.agents.training import Training
from llmgym.cli import training as cli_agents


def training(*scenarios: str, **options: Any) -> Training:
    usual = {"load": None, "rate": None, "seed": 0, "seeds": 1, "patience": None, "option": None}
    bases = [cli_agents._scenario(name, ["slots=64"]) for name in scenarios]
    return cli_agents._training(bases, 1_000_000, **{**usual, **options})


def test_options_reach_the_learner() -> None:
    found = training(
        "latency", rate=[8.0, 12.0], seed=3, seeds=2, option=["prior=0", "guard=none", "steps=64"]
    )
    assert [s.arrival_rate_per_s for s in found.scenarios] == pytest.approx([8, 12])
    assert found.seeds == (3, 4)
    choice = found.settings.choice
    assert (choice.prior, choice.guard, choice.tiles, found.settings.steps) == (0, None, 4, 64)


def test_one_policy_for_several_scenarios() -> None:
    found = training("latency", "capped", "capped:max_num_seqs=60,slots=70", load=[0.5])
    assert [s.name for s in found.scenarios] == ["latency", "capped", "capped"]
    assert [s.engine.max_num_seqs for s in found.scenarios] == [None, 100, 60]
    assert [s.slots for s in found.scenarios] == [64, 64, 70]
    assert found.settings.choice.shares == 3 and found.settings.choice.guard is None
    assert "max_num_seqs = 60" in found.header(0)["scenarios"][2]


def test_faults_are_named() -> None:
    for options, message in [
        ({"load": [0.5], "rate": [8.0]}, "--load or --rate, not both"),
        ({"option": ["prior"]}, "write name=value"),
        ({"option": ["priors=1"]}, "Unknown option 'priors'. Did you mean 'prior'"),
        ({"option": ["choice=1"]}, "Unknown option 'choice'"),
        ({"seeds": 0}, "--seeds must be at least 1"),
    ]:
        with pytest.raises(LLMGymError, match=message):
            training("latency", **options)


def test_scores_are_options_of_their_agent() -> None:
    found = training("two-class", load=[0.9], agent="scores", option=["requests=8", "order=1"])
    choice = found.settings.choice
    assert isinstance(choice, ScoreChoice) and (choice.requests, choice.order) == (8, 1)
    assert choice.tiles == 4
    with pytest.raises(LLMGymError, match="Unknown option 'requests'"):
        training("two-class", load=[0.9], option=["requests=8"])


def test_late_requests_are_charged_where_it_is_asked_for() -> None:
    options = ["base=vllm_v1_priority", "late_weight=2"]
    found = training("multi-tenant", load=[0.5], agent="budget", option=options).settings
    assert isinstance(found.choice, BudgetChoice) and found.choice.base == "vllm_v1_priority"
    assert (found.choice.guard, found.choice.shares, found.late_weight) == (None, 1, 2)
    assert found.levels is not None and found.levels.weight == (10.0, 1.0)
    assert training("multi-tenant", load=[0.5]).settings.levels is None
    with pytest.raises(LLMGymError, match="late_weight needs targets"):
        training("geometric", load=[0.5], option=["late_weight=1"])


def test_its_advice_can_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    policy: Any = SimpleNamespace(digest="", header={})
    scenario = cli_agents._again("$(my) file.toml:slots=3,tick_ms=1", ["name=a 'b"])
    cli_agents._tell([policy], (0,), Path("out; dir"), scenario, as_json=False)
    advice = capsys.readouterr().out.splitlines()[-1].removeprefix("Judge: ")
    settings = ["--set", "name=a 'b", "--set", "slots=3", "--set", "tick_ms=1"]
    assert shlex.split(advice) == [
        "llmgym", "evaluate", "-s", "$(my) file.toml", *settings, "-p", "out; dir/agent-0.npz"
    ]  # fmt: skip


def test_unknown_agent_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["llmgym", "train", "--agent", "pro"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("llmgym: Unknown agent 'pro'. Did you mean 'ppo'?")


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["sb3-ppo", "sb3-maskable-ppo", "sb3-dqn"])
def test_stable_baselines3_from_the_command(
    agent: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sb3_contrib")
    arguments = ["--agent", agent, "--rate", "12", "--steps", "512", "--set", "slots=48"]
    arguments += ["--option", "num_envs=8", "--option", "batch_size=64", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", ["llmgym", "train", *arguments, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    said = capsys.readouterr().out.replace("\n", "")
    assert "agent-0.npz" in said and "agent-1.npz" in said and "Judge: llmgym evaluate" in said
    policies = [llmgym.agents.load(tmp_path / f"agent-{seed}.npz") for seed in (0, 1)]
    assert policies[0] != policies[1]


@pytest.mark.slow
def test_seeds_side_by_side_give_what_each_gives_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["--rate", "12", "--steps", "20000", "--set", "slots=48", "--json"]
    small += ["--option", "num_envs=8", "--option", "hidden=4"]

    def run(*arguments: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["llmgym", "train", *small, *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 0
        found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
        return found

    both = run("--seeds", "2", "--out", str(tmp_path / "both"))
    alone = run("--seed", "1", "--out", str(tmp_path / "alone"))
    assert both[1]["digest"] == alone[0]["digest"] != both[0]["digest"]
    files = [tmp_path / name / "agent-1.npz" for name in ("both", "alone")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_seeds_in_one_program_learn_the_same() -> None:
    """vmap rounds otherwise in the last digit, so the first iterations must agree, not the bits."""
    from llmgym.agents.ppo import PPO
    from llmgym.agents.training import train

    base = llmgym.scenario("latency", slots=48).at_rate(10.0)
    settings = PPO(num_envs=4, steps=16, minibatches=2, hidden=4, warm_up=0.0)
    short = Training((base,), settings, steps=320, seeds=(0, 1))
    together, apart = (train(short, together=x) for x in (True, False))
    for a, b in zip(together, apart, strict=True):
        for mine, theirs in zip(a.actor, b.actor, strict=True):
            np.testing.assert_allclose(mine["weight"], theirs["weight"], atol=1e-3)
    assert together[0].digest != together[1].digest
