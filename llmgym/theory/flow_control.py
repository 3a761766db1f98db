"""Flow control: when requests that are activated at a fixed rate fit into memory, and no queue grows.

Time goes in slots, one decode step each. A request with l tokens in memory and o to make holds l + j in
its j-th slot, w = l*o + o*(o + 1)/2 token-slots in all. Of each class k, lambda_k requests arrive in a
slot and at most b_k are activated (Dong and Cao, arXiv:2604.11001). In llmgym a prompt of l + 1 tokens
whose end yields the first output token (``first_token="prefill"``) gives exactly these requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import lambertw

from llmgym.core.checks import check_size
from llmgym.core.errors import LLMGymError, check_number
from llmgym.scenario.batch_time import NO_ATTENTION, Attention
from llmgym.scenario.engine import Engine
from llmgym.scenario.lengths import Fixed
from llmgym.scenario.library import as_scenario
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.workload import JobType
from llmgym.theory.capacity import batch_ms

MOST_ACTIVATIONS = 100_000
"""Most activations of a slot; the mean of the queue has as many terms."""


@dataclass(frozen=True)
class FlowControl:
    """What flow control can promise for a scenario. Tuples have an entry for each class.

    Attributes:
        verdict: ``"stable"``: with these activations memory never overflows and no queue grows,
            sum b_k*w_k < M and b_k > lambda_k; ``"unstable"``: under any policy, since sum
            lambda_k*w_k > M; else ``"undecided"``.
        activations: b_k, requests a slot.
        arrivals: lambda_k, requests a slot.
        token_slots: w_k, what a request holds, tokens times slots.
        peak_tokens: sum b_k*w_k, the most that is ever held, were memory unlimited.
        mean_tokens: sum lambda_k*w_k, what a stable system holds on average at least.
        memory_tokens: M.
    """

    verdict: str
    activations: tuple[int, ...]
    arrivals: tuple[float, ...]
    token_slots: tuple[int, ...]
    peak_tokens: int
    mean_tokens: float
    memory_tokens: int

    @property
    def memory_margin(self) -> int:
        """M - sum b_k*w_k in tokens; positive where memory never overflows."""
        return self.memory_tokens - self.peak_tokens

    @property
    def arrival_margins(self) -> tuple[float, ...]:
        """b_k - lambda_k, requests a slot; positive where the queue of the class does not grow."""
        pairs = zip(self.activations, self.arrivals, strict=True)
        return tuple(b - rate for b, rate in pairs)


def flow_control(scenario: Scenario, activations: int | Sequence[int] | None = None) -> FlowControl:
    """The conditions of flow control for an engine with KV memory whose batches all take one slot.

    Memory is counted in whole blocks, as the engine does; w_k is then that of the blocks.

    Args:
        scenario: one engine with KV memory and an endless workload of fixed lengths.
        activations: b_k, one whole number for each class or one for all. None: the smallest above
            lambda_k, which keep memory as low as whole numbers can.

    Raises LLMGymError for a network, a replay, lengths that are not fixed, an engine without KV memory
    or whose batch time is not one slot whatever the batch; where the token budget or the limit on
    requests could stop an active request; and, if no ``activations`` are given, where memory may suffice
    for the arrivals but not for whole numbers above them.
    """
    scenario = as_scenario(scenario)
    jobs, slot_ms = _classes(scenario), _slot_ms(scenario.engine)
    arrivals = tuple(job.rate_per_s * slot_ms / 1000 for job in jobs)
    held = [_held(job, scenario.engine) for job in jobs]
    token_slots = tuple(int(tokens.sum()) for tokens in held)
    assert scenario.engine.kv_cache is not None
    memory = scenario.engine.kv_cache.tokens
    mean = float(np.dot(arrivals, token_slots))
    chosen = _activations(activations, arrivals)
    peak = int(np.dot(chosen, token_slots))
    enough = all(b > rate for b, rate in zip(chosen, arrivals, strict=True))
    if mean > memory:
        verdict = "unstable"
    elif enough and peak < memory:
        _check_room(scenario, chosen, [len(tokens) for tokens in held])
        verdict = "stable"
    elif activations is None:
        raise LLMGymError(
            f"The smallest whole activations above the arrivals, {chosen}, hold up to {peak} tokens, "
            f"and memory has {memory}. Give activations, more memory, or shorter slots."
        )
    else:
        verdict = "undecided"
    return FlowControl(verdict, chosen, arrivals, token_slots, peak, mean, memory)


def mean_waiting(arrivals: float, activations: int) -> float:
    """Mean number waiting after the activations of a slot, Q' = max(Q + A - b, 0), A Poisson.

    Closed form with the roots of z^b = exp(lambda*(z - 1)) inside the unit circle, by Lambert's W; a
    queue with bulk service (N. T. J. Bailey, 1954).

    Args:
        arrivals: lambda, mean of A, requests a slot.
        activations: b, a whole number above lambda.

    Raises LLMGymError where b does not exceed lambda: there is no mean then.
    """
    load = float(check_number("arrivals", arrivals, above=0))
    b = check_number("activations", activations, low=1, high=MOST_ACTIVATIONS, integer=True)
    if b <= load:
        raise LLMGymError(f"The queue grows: {b} activations a slot for {load:g} arrivals.")
    unity = np.exp(2j * np.pi * np.arange(1, b) / b)
    branch = lambertw(-load / b * np.exp(-load / b) * unity)
    roots = unity * np.exp(-load / b - branch)  # as W(x) = x * exp(-W(x)), also where x is tiny
    waits = (1 / (1 - roots)).real.sum() - (b - 1) / 2
    return float(load / (2 * (b - load)) - load / 2 + waits)


def _classes(scenario: Scenario) -> tuple[JobType, ...]:
    """The classes, if theory has something to say about them."""
    if scenario.is_network or scenario.engine.kv_cache is None:
        raise LLMGymError("Flow control is about one engine with KV memory (kv_cache).")
    jobs = scenario.job_types
    if scenario.demand.end_s is not None:
        raise LLMGymError(
            "Flow control is about an endless stream of arrivals; a replay is finite."
        )
    for job in jobs:
        stage = job.stages[0]
        if not (isinstance(stage.prefill, Fixed) and isinstance(stage.decode, Fixed)):
            raise LLMGymError(
                f"Job type {job.name!r} has random lengths. Flow control knows lengths through the "
                "classes: give each class fixed ones."
            )
    return jobs


def _slot_ms(engine: Engine) -> float:
    """The time of every batch."""
    sizes = np.arange(1, engine.token_budget + 1)
    found = batch_ms(engine, sizes)
    loaded = engine.batch_time.ms(sizes, Attention(1e6, 1e6))
    if np.ptp(np.append(found, loaded)) > 0:
        raise LLMGymError(
            f"Batches take from {found.min():g} to {loaded.max():g} ms. Flow control needs one slot "
            "whatever the batch, such as Affine(20.0, 0.0)."
        )
    return float(engine.batch_time.ms(1, NO_ATTENTION))


def _held(job: JobType, engine: Engine) -> np.ndarray:
    """Tokens, in whole blocks, that a request holds in each of its slots."""
    assert engine.kv_cache is not None
    prompt, output = int(job.stages[0].mean_prefill), int(job.stages[0].mean_decode)
    decodes = output - int(engine.prompt_samples and prompt > 0 and output > 0)
    tokens = prompt + np.arange(0 if prompt else 1, decodes + 1)
    block = engine.kv_cache.block_size
    return -(-tokens // block) * block


def _activations(given: int | Sequence[int] | None, arrivals: Sequence[float]) -> tuple[int, ...]:
    if given is None:
        return tuple(int(np.floor(rate)) + 1 for rate in arrivals)
    check_size("activations", given)
    chosen = np.atleast_1d(np.asarray(given, object)).tolist()
    if len(chosen) == 1:
        chosen = chosen * len(arrivals)
    if len(chosen) != len(arrivals):
        raise LLMGymError(
            f"activations has {len(chosen)} entries, and the scenario has {len(arrivals)} classes; "
            "give one number for each class, or one for all."
        )
    for i, b in enumerate(chosen):
        check_number(f"activations[{i}]", b, low=1, integer=True)
    return tuple(map(int, chosen))


def _check_room(scenario: Scenario, activations: Sequence[int], slots: Sequence[int]) -> None:
    """Refuse an engine in which active requests could have to wait for tokens or seats."""
    engine = scenario.engine
    active = int(np.dot(activations, slots))
    prompts = [max(int(one.mean_prefill), 1) for one in scenario.classes]
    tokens = active + int(np.dot(activations, np.array(prompts) - 1))
    if tokens > engine.token_budget:
        raise LLMGymError(
            f"Batches of flow control hold up to {tokens} tokens; the token budget is "
            f"{engine.token_budget}. Use a larger one."
        )
    if engine.max_num_seqs is not None and active > engine.max_num_seqs:
        raise LLMGymError(
            f"Up to {active} requests are active; max_num_seqs = {engine.max_num_seqs} is too small."
        )
