"""Loads that are drawn, starts from a backlog, windows of traces, and several scenarios."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from env_samples import MAX_STEPS, NUM_ENVS, SCENARIO, settings, single_env

import llmgym
from llmgym import LLMGymError
from llmgym.engine import simulator
from llmgym.envs.task import Task
from llmgym.theory.capacity import at_load, capacity

pytestmark = pytest.mark.filterwarnings(
    "ignore::llmgym.core.errors.TableFullWarning"
)  # small tables

TRACE = llmgym.Replay(
    arrival_s=np.arange(200) * 0.1,
    prefill_tokens=np.arange(1, 201),
    decode_tokens=np.full(200, 3),
    name="trace",
)
REPLAY = llmgym.Scenario.single_engine(
    batch_time=SCENARIO.engine.batch_time, token_budget=256, workload=TRACE, slots=32
)
OTHER = SCENARIO.override(name="other", decode_tokens=llmgym.Geometric(10))


def many(**changes: Any) -> Any:
    return gym.make_vec("llmgym/Engine-v0", num_envs=NUM_ENVS, **settings("tiles") | changes)


def played(envs: Any, steps: int, action: int = 3) -> list[tuple[Any, ...]]:
    return [envs.step(np.full(NUM_ENVS, action)) for _ in range(steps)]


def test_every_episode_of_every_environment_draws_its_load() -> None:
    envs = many(load=(0.5, 1.1))
    envs.reset(seed=0)
    loads = np.array([step[4]["load"] for step in played(envs, 5 * MAX_STEPS)])
    episodes = loads.reshape(5, MAX_STEPS, NUM_ENVS)
    # The step that ends an episode is one of the old one, as final_info says.
    assert (episodes == episodes[:, :1]).all()
    assert np.unique(episodes[:, 0]).size == 5 * NUM_ENVS
    assert loads.min() >= 0.5 and loads.max() <= 1.1


def test_a_drawn_load_is_that_load() -> None:
    core = llmgym.functional("llmgym/Engine-v0", **settings("tiles") | {"load": (0.5, 1.1)})
    for seed in range(3):
        state = core.init(jax.random.key(seed, impl="threefry2x32"))
        own = simulator.lower(at_load(SCENARIO, float(state.episode.load)))
        drawn = state.episode.applied_to(core.params)
        mean = float(drawn.arrivals[0].mean_ticks)
        assert mean == pytest.approx(float(own.arrivals[0].mean_ticks), rel=1e-6)


@pytest.mark.parametrize(
    "arrivals",
    [
        llmgym.Poisson(10.0),
        llmgym.Deterministic(10.0),
        llmgym.GammaRenewal(10.0, 2.0),
        llmgym.MMPP(10.0, (1.0, 3.0), (2.0, 1.0)),
        llmgym.RateCurve(10.0, (1.0, 2.0, 3.0), 60.0),
        llmgym.RateCurve(10.0, (1.0, 2.0), 60.0, (1.0, 4.0), (5.0, 2.0)),
    ],
    ids=lambda a: a.kind,
)
def test_paces_are_rates(arrivals: Any) -> None:
    """At twice the pace a process is the one of twice the rate, for one environment and for several."""
    ticks_per_s, words = (
        1e5,
        jnp.arange(40, dtype=jnp.uint32).reshape(20, 2) * jnp.uint32(2**27 + 9),
    )
    base, double = (arrivals.at_rate(r).sampler(ticks_per_s) for r in (10.0, 20.0))

    def gaps(sampler: Any) -> np.ndarray:
        _, memory = sampler.first(words[0])
        found: np.ndarray = sampler.gaps(memory, jnp.zeros(2, jnp.int32), words)[0].to_numpy()
        return found

    paces = base.at_pace(jnp.array([1.0, 2.0], jnp.float32))
    one, two, both = gaps(base), gaps(double), gaps(paces)
    np.testing.assert_array_equal(both[:, 0], one[:, 0])
    np.testing.assert_allclose(both[:, 1], two[:, 1], atol=1)
    np.testing.assert_allclose(gaps(base.at_pace(jnp.float32(2.0))), two, atol=1)


def test_a_list_gives_each_environment_its_own_load() -> None:
    loads = [0.2, 0.4, 0.6, 0.8]
    envs = many(load=loads)
    envs.reset(seed=0)
    steps = played(envs, 2 * MAX_STEPS)
    for step in steps:
        np.testing.assert_allclose(step[4]["load"], loads, rtol=1e-6)
    # The last has the highest, at which the scenario is lowered: it is the plain environment, bit by bit.
    plain = many(load=0.8)
    plain.reset(seed=0)
    for one, two in zip(steps, played(plain, 2 * MAX_STEPS), strict=True):
        np.testing.assert_array_equal(one[0][3], two[0][3])
        assert one[1][3] == two[1][3]


def test_a_curriculum_compiles_nothing() -> None:
    envs, before = many(load=(0.5, 0.6)), None
    envs.reset(seed=0)
    played(envs, MAX_STEPS)
    for low, high in ((0.6, 0.9), (1.0, 1.5)):
        envs.unwrapped.load = (low, high)
        played(envs, MAX_STEPS)  # the old episodes end, and new ones begin in the last step
        sizes = Task.init._cache_size(), Task.step._cache_size()
        assert before in (None, sizes)
        before = sizes
        loads = envs.step(np.zeros(NUM_ENVS, int))[4]["load"]
        assert ((loads >= low) & (loads <= high)).all()
        played(envs, MAX_STEPS - 1)
    envs.reset(seed=0, options={"load": 0.3})
    assert envs.step(np.zeros(NUM_ENVS, int))[4]["load"] == pytest.approx(0.3)


def test_a_start_from_a_backlog() -> None:
    env = single_env("tiles")
    env.reset(seed=0, options={"start": "backlog", "backlog_tokens": 1600})
    assert int(env.state.engine.present) == 20  # of 60 + 20 tokens in the mean
    assert float(env.state.engine.backlog.to_float()) == pytest.approx(1600, rel=0.5)
    env.reset(seed=0, options={"start": "backlog"})
    assert int(env.state.engine.present) == SCENARIO.slots // 2
    env.reset(seed=0)
    assert int(env.state.engine.present) == 0  # options hold for one episode


def test_a_window_ends_an_episode() -> None:
    env = single_env("tiles")
    env.reset(seed=0, options={"window_s": 0.5})
    truncated, info = False, {}
    while not truncated:
        _, _, _, truncated, info = env.step(3)
    assert 0.5 <= info["time_s"] < 0.7  # it ends with the batch that runs


def first_prompts(envs: Any, **reset: Any) -> np.ndarray:
    """The prompt of the first request of each environment: its number in the trace, from 1."""
    envs.reset(**reset)
    group = envs.unwrapped._groups[0]._runner.state.engine
    return np.asarray(group.table.prompt.max(axis=0) - (group.table.prompt > 0).sum(axis=0) + 1)


def test_replays_begin_where_the_seed_says() -> None:
    envs = many(scenario=REPLAY, load=None)
    starts = np.concatenate([first_prompts(envs, seed=n) for n in range(4)])
    assert np.unique(starts).size > 10
    assert starts.min() >= 1 and starts.max() <= 101  # the first half of the trace
    np.testing.assert_array_equal(first_prompts(envs, seed=2), starts[8:12])
    early = first_prompts(envs, seed=1, options={"window_s": 17.0})
    assert early.max() <= 30  # 19.9 s in all
    fixed = first_prompts(envs, seed=1, options={"offset_s": 5.0})
    np.testing.assert_array_equal(fixed, 51)
    np.testing.assert_array_equal(first_prompts(envs, seed=1, options={"offset_s": 0}), 1)


def test_a_replay_from_its_beginning_is_the_trace() -> None:
    env = gym.make("llmgym/Engine-v0", **settings("tiles") | {
        "scenario": REPLAY, "load": None, "max_steps": 10_000, "offset_s": 0.0})  # fmt: skip
    _, info = env.reset(seed=0)
    over, tokens = False, 0
    while not over:
        most = int(np.flatnonzero(info["action_mask"])[-1])
        _, _, _, over, info = env.step(most)
        tokens += info["prefill_tokens"] + info["decode_tokens"]
    assert tokens == int(np.sum(TRACE.prefill_tokens)) + 600
    assert info["load"] == pytest.approx(capacity(REPLAY).load_factor)


def test_environments_of_several_scenarios() -> None:
    envs = many(scenario=[SCENARIO, OTHER])
    envs.reset(seed=[1, 2, 3, 4])
    mixed = played(envs, MAX_STEPS + 3)
    for scenario, members in ((SCENARIO, [0, 2]), (OTHER, [1, 3])):
        alone = gym.make_vec(
            "llmgym/Engine-v0", num_envs=2, **settings("tiles") | {"scenario": scenario}
        )
        alone.reset(seed=[m + 1 for m in members])
        for step in mixed:
            own = alone.step(np.full(2, 3))
            for part in (0, 1, 3):
                np.testing.assert_array_equal(step[part][members], own[part])
            np.testing.assert_array_equal(step[4]["time_s"][members], own[4]["time_s"])


def test_one_environment_draws_its_scenario() -> None:
    env = gym.make(
        "llmgym/Engine-v0",
        **settings("tiles") | {"scenario": [SCENARIO, OTHER], "load": (0.5, 0.9)},
    )
    names = []
    for seed in range(12):
        env.reset(seed=seed)
        names.append(env.unwrapped.core.scenario.name)  # type: ignore[attr-defined]
    assert set(names) == {SCENARIO.name, OTHER.name}
    env.reset(options={"scenario": OTHER, "load": 0.4})
    _, _, _, _, info = env.step(0)
    assert env.unwrapped.core.scenario.name == OTHER.name  # type: ignore[attr-defined]
    assert info["load"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lode": 0.5}, "Unknown option of reset: 'lode'. Did you mean 'load'"),
        ({"load": 0}, "greater than 0"),
        ({"load": (0.9, 0.5)}, "pair"),
        ({"load": (0.1, 0.5, 0.9)}, "pair"),
        ({"load": [0.5, 0.6]}, "2 entries for 1 environments"),
        ({"load": []}, "empty list"),
        ({"load": "high"}, "load must be a number"),
        ({"load": 1e5}, "at most 100"),
        ({"start": "full"}, "Unknown start 'full'"),
        ({"backlog_tokens": 50}, "start="),
        ({"start": "backlog", "backlog_tokens": -1}, "greater than 0"),
        ({"window_s": 0}, "greater than 0"),
        ({"offset_s": 1}, "for replays"),
        ({"scenario": "nothing"}, "Unknown scenario"),
        ({"scenario": "rybko-stolyar"}, "Network-v0"),
        ({"scenario": "azure-code"}, "same actions"),
        (3, "dictionary"),
    ],
    ids=str,
)
def test_bad_options_raise_and_change_nothing(options: Any, message: str) -> None:
    env = single_env("tiles")
    env.reset(seed=4)
    before = env.step(1)
    with pytest.raises(LLMGymError, match=message):
        env.reset(options=options)
    env.reset(seed=4)
    after = env.step(1)
    np.testing.assert_array_equal(before[0], after[0])


def test_offsets_past_the_trace_raise() -> None:
    with pytest.raises(LLMGymError, match="past the last request"):
        many(scenario=REPLAY, load=None, offset_s=100)


def test_environments_can_be_pickled() -> None:
    for env in (single_env("tiles"), many(load=(0.5, 1.1))):
        env.reset(seed=0)
        action = np.full(env.action_space.shape, 2)
        env.step(action)
        copy = pickle.loads(pickle.dumps(env))
        one, two = env.step(action), copy.step(action)
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])
