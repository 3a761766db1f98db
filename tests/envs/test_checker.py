"""check_vector_env: silent on good environments, and for every rule one that breaks it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

import llmgym
from llmgym import LLMGymError
from llmgym.envs.checker import check_vector_env

SAME, NEXT, DISABLED = AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED


class Walk(VectorEnv[Any, Any, Any]):
    """Random walks that end at +-1: a good vector environment, but for its ``fault``."""

    def __init__(self, mode: Any = SAME, fault: str = "", num_envs: int = 3) -> None:
        self.num_envs, self.fault = num_envs, fault
        self.metadata = {"autoreset_mode": mode}
        self.single_observation_space = gym.spaces.Box(-2, 2, (2,), np.float32)
        self.single_action_space = gym.spaces.Discrete(3)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.mode = SAME if mode is None else mode
        self.ended = np.zeros(num_envs, bool)
        self.rngs: list[np.random.Generator] = []
        self.state = np.zeros((num_envs, 2))
        self.steps = np.zeros(num_envs, int)
        self.spoil_spaces()

    def spoil_spaces(self) -> None:
        if self.fault == "observation space":
            self.observation_space = self.single_observation_space
        if self.fault == "action space":
            self.action_space = gym.spaces.MultiDiscrete([2] * self.num_envs)
        if self.fault == "no single space":
            del self.single_action_space
        if self.fault == "num_envs":
            self.num_envs = 0

    def start(self, where: np.ndarray) -> None:
        for i in np.flatnonzero(where):
            self.state[i] = [self.rngs[i].uniform(-0.5, 0.5), 0.0]
            if self.fault == "constant start":
                self.state[i, 0] = min(0.1 * self.steps[i], 0.5)  # not 0 in an autoreset
            self.steps[i] = 0

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        if (options or {}).get("reset_mask") is not None:
            mask = options["reset_mask"]
            mask = np.ones_like(mask) if self.fault == "resets too many" else mask
            self.start(np.zeros_like(mask) if self.fault == "resets none" else mask)
        else:
            self.seed(seed)
            self.steps[:] = 0
            self.start(np.ones(self.num_envs, bool))
        self.ended[:] = False
        observation = self.state.astype(np.float32)
        if self.fault == "reset shape":
            observation = observation[0]
        if self.fault == "reset dtype":
            observation = observation.astype(np.float64)
        if self.fault == "reset outside":
            observation[1, 1] = 3.0
        return observation if self.fault == "reset tuple" else (observation, self.info())

    def seed(self, seed: Any) -> None:
        if self.fault == "seed forgotten" and self.rngs:
            return
        seed = 7 if self.fault == "seed ignored" else seed
        spread = 0 if self.fault == "shared randomness" else 1
        self.rngs = [np.random.default_rng([seed or 0, spread * i]) for i in range(self.num_envs)]

    def info(self) -> dict[str, Any]:
        everywhere = np.ones(self.num_envs, bool)
        info = {"action_mask": np.ones((self.num_envs, 3), bool), "_action_mask": everywhere}
        if self.fault == "no choice":
            info["action_mask"][1] = False
        if self.fault == "mask shape":
            info["action_mask"] = np.ones((self.num_envs, 2), bool)
        if self.fault == "no mask":
            del info["_action_mask"]
        if self.fault == "mask of numbers":
            info["_action_mask"] = everywhere.astype(float)
        if self.fault == "lonely mask":
            info["_speed"] = everywhere
        if self.fault == "info rows":
            info |= {"speed": np.ones(self.num_envs + 1), "_speed": everywhere}
        if self.fault == "info value":
            info |= {"speed": [1.0] * self.num_envs, "_speed": everywhere}
        return info

    def step(self, actions: Any) -> Any:
        actions = np.asarray(actions)
        if self.fault != "any shape" and actions.shape != (self.num_envs,):
            raise ValueError("wrong shape")
        resetting = self.ended.copy() if self.mode is NEXT else np.zeros(self.num_envs, bool)
        self.steps += 1
        noise = np.array([rng.uniform(-0.2, 0.2) for rng in self.rngs])
        self.state[:, 0] += noise + 0.3 * (actions - 1)
        self.state[:, 1] = self.steps / 100
        if self.fault != "never resets":
            self.start(resetting)
        if self.fault == "reset depends on action":
            self.state[resetting, 1] += actions[resetting] / 10
        done = (np.abs(self.state[:, 0]) >= 1) & ~resetting
        self.state = self.state.clip(-1.5, 1.5)
        reward = np.where(
            resetting & (self.fault != "reward at reset"), 0.0, self.state[:, 0] + 0.01
        )
        info, final = self.info(), self.state.astype(np.float32)
        if self.mode is SAME and done.any():
            if self.fault not in ("never resets", "final is new"):
                self.start(done)
            info |= self.final(final, done)
            if self.fault == "final is new":
                self.start(done)
                info |= {"final_obs": self.state.astype(np.float32)}
        if self.fault == "final in another mode" and done.any():
            info |= {"final_obs": final, "_final_obs": done}
        self.ended = done
        return self.spoiled(self.state.astype(np.float32), reward, done, info)

    def final(self, final: np.ndarray, done: np.ndarray) -> dict[str, Any]:
        where = ~done if self.fault == "final elsewhere" else done
        if self.fault == "final outside":
            final = final + 9
        info = {"final_obs": final, "_final_obs": where}
        if self.fault == "no final_obs":
            info = {}
        if self.fault != "no final_info":
            info |= {"final_info": self.info(), "_final_info": done}
        return info

    def spoiled(self, observation: Any, reward: Any, done: Any, info: Any) -> Any:
        truncated = np.zeros(self.num_envs, bool)
        if self.fault == "step shape":
            observation = observation.T
        if self.fault == "step outside":
            observation[0, 0] = -3
        if self.fault == "reward of whole numbers":
            reward = reward.astype(int)
        if self.fault == "reward shape":
            reward = reward[:, None]
        if self.fault == "reward nan":
            reward = reward * np.nan
        if self.fault == "reward list":
            reward = list(reward)
        if self.fault == "flags of numbers":
            done = done.astype(int)
        if self.fault == "one flag":
            truncated = False
        if self.fault == "info list":
            info = [info]
        if self.fault == "step tuple":
            return observation, reward, done, info
        return observation, reward, done, truncated, info

    def action_masks(self) -> np.ndarray:
        rows = 2 if self.fault == "action_masks()" else self.num_envs
        return np.ones((rows, 3), bool)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_good_environment_passes(mode: AutoresetMode, num_envs: int) -> None:
    check_vector_env(Walk(mode, num_envs=num_envs))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(5))
def test_cartpole_passes(seed: int) -> None:
    make: dict[str, Any] = {"id": "CartPole-v1", "num_envs": 3}
    check_vector_env(gym.make_vec(vectorization_mode="vector_entry_point", **make), seed=seed)
    for mode in AutoresetMode:
        envs = gym.make_vec(
            vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, **make
        )
        check_vector_env(envs, seed=seed)


TAXI = "Taxi-v4" if "Taxi-v4" in gym.registry else "Taxi-v3"  # of Gymnasium before 1.3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("name", ["Blackjack-v1", "FrozenLake-v1", "Pendulum-v1", TAXI])
def test_other_kinds_of_spaces_pass(name: str, mode: AutoresetMode) -> None:
    # Tuple and Discrete observations, Box actions, action masks; Taxi's are of its own reset.
    check_vector_env(
        gym.make_vec(name, 2, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})
    )


@pytest.mark.filterwarnings("error")
def test_a_deterministic_environment_passes() -> None:
    check_vector_env(
        gym.make_vec("CliffWalking-v1", 2, vectorization_mode="sync", max_episode_steps=20)
    )


@pytest.mark.parametrize(
    ("fault", "mode", "message"),
    [
        ("observation space", SAME, "(?s)observation_space is .*batch_space"),
        ("action space", SAME, "(?s)action_space is .*batch_space"),
        ("no single space", SAME, "single_action_space is missing"),
        ("num_envs", SAME, "num_envs is 0"),
        ("", None, "autoreset_mode.* is None"),
        ("", "SameStep", "autoreset_mode.* is 'SameStep'"),
        ("reset tuple", SAME, "reset returned ndarray"),
        ("reset shape", SAME, r"reset is an array of shape \(2,\).* shape \(3, 2\)"),
        ("reset dtype", SAME, "reset is an array .* float64; .* float32"),
        ("reset outside", SAME, r"entry \(1, 1\) of the observation of reset is outside"),
        ("step tuple", SAME, "step returned tuple"),
        ("step shape", SAME, r"step is an array of shape \(2, 3\)"),
        ("step outside", SAME, r"entry \(0, 0\) of the observation of step is outside"),
        ("reward of whole numbers", SAME, "reward is an array .* int64; .* float"),
        ("reward shape", SAME, r"reward is an array of shape \(3, 1\)"),
        ("reward list", SAME, "reward is of type list"),
        ("reward nan", SAME, "reward is not finite"),
        ("flags of numbers", SAME, "terminated is an array .* bool"),
        ("one flag", SAME, "truncated is of type bool"),
        ("info list", SAME, "info is of type list"),
        ("no mask", SAME, "'action_mask' without its mask '_action_mask'"),
        ("mask of numbers", SAME, r"info\['_action_mask'\] is an array .* float64"),
        ("lonely mask", SAME, "'_speed' without 'speed'"),
        ("info rows", SAME, r"info\['speed'\] is an array of shape \(4,\)"),
        ("info value", SAME, r"info\['speed'\] is of type list"),
        ("no final_obs", SAME, r"'final_obs' for the environments \[\] where"),
        ("no final_info", SAME, r"'final_info' for the environments \[\] where"),
        ("final elsewhere", SAME, "'final_obs' for the environments"),
        ("final outside", SAME, "final_obs of environment . is not in"),
        ("final is new", SAME, "not that of a reset"),
        ("never resets", SAME, "not that of a reset"),
        ("constant start", SAME, "not that of a reset"),
        ("final in another mode", NEXT, "'final_obs' for the environments"),
        ("never resets", NEXT, "depends on its action"),
        ("constant start", NEXT, "not that of a reset"),
        ("reward at reset", NEXT, "gives a reward"),
        ("reset depends on action", NEXT, "depends on its action"),
        ("final in another mode", DISABLED, "'final_obs' for the environments"),
        ("resets too many", DISABLED, "changed environment"),
        ("resets none", DISABLED, "not that of a reset"),
        ("seed forgotten", SAME, "with the same actions differ"),
        ("seed ignored", SAME, "let reset use its seed"),
        ("shared randomness", SAME, "share their randomness"),
        ("any shape", SAME, "accepts actions for 1 where there are 3"),
        ("no choice", SAME, "leaves an environment no choice"),
        ("mask shape", SAME, r"shape \(3, 2\).* shape \(3, 3\)"),
        ("action_masks()", SAME, r"action_masks\(\) is an array of shape \(2, 3\)"),
    ],
)
def test_every_broken_rule_is_named(fault: str, mode: Any, message: str) -> None:
    with pytest.raises(LLMGymError, match=message):
        check_vector_env(Walk(mode, fault))


def test_too_short_a_run_is_said_to_be_too_short() -> None:
    with pytest.warns(UserWarning, match="No episode ended within 1 steps"):
        check_vector_env(Walk(), steps=1)


def test_only_vector_environments() -> None:
    with pytest.raises(LLMGymError, match="VectorEnv"):
        check_vector_env(gym.make("CartPole-v1"))  # type: ignore[arg-type]


def test_it_is_public() -> None:
    assert llmgym.check_vector_env is check_vector_env
