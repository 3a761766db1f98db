"""Runners: what their programs give is what the functions give, to the bit, in any blocks and threads."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmgym
from llmgym.core.errors import LLMGymError
from llmgym.envs.packing import Packing
from llmgym.envs.runner import Runner

SLOW = pytest.mark.slow
STEPS = 40


def keyed(seeds: jax.Array) -> jax.Array:
    def key(seed: jax.Array) -> jax.Array:
        return jax.random.key(seed, impl="threefry2x32")

    return jax.vmap(key)(seeds) if seeds.ndim else key(seeds)


def functions(core: Any) -> tuple[Any, Any]:
    def begin(params: Any, seeds: Any) -> tuple[Any, Any]:
        state = core.init(keyed(seeds), params)
        return state, (core.observe(state, params), core.action_mask(state, params))

    def step(params: Any, state: Any, action: Any) -> tuple[Any, Any]:
        state, out = core.step(state, action, params)
        return state, (out.observation, out.reward, out.truncated, out.info)

    return begin, step


def actions(core: Any, num_envs: int | None) -> list[np.ndarray]:
    core.action_space.seed(0)
    made = []
    for _ in range(STEPS):
        drawn = [core.action_space.sample() for _ in range(num_envs or 1)]
        joined = np.stack(drawn, axis=-1) if num_envs else np.asarray(drawn[0])
        made.append(joined.astype(np.float32 if joined.dtype.kind == "f" else np.int32))
    return made


def environments_first(tree: Any, batched: bool) -> Any:
    return jax.tree.map(lambda x: np.moveaxis(np.asarray(x), -1, 0) if batched else x, tree)


def assert_equal(found: Any, expected: Any) -> None:
    named = jax.tree_util.tree_leaves_with_path(expected)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, x), y in zip(named, jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(y, x, err_msg=jax.tree_util.keystr(path))


SETTINGS: list[dict[str, Any]] = [
    {},
    {"scenario": "paper-figure-1", "load": 1.2, "action": "scores"},
    {"scenario": "two-class", "action": "tokens", "reward": "tardiness"},
]


@pytest.mark.long_runs  # optimised programs are those that could differ
@pytest.mark.parametrize(
    ("num_envs", "block"),
    # Equal blocks need one program, and wide ones are compiled in another way than narrow ones.
    [(None, 1), (6, 3), *(pytest.param(*x, marks=SLOW) for x in ((1, 1), (7, 4), (40, 20)))],
)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_runner_steps_as_the_functions_do(
    settings: dict[str, Any], num_envs: int | None, block: int
) -> None:
    core = llmgym.functional("llmgym/Engine-v0", **settings)
    begin, step = functions(core)
    runner = Runner(begin, step, core.params, num_envs=num_envs, block=block, threads=2)
    seeds = np.arange(3, 3 + (num_envs or 1), dtype=np.uint32)
    seeds = seeds if num_envs else seeds[0]
    plain, batched = jax.jit(step), num_envs is not None
    state, expected = jax.jit(begin)(core.params, seeds)
    assert_equal(runner.begin(seeds), environments_first(expected, batched))
    for action in actions(core, num_envs):
        state, expected = plain(core.params, state, action)
        assert_equal(runner.step(action), environments_first(expected, batched))
    assert_equal(runner.state, jax.device_get(state))


@pytest.mark.slow
@pytest.mark.parametrize("num_envs", [None, 5])
def test_networks_say_what_the_functions_say(num_envs: int | None) -> None:
    core = llmgym.functional("llmgym/Network-v0")
    begin, step = functions(core)
    runner = Runner(begin, step, core.params, num_envs=num_envs, block=3, threads=2)
    seeds = np.arange(3, 3 + (num_envs or 1), dtype=np.uint32)
    seeds = seeds if num_envs else seeds[0]
    state, expected = jax.jit(begin)(core.params, seeds)
    assert_equal(runner.begin(seeds), environments_first(expected, num_envs is not None))
    plain = jax.jit(step)
    # Their tables may lie in other rows: neighbours move them.
    for action in actions(core, num_envs):
        state, expected = plain(core.params, state, action)
        assert_equal(runner.step(action), environments_first(expected, num_envs is not None))


def counting(calls: list[str]) -> tuple[Any, Any]:
    """Functions of an environment that counts, and note when they are traced."""

    def begin(params: Any, start: Any) -> tuple[Any, Any]:
        calls.append("begin")
        return {"count": start, "table": jnp.broadcast_to(start, (20, *start.shape))}, start

    def step(params: Any, state: Any, action: Any) -> tuple[Any, Any]:
        calls.append("step")
        count = state["count"] + action * params["by"]
        new = {"count": count, "table": state["table"] + count}
        row = jnp.stack([count, new["table"][0]])
        return new, {"row": row, "odd": count % 2 == 1, "half": count / 2}

    return begin, step


PARAMS = {"by": np.int32(2)}


@pytest.mark.parametrize("num_envs", [None, 5])
def test_outputs_are_the_callers_to_keep_and_to_change(num_envs: int | None) -> None:
    begin, step = counting([])
    runner = Runner(begin, step, PARAMS, num_envs=num_envs, block=2, threads=2)
    ones = np.ones(num_envs, np.int32) if num_envs else np.int32(1)
    runner.begin(ones)
    first = runner.step(ones)
    assert first["odd"].all() if num_envs else first["odd"] is True
    kept = first["row"].copy()
    first["row"][...] = 99
    second = runner.step(ones)
    assert (first["row"] == 99).all()
    np.testing.assert_array_equal(second["row"][..., 0], kept[..., 0] + 2)
    np.testing.assert_array_equal(second["row"][..., 1], kept[..., 1] + 5)


def test_runners_of_equal_settings_share_programs_whatever_their_params() -> None:
    calls: list[str] = []
    begin, step = counting(calls)
    for by in (1, 2, 3):
        runner = Runner(begin, step, {"by": np.int32(by)}, "counting", num_envs=6, block=3)
        runner.begin(np.zeros(6, np.int32))
        found = runner.step(np.ones(6, np.int32))
        np.testing.assert_array_equal(found["row"][:, 0], by)
        runner.params = {"by": np.int32(10)}
        found = runner.step(np.ones(6, np.int32))
        np.testing.assert_array_equal(found["row"][:, 0], by + 10)
    assert calls == ["begin", "step"]
    with pytest.raises(LLMGymError, match="keep their shapes"):
        runner.params = {"by": np.float32(1)}


def test_a_move_needs_states_and_one_that_fails_leaves_none() -> None:
    begin, step = counting([])
    runner = Runner(begin, step, PARAMS, num_envs=4, block=2, threads=2)
    with pytest.raises(LLMGymError, match="reset"):
        runner.step(np.ones(4, np.int32))
    runner.begin(np.ones(4, np.int32))
    runner.step(np.ones(4, np.int32))
    with pytest.raises(TypeError):  # other types than those it is compiled for
        runner.step(np.ones(4, np.float64))
    with pytest.raises(LLMGymError, match="reset"):
        runner.step(np.ones(4, np.int32))
    runner.begin(np.ones(4, np.int32))
    assert runner.started


def test_compiled_in_advance_nothing_is_traced_again() -> None:
    calls: list[str] = []
    begin, step = counting(calls)
    runner = Runner(begin, step, PARAMS)
    runner.compile((np.int32(0),), np.int32(0))
    before = list(calls)
    runner.begin(np.int32(5))
    assert runner.step(np.int32(1))["half"] == 3.5
    assert calls == before
    assert runner.state["table"].tolist() == [12] * 20


def test_64_bits_change_nothing() -> None:
    begin, step = counting([])
    with jax.enable_x64(True):
        runner = Runner(begin, step, PARAMS, num_envs=4, block=2, threads=2)
        runner.begin(np.ones(4, np.int32))
        found = runner.step(np.ones(4, np.int32))
    assert found["half"].dtype == np.float32 and found["row"].dtype == np.int32


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint16, np.int32, np.uint32, np.float16])
def test_words_keep_every_bit(dtype: Any) -> None:
    values = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    if np.dtype(dtype).kind in "iu":
        values[0] = [np.iinfo(dtype).min, np.iinfo(dtype).max, 7]
    packing = Packing({"a": values, "b": np.float32([-0.0, np.nan, np.inf])}, batched=True)
    tree = {"a": values, "b": np.float32([-0.0, np.nan, np.inf])}
    words, apart = jax.jit(packing.pack)(tree)
    back = jax.device_get(jax.jit(packing.unpack)(words, apart))
    read = packing.read(np.asarray(words))
    np.testing.assert_array_equal(back["a"], values)
    np.testing.assert_array_equal(read["a"], values.T)
    assert back["a"].dtype == read["a"].dtype == values.dtype
    assert read["b"].tobytes() == tree["b"].tobytes()
