"""Stable-Baselines3 on tile policies: what it learns is what llmgym runs, and what users expect of SB3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmgym
from llmgym import LLMGymError, agents
from llmgym.engine import simulator
from llmgym.theory.capacity import at_load

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

from stable_baselines3.common.callbacks import BaseCallback

from llmgym.agents import sb3_ppo
from llmgym.agents.neural import nearest_choice
from llmgym.agents.sb3_policies import policy_of
from llmgym.agents.sb3_worlds import Worlds
from llmgym.agents.tile_choice import TileChoice

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

BASE = llmgym.scenario("latency", slots=48)
WORLDS = (BASE.at_rate(9.0), BASE.at_rate(12.0))
TINY: dict[str, Any] = {"num_envs": 8, "max_steps": 24, "steps": 512}
PPO: dict[str, Any] = {"n_steps": 32, "batch_size": 64, "n_epochs": 1}
DQN: dict[str, Any] = {"learning_starts": 64, "buffer_size": 512, "batch_size": 32}


def learner(algorithm: str) -> dict[str, Any]:
    return TINY | (DQN if algorithm == "dqn" else PPO) | {"choice": {"guard": 2.0}}


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    return {
        name: sb3_ppo.train(WORLDS, name, seed=3, **learner(name)) for name in sb3_ppo.ALGORITHMS
    }


@pytest.fixture(scope="module")
def envs() -> Worlds:
    choice = sb3_ppo.choice_of(WORLDS, "tiles", "ppo", guard=2.0)
    return Worlds(WORLDS, choice, num_envs=8, max_steps=24)


@pytest.mark.parametrize("algorithm", list(sb3_ppo.ALGORITHMS))
def test_the_policy_chooses_as_the_model_does(trained: dict[str, Any], algorithm: str) -> None:
    """On every observation of a run, for the model's own weights."""
    learned = trained[algorithm]
    policy = policy_of(learned)
    adapter, logits = learned.get_env(), jax.jit(policy.choice.logits)
    inputs, outputs = policy.choice.inputs, sum(policy.choice.parts)
    observation, seen = adapter.reset(), set()
    for _ in range(30):
        masks = np.asarray(adapter.env_method("action_masks"))
        allowed = {"action_masks": masks} if policy.masks else {}
        expected, _ = learned.predict(observation, deterministic=True, **allowed)
        mine = np.asarray(logits(policy.actor, observation[:, :inputs]))
        if algorithm != "dqn":
            mine = mine + observation[:, inputs : inputs + outputs]
        mine = np.where(masks, mine, -np.inf) if policy.masks else mine
        assert np.array_equal(mine.argmax(axis=1), expected)
        seen |= set(expected.tolist())
        observation, *_ = adapter.step(expected)
    assert len(seen) > 1 or algorithm == "dqn"


def test_the_policy_runs_an_engine_as_the_worlds_do(trained: dict[str, Any], envs: Worlds) -> None:
    """The same batches: its choice, or the nearest that is allowed, from the same views."""
    policy = policy_of(trained["ppo"])
    observation, _ = envs.reset(seed=1)
    view_of = jax.jit(jax.vmap(simulator.view, out_axes=0))
    batch_of = jax.jit(jax.vmap(lambda view: policy(None, view).tokens))  # type: ignore[arg-type]
    chosen_of = jax.jit(
        jax.vmap(
            lambda view, action: (
                policy.choice.batch(
                    view,
                    nearest_choice(policy.choice.parts, policy.choice.look(view).mask.T, action).T,
                ).tokens
            )
        )
    )
    for _ in range(25):
        action, _ = trained["ppo"].predict(observation, deterministic=True)
        view = view_of(envs._physics[0], envs._carries[0].state)
        expected = chosen_of(view, jnp.asarray(action).reshape(2, 4, 1))
        assert np.array_equal(batch_of(view), expected)
        observation, *_ = envs.step(action)


def test_masked_choices_are_never_made(trained: dict[str, Any], envs: Worlds) -> None:
    learned = trained["maskable-ppo"]
    observation, _ = envs.reset(seed=2)
    barred = 0
    for _ in range(20):
        masks = envs.action_masks()
        action, _ = learned.predict(observation, action_masks=masks)
        assert masks[np.arange(8), action].all() and masks.any(axis=1).all()
        barred += int((~masks).sum())
        observation, *_ = envs.step(action)
    assert barred > 0


def test_the_nearest_choice() -> None:
    mask = jnp.array([[True, False, False, True, False, True]] * 3)
    asked = jnp.array([[1, 0], [2, 1], [3, 0]])
    assert nearest_choice((4, 2), mask, asked).tolist() == [[0, 1], [3, 1], [3, 1]]


