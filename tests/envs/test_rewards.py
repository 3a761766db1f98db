"""Rewards against the totals of the engine, against ``simulate``, and by hand."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from env_samples import SCENARIO

import llmgym
from llmgym import JobType, LLMGymError, Poisson, Replay, Stage
from llmgym.core.wide import Wide
from llmgym.envs.functional import EnvState, FunctionalEngine
from llmgym.envs.rewards import ServiceLevels, Transition, _judge, _lateness, make_reward
from llmgym.evaluation.rollout import keys
from llmgym.scenario.scenario import Scenario

TTFT, TPOT = 80.0, 60.0  # ms; full batches take 85 ms, so a request can come and expire within one
OVERLOADED = SCENARIO.override(
    workload=(
        JobType(Poisson(34.0), (Stage(60, 20),), "chat", ttft_ms=TTFT, tpot_ms=TPOT, weight=2.0),
        JobType(Poisson(17.0), (Stage(50, 3),), "bulk", weight=0.5),
    )
)
WEIGHTS = {"chat": 2.0, "bulk": 0.5}
STEPS, SEED = 400, 3
NAMES = ("holding_cost", "weighted", "equal_weights", "backlog_cost", "throughput", "goodput")
NAMES += ("tardiness",)


def every_reward(scenario: Scenario) -> Any:
    """All rewards side by side: one compilation serves them."""
    made = [
        make_reward("holding_cost", scenario),
        make_reward("weighted_holding", scenario, prefill_weight=3.0, decode_weight=0.5),
        make_reward("weighted_holding", scenario, prefill_weight=1.0, decode_weight=1.0),
        make_reward("backlog_tokens", scenario),
        make_reward("throughput", scenario),
        make_reward("goodput", scenario),
        make_reward("tardiness", scenario),
    ]
    return lambda transition: jnp.stack([reward(transition) for reward in made])


@pytest.fixture(scope="module", autouse=True)
def several_rewards() -> Iterator[None]:
    """Environments take rewards side by side, (rewards, envs), where they want one number for each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmgym.envs.task.sound_reward", lambda reward, step: reward(step))
        yield


@pytest.fixture(scope="module")
def run() -> dict[str, np.ndarray]:
    """Full batches on two classes in overload: rewards and what they are made of, step by step.

    Of the first of two environments in a batch.
    """
    core = FunctionalEngine(OVERLOADED, reward=every_reward(OVERLOADED), max_steps=10**6)

    @jax.jit
    def roll(key: jax.Array) -> Any:
        def body(state: EnvState, _: None) -> Any:
            after, result = core.step(state, jnp.full(2, 3))
            engine = state.engine
            kept = {
                "in_prefill": (engine.table.prefill > 0).sum(axis=0),
                "present": engine.present,
                "backlog": engine.backlog.to_float(),
                "ticks": after.engine.clock.low,
                "request_ticks": after.engine.totals.request_ticks,
            }
            if engine.totals.dropped_of_class is not None:
                kept["dropped_of_class"] = after.engine.totals.dropped_of_class
            return after, (dict(zip(NAMES, result.reward, strict=True)) | kept, result.info)

        return jax.lax.scan(body, core.init(key), None, length=STEPS)[1]

    facts, info = jax.device_get(roll(keys(SEED, 2)))
    found = facts | info | {"request_ticks": facts["request_ticks"].to_numpy()}
    return {name: values[..., 0] for name, values in found.items()}


@pytest.fixture(scope="module")
def simulated(run: dict[str, np.ndarray]) -> llmgym.Run:
    """The same arrivals and batches through ``simulate``, up to the same decision."""
    end_s = run["ticks"][-1] * 1e-5
    return llmgym.simulate(OVERLOADED, "always_full", duration_s=end_s, seed=SEED)


def test_holding_cost_adds_up_to_the_integral_of_the_number_present(
    run: dict[str, np.ndarray],
) -> None:
    assert (run["arrived"][1:] > 0).mean() > 0.5  # requests that come within a step matter
    expected = -run["request_ticks"] * 1e-5
    np.testing.assert_allclose(np.cumsum(run["holding_cost"].astype(float)), expected, rtol=1e-5)


