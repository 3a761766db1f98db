"""``llmgym train --observation --action``: what the learner gets, and one line for every fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import run

import llmgym
from llmgym import LLMGymError
from llmgym.agents.of_interface import InterfaceChoice
from llmgym.cli import training as cli_training
from llmgym.cli.interfaces import interface_options

SMALL = ("--set", "slots=48", "--rate", "10", "--option", "num_envs=4", "--option", "hidden=4")


def learner(*scenarios: str, option: list[str] | None = None, **options: Any) -> Any:
    bases = [cli_training._scenario(name, ["slots=64"]) for name in scenarios]
    sees = interface_options(bases, "ppo", **({"observation": None, "action": None} | options))
    return cli_training._training(
        bases, 1_000_000, [0.5], None, 0, 1, None, option, "ppo", sees
    ).settings


def test_names_reach_the_learner() -> None:
    found = learner("latency", observation="prefill_tokens, decoding", action="split:shares=3")
    choice = found.choice
    assert isinstance(choice, InterfaceChoice)
    assert choice.features == ("prefill_tokens", "decoding")
    assert choice.parts == (4, 3) and dict(choice.settings) == {"shares": 3}
    assert learner("latency", observation="engine").choice.action == "tiles"
    budget = learner("capped", action="budget:base=vllm", option=["requests=2", "prefill_weight=2"])
    assert budget.choice.interface.action.base == llmgym.baselines.make("vllm")
    assert budget.choice.requests == 2 and "request_1_prefill" in budget.choice.features
    assert budget.prefill_weight == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observation": "decodin"}, "Unknown feature 'decodin'. Did you mean 'decoding'"),
        ({"observation": "decoding,decoding"}, "has the entry 'decoding' twice"),
        ({"action": "tile"}, "Unknown action encoding 'tile'. Did you mean 'tiles'"),
        ({"action": "scores"}, "not made of choices: PPO here takes tiles, split"),
        ({"action": "split:3"}, "write name:setting=value"),
        ({"action": "split:share=3"}, "Unknown setting of action encoding 'split': 'share'"),
        ({"action": "split:name=x"}, "Unknown setting of action encoding 'split': 'name'"),
        ({"action": "budget:base=vlm"}, "Did you mean 'vllm'"),
        ({"action": "tiles", "option": ["prior=1"]}, "Unknown option 'prior'"),
        ({"action": "tiles", "option": ["sizes=1"]}, "Unknown option 'sizes'"),
    ],
)
def test_faults_name_the_mend(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LLMGymError) as refused:
        learner("latency", **options)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_one_policy_needs_engines_of_one_size() -> None:
    with pytest.raises(LLMGymError, match="differ in tile, token_budget, slots or classes"):
        learner("latency", "two-class", action="tiles")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--agent", "sb3-ppo"), "are for --agent ppo; sb3-ppo has its own"),
        (("--agent", "budget"), "are for --agent ppo; budget has its own"),
        (("-s", "rybko-stolyar"), "'rybko-stolyar' is a network"),
    ],
)
def test_the_command_refuses_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "out"
    code, _, err = run(capsys, "train", "--action", "tiles", *arguments, "--out", str(out))
    assert code == 2 and message in err and err.count("\n") == 1
    assert not out.exists()


def test_a_policy_is_trained_and_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    seen = ("--observation", "decoding,prefill_tokens", "--action", "split:shares=2")
    arguments = ("train", *SMALL, *seen, "--steps", "2000", "--json", "--out", str(tmp_path))
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    policy: Any = llmgym.agents.load(json.loads(out)[0]["file"])
    assert policy.choice.features == ("decoding", "prefill_tokens")
    assert policy.choice.parts == (4, 2)
    scenario = llmgym.scenario("latency", slots=48).at_rate(10.0)
    assert llmgym.simulate(scenario, policy, duration_s=5).summary["completed"] >= 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--log", "tensorbord"), "Unknown log 'tensorbord'. Did you mean 'tensorboard'"),
        (("--log", "tensorbord", "--agent", "sb3-ppo"), "Unknown log 'tensorbord'"),
        (("--log", "wandb", "--agent", "sb3-ppo"), "sb3-ppo writes --log tensorboard"),
    ],
)
def test_a_log_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "out"
    code, _, err = run(capsys, "train", *arguments, "--out", str(out))
    assert code == 2 and message in err and err.count("\n") == 1
    assert not out.exists()


def test_learning_curves_go_where_the_option_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    arguments = ("train", *SMALL, "--steps", "2000", "--log", "tensorboard", "--out", str(tmp_path))
    code, _, err = run(capsys, *arguments)
    assert code == 0, err
    assert list((tmp_path / "tensorboard" / "seed-0").glob("events.out.tfevents*"))
