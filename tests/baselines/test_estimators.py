"""Policies that estimate: SLAI's average of batch times and EB+'s sliding windows, followed by hand.

The truth comes from the engine: which batches ran, how long they took, which requests began and ended.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq
from views import KEY, Slot, decoding, paused, show, waiting

import llmgym
from llmgym import baselines
from llmgym.baselines.exclusive_batching_plus import ExclusiveBatchingPlus, _ended, _mixes
from llmgym.baselines.slai import FINE
from llmgym.baselines.windows import Window
from llmgym.engine import simulator
from llmgym.engine.epoch import Epoch
from llmgym.evaluation import rollout
from llmgym.scenario.batch_time import Affine, Roofline
from llmgym.scenario.kv_cache import KVCache
from llmgym.scenario.scenario import Scenario
from llmgym.theory.capacity import at_load

STEPS, SIZE = 500, 12
MEMORY = {"kv_cache": KVCache(60, 8), "first_token": "prefill"}
"""So little that requests are preempted."""


def scenario(**engine: Any) -> Scenario:
    """An engine whose batch times tell sizes and contexts apart, and dislikes mixed batches a little."""
    time = Roofline(6.0, 0.05, 10, kv_ms_per_kilotoken=10.0, mixed_ms_per_kilotoken=8.0)
    workload = llmgym.Workload(llmgym.Poisson(10), llmgym.Geometric(40), llmgym.Geometric(12))
    made = llmgym.Scenario.single_engine(
        time, 64, workload, max_num_seqs=8, seq_limit="resident", slots=64, **engine
    )
    return at_load(made, 0.75)


def test_slai_averages_the_times_of_its_batches() -> None:
    """Batches of b tokens take 10 + b ms; the average begins at the first and moves by a tenth."""
    policy, time = baselines.make("slai", average_weight=0.1), Affine(10.0, 1.0)
    average = policy.start(show([waiting(1)], batch_time=time))
    assert int(average) == 0
    for slots, expected in (
        ([waiting(30), waiting(20)], 60.0),  # 50 tokens
        ([paused(10, 30)], 56.0),  # 20 ms: 60 - 0.1 * 40
        ([Slot(left=0)], 56.0),  # nothing runs
        ([decoding(), decoding()], 51.6),  # 12 ms: 56 - 0.1 * 44
    ):
        _, average = policy(KEY, show(slots, batch_time=time), average)
        assert int(average) / FINE == pytest.approx(expected, abs=0.5 / FINE)
    # Served a tick ago and with LST = 104 - 2 * 51.6 after that, a decode is critical; one that was
    # served just now is not, and the prompt comes before it.
    chosen = {"average_weight": 0.1, "tbt_ms": 104.0, "offset": 2.0}
    for slots, taken in (
        ([decoding(unserved=0), waiting(50), decoding(unserved=1)], [0, 0, 1]),
        ([decoding(unserved=0), waiting(50), decoding(unserved=0)], [0, 1, 0]),
    ):
        view = show(slots, budget=1, batch_time=time)
        batch, _ = baselines.make("slai", **chosen)(KEY, view, average)
        assert np.asarray(batch.tokens).tolist() == taken


@pytest.mark.parametrize("engine", [{}, MEMORY], ids=["plain", "memory"])
def test_slais_average_is_that_of_the_batches_that_ran(engine: dict[str, Any]) -> None:
    policy = baselines.make("slai", average_weight=0.1, tbt_ms=60.0)
    physics, keys = simulator.lower(scenario(**engine)), rollout.keys(3, 2)

    @jax.jit
    def run(carry: rollout.Carry) -> Any:
        def keep(epoch: Epoch) -> Any:
            return epoch.info.batch_ticks, epoch.info.preempted, epoch.told

        return rollout.scan(physics, policy, carry, keys, STEPS, keep)[1]

    ticks, preempted, averages = jax.device_get(run(rollout.begin(physics, policy, keys)))
    average = np.zeros(2)
    for now, seen in zip(ticks.astype(float), averages, strict=True):
        average = np.where(
            now == 0, average, np.where(average == 0, now, average * 0.9 + now * 0.1)
        )
        np.testing.assert_allclose(seen / FINE, average, rtol=1e-4, atol=0.5 / FINE / 0.1)
    assert np.ptp(averages, axis=0).min() > 100 * FINE
    assert engine == {} or preempted.sum() > 0


def test_a_window_holds_the_last_pairs_and_knows_their_line() -> None:
    window, kept = Window.empty(4, (2,)), [deque(maxlen=4), deque(maxlen=4)]
    rng = np.random.default_rng(0)
    for _ in range(30):
        x, y = rng.integers(1, 50, 2), rng.uniform(1, 9, 2)
        here = rng.random(2) < 0.6
        window = window.push(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), here)
        for i in np.flatnonzero(here):
            kept[i].append((x[i], y[i]))
        alpha, beta, known = (np.asarray(v) for v in window.line())
        ratio = np.asarray(window.ratio(jnp.float32(-1)))
        for i, pairs in enumerate(kept):
            xs, ys = np.array(list(pairs), float).reshape(-1, 2).T
            assert known[i] == (len(set(xs)) > 1)
            assert ratio[i] == pytest.approx(ys.sum() / xs.sum() if pairs else -1, rel=1e-5)
            if known[i]:
                slope, start = np.polyfit(xs, ys, 1)
                assert (alpha[i], beta[i]) == pytest.approx((start, slope), rel=1e-3, abs=1e-4)
    assert min(map(len, kept)) == 4


@dataclass
class PlainEBPlus:
    """The estimates of EB+ in plain Python, from what an engine says of its batches."""

    engine: Roofline
    usual: tuple[float, float]  # mean prompt and output of the class
    slots: int
    windows: dict[str, deque] = field(
        default_factory=lambda: {
            k: deque(maxlen=SIZE) for k in ("prefill", "decode", "mixed", "begun", "ended")
        }
    )

    def mean(self, name: str, otherwise: float) -> float:
        """Tokens a request."""
        pairs = self.windows[name]
        return sum(y for _, y in pairs) / sum(x for x, _ in pairs) if pairs else otherwise

    def line(self, kind: str) -> tuple[float, float] | None:
        """alpha and beta; None where the window does not tell."""
        x, y = np.array(list(self.windows[kind]), float).reshape(-1, 2).T
        if len(set(x)) < 2:
            return None
        beta, alpha = np.polyfit(x, y, 1)
        return max(alpha, 1e-3), beta

    def mixes(self) -> bool:
        """The rule."""
        mu_l, mu_o = (
            max(self.mean("begun", self.usual[0]), 1),
            max(self.mean("ended", self.usual[1]), 1),
        )
        lines = [self.line(kind) for kind in ("prefill", "decode", "mixed")]
        alpha_p, alpha_d, alpha_m = (line[0] if line else self.engine.ms(1) for line in lines)
        if all(lines):
            beta_p, beta_d, beta_m = (line[1] for line in lines)
            extra = beta_m - (mu_l * beta_p + mu_o * beta_d) / (mu_l + mu_o)
        else:
            extra = self.engine.mixed_ms_per_kilotoken * mu_o * (mu_l + mu_o / 2) / 1000
            extra /= mu_l + mu_o
        target = alpha_p / alpha_d / mu_o
        theta = brentq(lambda t: t / (1 - t) + np.log(1 - t) - target, 1e-9, 1 - 1e-9)
        k, n = max(int(theta * self.slots), 1), self.slots
        zeta = -np.log(1 - k / n)
        gain = (alpha_p + alpha_d * zeta * mu_o) / k - alpha_m * (1 + mu_o) / n
        return bool(extra < gain / (mu_l + mu_o))

    def ran(self, step: dict[str, np.ndarray], tick_ms: float) -> None:
        """A batch that ran: its kind, size and time, and the requests that it began and ended."""
        ran, decodes = step["tokens"] > 0, step["decoding"]
        if not ran.any():
            return
        kind = "mixed" if (ran & decodes).any() else "prefill"
        kind = kind if (ran & ~decodes).any() else "decode"
        self.windows[kind].append((step["tokens"].sum(), step["batch_ticks"] * tick_ms))
        begun = ran & ~step["started"] & (step["generated"] == 0)
        for name, which, lengths in (
            ("begun", begun, step["prompt"]),
            ("ended", step["finished"], step["output"]),
        ):
            if which.any():
                self.windows[name].append((which.sum(), lengths[which].sum()))


@cache
def eb_plus_run(memory: bool) -> tuple[Scenario, dict[str, np.ndarray], Any]:
    """Steps of EB+ with windows, what it remembers at each, and whether it mixes; two environments."""
    made = scenario(**MEMORY if memory else {})
    policy = baselines.make("exclusive_batching_plus", window=SIZE)
    assert isinstance(policy, ExclusiveBatchingPlus)
    physics, keys = simulator.lower(made), rollout.keys(5, 2)

    @jax.jit
    def run(carry: rollout.Carry) -> Any:
        def body(carry: rollout.Carry, _: None) -> Any:
            before = carry.memory
            carry, epoch = rollout.step(physics, policy, carry, keys)
            view, info = epoch.view, epoch.info
            known = _ended(before, view)
            costs, slots = policy.estimates(view, known), policy._slots(view)
            k = policy.best_k(slots, costs.alpha_ratio, costs.output)
            step = {n: getattr(view, n) for n in ("decoding", "started", "generated", "prompt")}
            step |= {"tokens": info.batch.tokens, "finished": info.finished}
            step |= {"output": info.table.output, "batch_ticks": info.batch_ticks}
            step |= {"mixes": _mixes(slots, k, costs), "preempted": jnp.zeros(2)}
            if memory:
                step["preempted"] = info.preempted
            return carry, (step, known)

        return jax.lax.scan(body, carry, length=STEPS)[1]

    steps, known = jax.device_get(run(rollout.begin(physics, policy, keys)))
    return made, steps, known


@pytest.mark.parametrize("memory", [False, True], ids=["plain", "memory"])
def test_eb_plus_estimates_what_it_sees(memory: bool) -> None:
    made, steps, known = eb_plus_run(memory)
    engine = made.engine.batch_time
    assert isinstance(engine, Roofline)
    said: list[bool] = []
    for env in range(2):
        plain = PlainEBPlus(engine, (made.mean_prefill, made.mean_decode), 8)
        for n in range(STEPS):
            for name, pairs in plain.windows.items():
                window = getattr(known, name)
                count = min(int(window.pushed[n, env]), SIZE)
                assert count == len(pairs), (name, n)
                held = zip(window.x[n, :count, env], window.y[n, :count, env], strict=True)
                found = sorted((float(x), float(y)) for x, y in held)
                np.testing.assert_allclose(found, sorted(pairs) or found, rtol=1e-4)
            said.append(bool(steps["mixes"][n, env]))
            assert said[-1] == plain.mixes(), n
            plain.ran({k: v[n, ..., env] for k, v in steps.items()}, made.tick_ms)
        assert all(len(pairs) == SIZE for pairs in plain.windows.values())
    assert 0.05 < np.mean(said) < 0.95
    assert not memory or steps["preempted"].sum() > 0


def test_eb_plus_begins_as_without_windows() -> None:
    slots = [decoding(), decoding(), waiting(7), waiting(8)]
    rule = {"mean_prompt": 100.0, "mean_output": 64.0}
    for mixing in (-5.0, 5.0):
        view = show(slots, seats=8)
        plain = baselines.make("exclusive_batching_plus", mixing_ms_per_token=mixing, **rule)
        windowed = baselines.make(
            "exclusive_batching_plus", mixing_ms_per_token=mixing, window=4, **rule
        )
        batch, memory = windowed(KEY, view, windowed.start(view))
        np.testing.assert_array_equal(batch.tokens, plain(KEY, view).tokens)
        # What it remembers of that batch: two prompts begun, 15 tokens; three or two requests decide.
        assert np.asarray(memory.begun.y).tolist() == [15.0, 0, 0, 0]
        assert int(memory.deciders) == (4 if mixing < 0 else 2)
        kind = memory.mixed if mixing < 0 else memory.prefill
        assert (float(kind.x[0]), float(kind.y[0])) == (17.0 if mixing < 0 else 15.0, 10.0)
        # One of the decodes, which had 2 tokens then, is gone at the next decision.
        later = show([decoding(generated=2), decoding(generated=0), decoding(generated=0)], seats=8)
        _, after = windowed(KEY, later, memory)
        ended = [2.0, 0, 0, 0] if mixing < 0 else [0.0] * 4
        assert np.asarray(after.ended.y).tolist() == ended


@pytest.mark.parametrize(
    ("name", "chosen", "message"),
    [
        ("slai", {"average_weight": 0}, "greater than 0"),
        ("slai", {"average_weight": 1.5}, "at most 1"),
        ("exclusive_batching_plus", {"window": 1}, "at least 2"),
        ("exclusive_batching_plus", {"window": 2.5}, "whole number"),
    ],
)
def test_bad_settings_are_refused(name: str, chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(llmgym.LLMGymError, match=message):
        baselines.make(name, **chosen)