def test_holding_cost_is_the_mean_in_system_of_simulate(
    run: dict[str, np.ndarray], simulated: llmgym.Run
) -> None:
    summary = simulated.summary
    assert summary["elapsed_s"] == pytest.approx(run["ticks"][-1] * 1e-5, abs=1e-9)
    mean = -run["holding_cost"].astype(float).sum() / summary["elapsed_s"]
    assert mean == pytest.approx(summary["mean_in_system"], rel=1e-5)


def test_weighted_holding(run: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(run["equal_weights"], run["holding_cost"], rtol=1e-5)
    duration = run["duration_ms"].astype(float) / 1000
    decoding = (run["present"] - run["in_prefill"]) * duration
    # Those that come within the step are in prefill: all that is not decoding.
    expected = -(3.0 * (-run["holding_cost"] - decoding) + 0.5 * decoding)
    np.testing.assert_allclose(run["weighted"], expected, rtol=1e-4)


@pytest.mark.parametrize("envs", [(), (1,)])
def test_weighted_holding_of_a_network(envs: tuple[int, ...]) -> None:
    """Two engines and a delay, whose rows hold no call."""
    prefill = jnp.array([[3, 0, 0], [0, 2, 0]]).reshape(2, 3, *envs)
    decode = jnp.array([[5, 4, 7], [0, 1, 9]]).reshape(2, 3, *envs)
    before = SimpleNamespace(
        table=SimpleNamespace(prefill=prefill, decode=decode),
        busy=jnp.zeros((2, *envs)),
        present=jnp.full(envs, 5),
    )
    # Of 5 jobs present for 100 ticks, and one that came 30 ticks before the end.
    info = SimpleNamespace(duration=jnp.full(envs, 100), request_ticks=jnp.full(envs, 530.0))
    reward = make_reward("weighted_holding", SCENARIO, prefill_weight=3.0, decode_weight=0.5)
    found = reward(Transition(before, info, None, jnp.float32(10.0)))
    assert found.shape == envs
    assert float(found.sum()) == pytest.approx(-(3 * (2 * 100 + 30) + 0.5 * 1 * 100) * 10 / 1000)


def test_backlog_and_throughput(run: dict[str, np.ndarray]) -> None:
    expected = -run["backlog"] * run["duration_ms"].astype(float) / 1e6
    np.testing.assert_allclose(run["backlog_cost"], expected, rtol=1e-5)
    tokens = run["prefill_tokens"] + run["decode_tokens"]
    np.testing.assert_allclose(run["throughput"], tokens / 1000, rtol=1e-6)


def judged(requests: pd.DataFrame, now_ms: float) -> np.ndarray:
    """+1, -1 or 0 for each request, times its weight, as goodput counts until ``now_ms``."""
    arrival, output = requests.arrival_ms, requests.decode_tokens
    first = requests.first_token_ms.where(requests.first_token_ms <= now_ms + 1e-6)
    finish = requests.finish_ms.where(requests.finish_ms <= now_ms + 1e-6)
    targets = (requests.job_type == "chat").map({True: 0.0, False: np.inf})
    ttft, tpot = targets + TTFT, targets + TPOT
    half_tick = 0.005
    late = first.fillna(now_ms) - arrival > ttft + half_tick
    slow = ~late & first.notna() & (finish.fillna(now_ms) - first > tpot * (output - 1) + half_tick)
    good = ~late & ~slow & finish.notna()
    seen = arrival <= now_ms + 1e-6
    verdict = np.where(seen, good.astype(int) - (late | slow).astype(int), 0)
    return verdict * requests.job_type.map(WEIGHTS).to_numpy()


def test_goodput_counts_every_request_once_when_its_deadline_passes(
    run: dict[str, np.ndarray], simulated: llmgym.Run
) -> None:
    requests, dropped = simulated.requests, np.cumsum(run["dropped"])
    assert dropped[-1] == simulated.summary["dropped"] > 0
    np.testing.assert_array_equal(run["dropped_of_class"].sum(axis=1), dropped)
    assert run["dropped_of_class"][-1].min() > 0
    ends = run["ticks"] * 0.01
    lost = run["dropped_of_class"] @ list(WEIGHTS.values())
    expected = np.array([judged(requests, end).sum() for end in ends]) - lost
    np.testing.assert_array_equal(np.cumsum(run["goodput"]), expected)
    verdicts = pd.Series(judged(requests, ends[-1])).groupby(requests.job_type)
    assert set(verdicts.get_group("bulk")) <= {0, 0.5}  # no targets, no misses
    assert {-2, 2} <= set(verdicts.get_group("chat"))
    # Some came and expired within one step.
    starts = np.concatenate([[0.0], ends[:-1]])
    chat = requests[requests.job_type == "chat"]
    step = np.searchsorted(ends, chat.arrival_ms, side="left").clip(max=STEPS - 1)
    assert ((ends[step] - chat.arrival_ms > TTFT) & (chat.arrival_ms > starts[step])).any()


def late_s(requests: pd.DataFrame, ends: np.ndarray, now_ms: float) -> float:
    """Seconds for which chats had a token overdue until ``now_ms``, from the time of every token.

    Full batches leave no decode out: the tokens of a request come at the ends of successive batches.
    """
    total = 0.0
    for row in requests[requests.job_type == "chat"].itertuples():
        if row.arrival_ms >= now_ms:
            continue
        at = np.searchsorted(ends, row.first_token_ms - 1e-6)  # NaN: beyond them all
        tokens = ends[at : at + row.decode_tokens]
        if not np.isnan(row.finish_ms):
            assert tokens[-1] == pytest.approx(row.finish_ms)
        begins = [row.arrival_ms, *tokens]
        stops = [*tokens, np.inf][: row.decode_tokens]
        for number, stop in enumerate(stops):
            due = row.arrival_ms + TTFT + number * TPOT
            total += max(0.0, min(stop, now_ms) - max(due, begins[number]))
    return total / 1000


def test_tardiness_is_the_time_for_which_tokens_are_overdue(
    run: dict[str, np.ndarray], simulated: llmgym.Run
) -> None:
    batches = simulated.batches
    ends = (batches.start_ms + batches.duration_ms).to_numpy()
    total = np.cumsum(run["tardiness"].astype(float))
    for step in range(0, STEPS, 40):
        expected = late_s(simulated.requests, ends, run["ticks"][step] * 0.01)
        assert total[step] == pytest.approx(-WEIGHTS["chat"] * expected, rel=1e-5, abs=1e-6)
    assert -total[-1] > 10
    assert (run["tardiness"] == 0).any()


def test_schedules_of_classes_with_one_target() -> None:
    rows = [  # class, output, decode left, ticks of arrival and first token; lateness at tick 1000
        (0, 5, 5, 700, 0, 0),  # due at 700 + 300
        (0, 5, 5, 600, 0, 100),
        (0, 5, 2, 100, 350, 0),  # no TPOT target: no deadline after the first token
        (1, 5, 5, 0, 0, 0),  # no TTFT target
        (1, 5, 4, 0, 900, 0),  # the second is due 100 after the first
        (1, 5, 4, 0, 850, 50),
        (1, 5, 2, 0, 600, 100),  # the fourth 300 after it
        (2, 5, 5, 0, 0, 0),
        (3, 5, 3, 200, 450, 300),  # both: due at 200 + 300 + 2 * 100
        (3, 0, 0, 600, 0, 100),  # an answer without output
    ]
    levels = ServiceLevels(
        (300.0, np.inf, np.inf, 300.0), (np.inf, 100.0, np.inf, 100.0), (1.0,) * 4
    )
    names = ("job_class", "output", "decode", "arrival", "first_token")
    kinds = (jnp.int32, jnp.int32, jnp.int32, jnp.uint32, jnp.uint32)
    *columns, expected = zip(*rows, strict=True)
    made = {n: jnp.array(c, k) for n, c, k in zip(names, columns, kinds, strict=True)}
    high = jnp.zeros(len(rows), jnp.uint16)
    table: Any = SimpleNamespace(**made, arrival_high=high, first_high=high)
    late = _lateness(table, jnp.ones(len(rows), bool), levels, Wide.of(1000))
    assert late.tolist() == list(expected)


@pytest.mark.parametrize("reward", ["goodput", "tardiness"])
def test_rewards_that_need_targets(reward: str) -> None:
    with pytest.raises(LLMGymError, match=f"'{reward}' needs targets"):
        make_reward(reward, SCENARIO.override(ttft_ms=None, tpot_ms=None))
    with pytest.raises(LLMGymError, match=f"'{reward}' judges single calls"):
        make_reward(reward, llmgym.scenario("rag"))
    with pytest.raises(LLMGymError, match=f"'{reward}' has no settings"):
        make_reward(reward, SCENARIO, weight=1)


def test_by_hand() -> None:
    # Batches of up to 64 tokens take 25 ms, of 256 tokens 85 ms.
    replay = Replay(
        arrival_s=[0.0, 0.060, 0.150, 0.154, 0.160],
        prefill_tokens=[50, 20, 256, 10, 10],
        decode_tokens=[2, 3, 1, 1, 1],
        ttft_ms=80.0,
        tpot_ms=30.0,
    )
    goodput = {  # reward of the batch that ends at so many milliseconds
        25: 0,  # prompt of request 0
        50: 0,  # its first token, 50 after arrival
        75: 1,  # its second and last
        100: 0,  # prompt of request 1
        125: 0,  # its first token, 65 after arrival
        150: 0,  # its second
        235: -3,  # its last, due at 185; request 2 due at 230, 3 came at 154 and was due at 234
        260: -1,  # request 4 was due at 240
        285: 0,  # the three complete, counted already
    }
    late_ms = {  # request 1 has its third token, due at 200, at 235; first tokens are due at 230, 234, 240
        235: 35 + 5 + 1,
        260: 25 + 25 + 20,
        285: 75,
    }
    scenario = SCENARIO.override(workload=replay)
    core = FunctionalEngine(scenario, reward=every_reward(scenario))
    step, state = jax.jit(core.step), jax.jit(core.init)(jax.random.key(0))
    holding = 0.0
    for end_ms, expected in goodput.items():
        state, result = step(state, 3)
        reward = dict(zip(NAMES, np.asarray(result.reward).tolist(), strict=True))
        assert float(result.info["time_s"]) == pytest.approx(end_ms / 1000)
        assert (end_ms, reward["goodput"]) == (end_ms, expected)
        assert reward["tardiness"] == pytest.approx(-late_ms.get(end_ms, 0) / 1000, abs=1e-6)
        assert bool(result.truncated) == (end_ms == 285)
        holding += reward["holding_cost"]
    # All the times in system: Little's law on a run that ends empty.
    assert -holding == pytest.approx((75 + 175 + 135 + 131 + 125) / 1000, rel=1e-6)


def test_any_function_is_a_reward() -> None:
    def completions(step: Transition) -> jax.Array:
        return step.info.completed

    assert make_reward(completions, SCENARIO) is completions
    with pytest.raises(LLMGymError, match="partial"):
        make_reward(completions, SCENARIO, weight=1)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), "much"])
