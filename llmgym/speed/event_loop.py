"""What llmgym's speed is measured against: the engine as an event loop written for one policy.

One environment at a time, Sarathi-Serve in the loop, the rules of llmgym.engine.simulator. Requests stand in
arrays in order of arrival, and a batch is one pass over the running ones. Sarathi-Serve prefills first
come, first served, so the requests that decode are the first in line and those that wait come after them:
the loop never looks at a waiting request but the one whose prompt is next. A policy that does not
serve in this order would need another loop.

The loop is written for numba, which compiles it to machine code; without it Python runs it as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

from llmgym.core.errors import LLMGymError
from llmgym.scenario.arrivals import Poisson
from llmgym.scenario.lengths import Geometric
from llmgym.scenario.scenario import Scenario

Ints = Sequence[int] | np.ndarray
Function = TypeVar("Function", bound=Callable[..., Any])


def _numba() -> Any:
    try:
        return import_module("numba")
    except ImportError:
        return None


def compilable(function: Function) -> Function:
    """Let compiled functions call this one, if numba is installed; Python calls it as it is."""
    numba = _numba()
    return function if numba is None else numba.extending.register_jitable(function)


@dataclass(frozen=True)
class Requests:
    """A list of requests in order of arrival: times in ticks, and tokens (at least one of each kind)."""

    arrival: np.ndarray
    prefill: np.ndarray
    decode: np.ndarray

    def __post_init__(self) -> None:
        for name in ("arrival", "prefill", "decode"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.int64))
        if not len(self.arrival) == len(self.prefill) == len(self.decode):
            raise LLMGymError("arrival, prefill and decode need one entry each per request.")
        if len(self.arrival) and min(self.prefill.min(), self.decode.min()) < 1:
            raise LLMGymError("The event loop needs prompts and outputs of at least one token.")
        if (np.diff(self.arrival, prepend=0) < 0).any():
            raise LLMGymError("Arrival times must not be negative or decrease; sort the requests.")

    @classmethod
    def draw(cls, scenario: Scenario, count: int, seed: int = 0) -> Requests:
        """Requests of a scenario with one job type, Poisson arrivals and geometric lengths.

        Args:
            scenario: gives the rate, the mean lengths and the length of a tick.
            count: how many.
            seed: of NumPy's generator; it does not give the requests of ``llmgym.simulate``.

        Raises LLMGymError for any other scenario.
        """
        job = scenario.job_types[0] if len(scenario.job_types) == 1 else None
        lengths = (job.stages[0].prefill, job.stages[0].decode) if job else (None, None)
        geometric = [length for length in lengths if isinstance(length, Geometric)]
        if job is None or not isinstance(job.arrivals, Poisson) or len(geometric) < 2:
            raise LLMGymError(
                "The event loop draws Poisson arrivals of one job type with geometric lengths; "
                "give it an explicit list of Requests for anything else."
            )
        random = np.random.default_rng(seed)
        ticks_per_s = 1000 / scenario.tick_ms
        gaps = np.rint(random.exponential(ticks_per_s / job.rate_per_s, count))
        prefill, decode = (random.geometric(1 / g.mean_tokens, count) for g in geometric)
        return cls(np.cumsum(gaps), prefill, decode)


@dataclass(frozen=True)
class History:
    """What the event loop did. Per-request times are in ticks, -1 where there is none.

    Attributes:
        start, prefill, decode: clock and tokens (steps,) of every step; one without tokens waits for an
            arrival.
        first_token, finish: of every request (requests,).
        clock: at the end.
        dropped: requests that found all slots taken.
        request_ticks: integral of the number of requests present over time.
    """

    start: np.ndarray
    prefill: np.ndarray
    decode: np.ndarray
    first_token: np.ndarray
    finish: np.ndarray
    clock: int
    dropped: int
    request_ticks: int

    @property
    def steps(self) -> int:
        """Steps made."""
        return len(self.start)


def simulate(scenario: Scenario, requests: Requests, steps: int, compiled: bool) -> History:
    """Run Sarathi-Serve on a scenario's engine, in one environment, until all requests are served.

    Args:
        scenario: gives the engine, the slots and the length of a tick; its arrivals are not used.
        requests: what arrives instead.
        steps: most steps, waits for an arrival included.
        compiled: run the loop that numba compiled, not the Python one.

    Raises LLMGymError where numba is needed and not installed, and for an engine with max_num_seqs.
    """
    loop, engine = machine_code() if compiled else _event_loop, scenario.engine
    if loop is None:
        raise LLMGymError("The compiled event loop needs numba: pip install 'llmgym[dev]'.")
    if engine.max_num_seqs is not None:
        raise LLMGymError("The event loop knows no limit on requests; leave max_num_seqs at None.")
    sizes, tick_ms = jnp.arange(engine.token_budget + 1), jnp.float32(scenario.tick_ms)
    batch_ticks = np.asarray(engine.batch_time.ticks(sizes, tick_ms), np.int64)
    count = len(requests.arrival)
    given = [requests.arrival, requests.prefill, requests.decode, batch_ticks]
    filled = [np.full(n, -1) for n in (scenario.slots, scenario.slots, count, count, count)]
    filled += [np.full(steps, -1) for _ in range(3)]
    # The interpreter is several times faster on lists than on arrays.
    columns: list[Any] = given + filled if compiled else [c.tolist() for c in given + filled]
    made, clock, dropped, request_ticks = loop(*columns)
    first, finish, start, prefill, decode = (np.asarray(c) for c in columns[-5:])
    history = (start[:made], prefill[:made], decode[:made], first, finish)
    return History(*history, int(clock), int(dropped), int(request_ticks))


@compilable
def _event_loop(
    arrival: Ints,
    prefill: Ints,
    decode: Ints,
    batch_ticks: Ints,
    running: Any,
    left: Any,
    line: Any,
    first: Any,
    finish: Any,
    start: Any,
    prompts: Any,
    outputs: Any,
) -> tuple[int, int, int, int]:
    """The loop; what it fills is made beforehand. Returns steps made, clock, requests dropped, request-ticks.

    Args:
        arrival, prefill, decode: of every request (requests,), ticks and tokens.
        batch_ticks: time of a batch by its number of tokens, (token budget + 1,).
        running, left: filled: the requests that decode, and the tokens they have to come (slots,).
        line: filled: the requests admitted, in order of arrival (requests,).
        first, finish: filled: ticks of the first token and of the end of every request (requests,).
        start, prompts, outputs: filled: clock and tokens of every step (steps,).
    """
    budget = len(batch_ticks) - 1
    clock = coming = head = tail = count = served = done = steps = request_ticks = 0
    while steps < len(start):
        while coming < len(arrival) and arrival[coming] <= clock:
            if count + tail - head < len(running):
                line[tail] = coming
                tail += 1
                request_ticks += clock - arrival[coming]
            coming += 1
        decodes, present, entered = min(count, budget), count + tail - head, head
        head, done, room = _take_prompts(line, head, tail, prefill, done, budget - decodes)
        if room < budget:
            duration = batch_ticks[budget - room]
        elif coming < len(arrival):
            duration = arrival[coming] - clock
        else:
            break
        start[steps], prompts[steps], outputs[steps] = clock, budget - room - decodes, decodes
        steps += 1
        clock += duration
        request_ticks += present * duration
        for i in range(served, decodes):  # the first `served` had their first token before
            first[running[i]] = clock
        kept = _credit(running, left, finish, clock, decodes, count)
        served = max(served, decodes) - (count - kept)
        count = kept
        for i in range(entered, head):
            running[count], left[count] = line[i], decode[line[i]]
            count += 1
    return steps, clock, coming - tail, request_ticks


@compilable
def _take_prompts(
    line: Ints, head: int, tail: int, prefill: Ints, done: int, room: int
) -> tuple[int, int, int]:
    """Prompts from the head of the line into ``room`` tokens; of the first, ``done`` are served.

    Returns the new head, what is served of its prompt, and the room left.
    """
    while head < tail and room > 0:
        rest = prefill[line[head]] - done
        if rest > room:
            return head, done + room, 0
        room -= rest
        head, done = head + 1, 0
    return head, done, room


@compilable
def _credit(running: Any, left: Any, finish: Any, clock: int, decodes: int, count: int) -> int:
    """One token to each of the first ``decodes`` of ``count`` running requests.

    Those that finish leave and the others close up. Returns how many are left.
    """
    kept = 0
    for i in range(decodes):
        request, tokens = running[i], left[i] - 1
        running[kept], left[kept] = request, tokens
        if tokens == 0:
            finish[request] = clock
        kept += tokens > 0  # faster than a branch
    for i in range(decodes, count):
        running[kept], left[kept] = running[i], left[i]
        kept += 1
    return kept


@cache
def machine_code() -> Callable[..., Any] | None:
    """The event loop compiled by numba (on its first call), or None where numba is not installed."""
    numba = _numba()
    return None if numba is None else numba.njit(nogil=True)(_event_loop)
