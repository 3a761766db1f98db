"""VTC and its counters, against Algorithm 2 of arXiv:2401.00588 in plain Python."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import partial
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recording import environment, facts, requests, start
from reference import Engine, Plan, Request, Simulator
from workloads import reference_engine

import llmgym
from llmgym import Affine, JobType, LLMGymError, Poisson, Stage, Uniform, baselines
from llmgym.engine import service as counting
from llmgym.engine import simulator
from llmgym.engine.service import MOST_SERVICE
from llmgym.engine.state import Counters
from llmgym.evaluation.metrics.fairness import bound, service_gap
from llmgym.evaluation.rollout import keys
from llmgym.scenario.kv_cache import KVCache
from llmgym.scenario.scenario import Scenario

STEPS, ENVS = 400, 3
PROMPTS, OUTPUTS = 24, 8
NAMES = ("vtc", "sarathi")


def clients(rates: tuple[float, ...], seats: int = 4, budget: int = 24) -> Scenario:
    """Three clients whose requests are alike; some have no prompt, some no output."""
    stage = Stage(Uniform(0, PROMPTS), Uniform(0, OUTPUTS))
    jobs = tuple(JobType(Poisson(r), (stage,), f"client-{n}") for n, r in enumerate(rates))
    return Scenario.single_engine(
        Affine(5.0, 0.5),
        budget,
        jobs,
        max_num_seqs=seats,
        seq_limit="resident",
        slots=96,
        service_weights=(1, 2),
    )


@partial(jax.jit, static_argnames="steps")
def trace(physics: Any, state: Any, key: jax.Array, policy: jax.Array, steps: int) -> Any:
    """``steps`` steps under policy ``policy`` of NAMES, their facts, the service and the counters."""
    made = [partial(baselines.make(name), key) for name in NAMES]

    def body(state: Any, _: None) -> Any:
        seen = simulator.view(physics, state)
        after, info = simulator.step(physics, state, jax.lax.switch(policy, made, seen))
        more = {"counter": seen.classes.counter} | vars(info.service)
        return after, facts(state, seen, info) | more

    return jax.lax.scan(body, state, None, length=steps)


def lower(scenario: Scenario) -> simulator.Params:
    """The scenario as arrays of one size: one compilation serves all."""
    return replace(simulator.lower(scenario), fresh=32)


def run(scenario: Scenario, policy: str, seed: int) -> tuple[Any, dict[str, Any]]:
    """The last state and the facts of every step, on the host."""
    physics, key = lower(scenario), keys(seed, ENVS)
    number = jnp.int32(NAMES.index(policy))
    done = trace(physics, start(physics, key), key, number, STEPS)
    state, out = jax.device_get(done)
    return state, out


class PlainVTC:
    """Algorithm 2 with lists: what a policy would do that kept the counters itself."""

    def __init__(self, weights: tuple[int, int]) -> None:
        self.prompt, self.output = weights
        self.counter: dict[int, int] = defaultdict(int)
        self.stood: set[tuple[int, int]] = set()  # waiting requests that were passed over
        self.running: list[int] = []  # clients whose requests decode in the batch
        self.served_up: set[int] = set()  # clients of whom none was passed over
        self.last = 0
        self.seen: list[dict[int, int]] = []

    def __call__(
        self, engine: Engine, present: list[Request], now: int
    ) -> dict[tuple[int, int], int]:
        for client in self.running:
            self.counter[client] += self.output
        if self.served_up:
            self.last = max(self.served_up, key=lambda c: (self.counter[c], -c))
        self._lift([r for r in present if not r.started])
        self.seen.append(dict(self.counter))
        plan = Plan(engine, present, engine.token_budget)
        plan.add_decodes([r for r in present if r.started])
        plan.add_prefills([r for r in present if r.started])
        queue = [r for r in present if not r.started]
        before = {r.job_class for r in queue}
        while queue:
            request = min(queue, key=lambda r: self.counter[r.job_class])  # ties: first come
            plan.add(request, request.prefill_left or 1)
            if request.name not in plan.tokens:
                break
            queue.remove(request)
            self.counter[request.job_class] += self.prompt * request.prefill
        self.stood = {r.name for r in queue}
        self.served_up = before - {r.job_class for r in queue}
        self.running = [r.job_class for r in present if r.decodes and r.name in plan.tokens]
        return plan.tokens

    def _lift(self, queue: list[Request]) -> None:
        stayed = {r.job_class for r in queue if r.name in self.stood}
        level = min((self.counter[c] for c in stayed), default=self.counter[self.last])
        for client in {r.job_class for r in queue} - stayed:
            self.counter[client] = max(self.counter[client], level)


# Total capacity is about 60 requests/s: below it, about it, one floods, all overload.
RATES = ((12.0, 9.0, 6.0), (30.0, 20.0, 8.0), (90.0, 10.0, 2.0), (60.0, 40.0, 40.0))


@pytest.mark.parametrize("seed", range(len(RATES)))
def test_batches_and_counters_are_those_of_algorithm_2(seed: int) -> None:
    seats, budget = ((4, 24), (3, 11), (6, 40), (4, 24))[seed]
    scenario = clients(RATES[seed], seats, budget)
    state, out = run(scenario, "vtc", seed)
    assert not out["clipped"].any()
    arriving = requests(lower(scenario), keys(seed, ENVS), 1500)
    for env in range(ENVS):
        recorded, policy = environment(out, state, env), PlainVTC((1, 2))
        simulator = Simulator(reference_engine(scenario), policy, arriving[env])
        for _ in range(STEPS):
            assert simulator.step()
        assert simulator.batches == recorded.batches
        plain = np.array([[counter.get(c, 0) for c in range(3)] for counter in policy.seen])
        found = out["counter"][..., env]
        # Only differences among the backlogged mean anything.
        waits = out["waiting"][..., env]
        for a, b in combinations(range(3), 2):
            both = waits[:, a] & waits[:, b]
            np.testing.assert_array_equal(
                (found[:, a] - found[:, b])[both], (plain[:, a] - plain[:, b])[both]
            )
        assert (np.where(waits, found, 10**9).min(axis=1)[waits.any(axis=1)] == 0).all()


def brute_gap(charged: np.ndarray, waiting: np.ndarray, stayed: np.ndarray) -> int:
    """The largest difference over all windows, one by one."""
    most = 0
    for begin in range(len(charged)):
        lead = 0
        for step in range(begin, len(charged)):
            if not waiting[step].all():
                break
            most = max(most, abs(lead))
            if not stayed[step].all():
                break
            lead += int(charged[step, 0]) - int(charged[step, 1])
    return most


@pytest.fixture(scope="module")
def flooded() -> dict[str, np.ndarray]:
    """Largest gap of each environment where one client floods the engine."""
    found = {}
    for name in NAMES:
        _, out = run(clients(RATES[2]), name, 7)
        gaps = [
            service_gap(*(out[k][:, list(pair), env] for k in ("charged", "waiting", "stayed")))
            for pair in combinations(range(3), 2)
            for env in range(ENVS)
        ]
        found[name] = np.array(gaps)
        pair = [out[k][:, :2, 0] for k in ("charged", "waiting", "stayed")]
        assert service_gap(*pair) == brute_gap(*pair) > 0
    return found


def test_vtc_keeps_the_bound_that_fcfs_breaks(flooded: dict[str, np.ndarray]) -> None:
    limit = bound(clients(RATES[2]))
    assert limit == 2 * 2 * 4 * (PROMPTS + OUTPUTS)
    assert flooded["vtc"].max() <= limit
    assert flooded["sarathi"].max() > 3 * limit


def test_bound_of_memory_and_of_none() -> None:
    scenario = clients(RATES[0])
    memory = llmgym.scenario("multi-tenant")
    assert bound(memory) == 2 * 2 * 2587 * 16
    assert bound(memory.override(service_weights=(3, 0))) == 2 * 3 * 2587 * 16
    assert bound(scenario.override(max_num_seqs=None)) == np.inf
    assert bound(scenario.override(service_weights=(1, 0))) == 2 * PROMPTS


def test_turns_by_hand() -> None:
    rows = [  # client, prompt, started, ticks since arrival and since service; turn
        (0, 50, True, 90, 10, 30),  # it runs: no charge
        (0, 40, False, 80, 20, 30),  # preempted: charged before
        (1, 7, False, 70, 70, 45),
        (0, 10, False, 60, 60, 30),
        (0, 20, False, 50, 50, 30 + 3 * 10),
        (1, 9, False, 40, 40, 45 + 3 * 7),
        (0, 5, False, 30, 30, 30 + 3 * (10 + 20)),
    ]
    job_class, prompt, started, waited, unserved, expected = (
        jnp.array(column) for column in zip(*rows, strict=True)
    )
    classes = SimpleNamespace(
        counter=jnp.array([30, 45]), service_weights=jnp.array([3, 1]), count=2
    )
    view = SimpleNamespace(
        job_class=job_class,
        prompt=prompt,
        prefill=prompt,
        started=started,
        waited=waited,
        unserved=unserved,
        classes=classes,
    )
    assert baselines.VTC().turn(view).tolist() == expected.tolist()  # type: ignore[arg-type]


@pytest.mark.slow
def test_preemption_charges_nobody_twice() -> None:
    rng = np.random.default_rng(0)
    names = rng.choice(["flood", "calm"], 120, p=[0.8, 0.2])
    prefill, decode = rng.integers(1, 12, 120), rng.integers(1, 16, 120)
    replay = llmgym.Replay(np.zeros(120), prefill, decode, tenant=names)
    scenario = Scenario.single_engine(
        Affine(5.0, 0.5), 24, replay, kv_cache=KVCache(24, 4), service_weights=(1, 2)
    )
    done = llmgym.simulate(scenario, "vtc")
    assert done.requests.preemptions.sum() > 10
    for k, name in enumerate(scenario.class_names):
        mine = done.requests[done.requests.job_type == name]
        work = mine.prefill_tokens.sum() + 2 * mine.decode_tokens.sum()
        assert done.raw["charged"][:, k].sum() == work
    fairness = done.summary["fairness"]
    assert 0 < fairness["gap"] <= fairness["bound"] == 2 * 2 * 96


def counters(value: list[int], last: int = 0) -> Counters:
    nobody = jnp.zeros(len(value), bool)
    return Counters(jnp.array(value, jnp.int32), jnp.int32(last), nobody, nobody)


def advance(
    value: list[int], charged: list[int], stayed: list[bool], now: tuple[int, ...], **more: Any
) -> tuple[list[int], int]:
    """Counters after a batch: ``now`` wait, ``stayed`` of them did before."""
    waiting = more.pop("waiting", stayed)
    before = counters(value, **more)
    before = replace(before, waiting=jnp.array(waiting), stayed=jnp.array(stayed))
    number = jnp.arange(len(value))
    table: Any = SimpleNamespace(job_class=number)  # a request of each
    idle = jnp.any(number[:, None] == jnp.array(now, jnp.int32), axis=1)
    amount = jnp.array(charged, jnp.float32)
    after, _ = counting.advance(before, amount, table, idle, jnp.array(True))
    return after.value.tolist(), int(after.last)


def test_counters_by_hand() -> None:
    # Client 2 comes back: it is lifted to the smaller of those that stayed, which is the new zero.
    assert advance([0, 7, -50], [4, 0, 0], [True, True, False], (0, 1, 2)) == ([0, 3, 0], 0)
    # One with a larger counter keeps it.
    assert advance([0, 7, 20], [4, 0, 0], [True, True, False], (0, 1, 2)) == ([0, 3, 16], 0)
    # Nobody waited: the level is the counter of the client that waited last.
    none = [False, False, False]
    assert advance([0, 9, -4], [0, 5, 0], none, (0, 2), last=1) == ([0, 0, 0], 1)
    # It is that of the client whose last request goes now, of two the one with more.
    both = [True, True, False]
    assert advance([0, 1, -9], [5, 8, 0], none, (2,), waiting=both) == ([-4, 0, 0], 1)


def test_counters_stay_inside_32_bits() -> None:
    value, last = [0, 0, -5], 0
    for _ in range(20):  # the first floods, the second waits for ever, the third is never there
        value, last = advance(value, [MOST_SERVICE, 0, 0], [True, True, False], (0, 1), last=last)
        assert max(map(abs, value)) <= MOST_SERVICE
    assert value[:2] == [MOST_SERVICE, 0]


def test_service_of_a_batch_stays_inside_32_bits() -> None:
    prompt, none = jnp.full(64, 2**20, jnp.int32), jnp.zeros(64, jnp.int32)
    table: Any = SimpleNamespace(
        last_token=none, arrival=none, prompt=prompt, decode=none, job_class=none
    )
    seen: Any = SimpleNamespace(
        live=prompt > 0,
        started=prompt < 0,
        job_class=none,
        free=jnp.array(True),
        classes=SimpleNamespace(count=1),
    )
    looked = counting.look(counters([0]), seen, none + 1)
    amount = counting.amounts(jnp.array([1024, 1]), table, table, none + 1)
    _, service = counting.advance(looked, amount, table, jnp.array([False]), jnp.array(True))
    assert service.charged.tolist() == [MOST_SERVICE]
    assert (service.waiting.tolist(), service.stayed.tolist()) == ([True], [False])


@pytest.mark.parametrize("name", ["geometric", "fork-join"])
def test_vtc_needs_counters(name: str) -> None:
    def first_batch(key: jax.Array) -> Any:
        physics = simulator.lower(llmgym.scenario(name))
        return baselines.make("vtc")(key, simulator.view(physics, simulator.init(physics, key)))

    message = r"set service_weights=\(1, 2\) in the scenario"
    with pytest.raises(LLMGymError, match=message):
        jax.eval_shape(first_batch, jax.random.key(0))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1, 2, 3), "two numbers"),
        (1, "two numbers"),
        ((0, 0), "both be 0"),
        ((-1, 2), "w_p must be at least 0"),
        ((1, 0.5), "w_q must be a whole number"),
        ((1, 10**6), "w_q must be at most 1024"),
    ],
)
def test_bad_weights(weights: Any, message: str) -> None:
    with pytest.raises(LLMGymError, match=message):
        clients(RATES[0]).override(service_weights=weights)


def test_every_engine_of_a_network_has_counters() -> None:
    """At two replicas, each keeps the clients' service within the bound of VTC."""
    scenario = clients(RATES[0]).override(replicas=2, router="round_robin")
    run = llmgym.simulate(scenario, "vtc", load=1.2, duration_s=20, num_envs=2)
    found = run.summary["fairness"]
    assert sum(found["service_per_s"].values()) > 0
    assert 0 < found["gap"] <= found["bound"]