def test_bad_weights_raise(weight: Any) -> None:
    with pytest.raises(LLMGymError, match="prefill_weight"):
        make_reward("weighted_holding", SCENARIO, prefill_weight=weight)


@pytest.mark.parametrize(
    ("first_token", "end", "expected"),
    [
        (
            100,
            300,
            1.0,
        ),  # the last of three tokens on its deadline, 100 ticks for each after the first
        (100, 301, -1.0),
        (200, 400, 1.0),  # the first on its deadline too
        (201, 401, 0.0),  # the first a tick late: missed in a step before this one
        (250, 250, -1.0),  # due on the tick on which this step of 50 began: missed in it
        (200, 450, -1.0),  # the last too
    ],
)
def test_a_deadline_is_met_on_its_tick(first_token: int, end: int, expected: float) -> None:
    table: Any = SimpleNamespace(
        job_class=jnp.zeros(1, jnp.int32), live=jnp.zeros(1, bool),
        output=jnp.array([3]), decode=jnp.array([0]),
        arrival=jnp.zeros(1, jnp.uint32), arrival_high=jnp.zeros(1, jnp.uint16),
        first_token=jnp.array([first_token], jnp.uint32), first_high=jnp.zeros(1, jnp.uint16),
    )  # fmt: skip
    step: Any = SimpleNamespace(info=SimpleNamespace(duration=jnp.int32(50)))
    levels = ServiceLevels((200.0,), (100.0,), (1.0,))
    value = _judge(table, jnp.ones(1, bool), step, levels, Wide.of(end))
    assert float(value) == expected