def test_rewards_are_costs_against_the_average(envs: Worlds) -> None:
    """Over a run they add up to about 0 in every world, and more requests cost more."""
    envs.reset(seed=0)
    rewards, present = [], []
    for _ in range(300):
        present.append(envs.step(np.full(8, 3))[4]["in_system"])
        rewards.append(envs.step(np.full(8, 3))[1])
    total = np.array(rewards[100:])
    assert abs(total.mean()) < 0.2 * np.abs(total).mean()
    assert np.corrcoef(np.ravel(present[100:]), total.ravel())[0, 1] < -0.3


def test_episodes_are_cut_and_go_on(envs: Worlds) -> None:
    envs.reset(seed=0)
    for _ in range(24):
        observation, _, terminated, truncated, info = envs.step(np.zeros(8, int))
    assert truncated.all() and not terminated.any()
    with pytest.raises(LLMGymError, match="shape"):
        envs.step(np.zeros(7, int))
    kept = info["in_system"] < 40  # no table is full
    assert kept.any()
    np.testing.assert_array_equal(info["final_obs"][kept], observation[kept])


def test_a_seed_fixes_the_policy_and_files_hold_it(trained: dict[str, Any], tmp_path: Path) -> None:
    name = "maskable-ppo"
    again = sb3_ppo.train(WORLDS, name, seed=3, out=tmp_path, **learner(name))
    policy, first = policy_of(again), policy_of(trained[name])
    assert policy.digest == first.digest != policy_of(trained["ppo"]).digest
    loaded: Any = agents.load(tmp_path / "agent-3.npz")
    assert loaded == policy and loaded.masks and loaded.header["algorithm"] == "sb3-maskable-ppo"
    assert loaded.header["seed"] == 3 and len(loaded.header["scenarios"]) == 2
    zipped = sb3_ppo.MaskablePPO.load(tmp_path / "sb3-3.zip", device="cpu")
    assert policy_of(zipped, choice=policy.choice).digest == policy.digest
    with pytest.raises(LLMGymError, match="also needs its choice"):
        policy_of(zipped)
    run = llmgym.simulate(WORLDS[0], loaded, duration_s=10, num_envs=2)
    assert run.policy == "agent-3" and run.summary["completed"] > 0


def test_tensorboard_callbacks_and_progress_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Count(BaseCallback):
        rollouts = 0

        def _on_step(self) -> bool:
            return self.num_timesteps < 256

        def _on_rollout_start(self) -> None:
            self.rollouts += 1

    count, steps = Count(), []
    learned = sb3_ppo.train(
        WORLDS, "ppo", seed=1, tensorboard=tmp_path, progress_bar=True,
        callback=[count, Seen(steps)], **learner("ppo"),
    )  # fmt: skip
    assert learned.num_timesteps == 256 == steps[-1] and count.rollouts == 1
    assert list(tmp_path.rglob("events.out.tfevents*"))
    assert "256" in capsys.readouterr().out


class Seen(BaseCallback):
    def __init__(self, steps: list[int]) -> None:
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        self.steps.append(self.num_timesteps)
        return True


def test_what_is_refused() -> None:
    for arguments, message in [
        ({"algorithm": "a2c"}, "Unknown algorithm 'a2c'"),
        ({"action": "tile"}, "Unknown action 'tile'. Did you mean 'tiles'"),
        ({"algorithm": "dqn", "action": "scores"}, "'scores' is continuous"),
        ({"algorithm": "dqn", "action": "split"}, "DQN needs one discrete action"),
        ({"algorithm": "dqn", "choice": {"prior": 9.0}}, "takes no prior"),
        ({"num_envs": 7}, "multiple of the 2 scenarios"),
        ({"steps": 0}, "steps"),
        ({"learning_rates": 1.0}, "learning_rates"),
    ]:
        with pytest.raises(LLMGymError, match=message):
            sb3_ppo.train(WORLDS, **{"num_envs": 8, **arguments})  # type: ignore[arg-type]
    with pytest.raises(LLMGymError, match="network of engines"):
        sb3_ppo.train("rybko-stolyar", num_envs=8)
    foreign = sb3_ppo.PPO("MlpPolicy", "CartPole-v1", device="cpu")
    with pytest.raises(LLMGymError, match="Only a model of"):
        policy_of(foreign)


@pytest.mark.slow
def test_split_actions_train_under_a_cap() -> None:
    capped = at_load(llmgym.scenario("capped", slots=128), 0.8)
    for algorithm in ("ppo", "maskable-ppo"):
        learned = sb3_ppo.train(capped, algorithm, action="split", **TINY | PPO)
        policy = policy_of(learned)
        assert policy.choice == TileChoice(tiles=policy.choice.tiles, shares=3, guard=None)
        run = llmgym.simulate(capped, policy, duration_s=20, num_envs=2)
        assert run.summary["completed"] > 0
