"""A plain event simulator of one engine: what the JAX engine must equal batch by batch.

Explicit requests in, list of batches out; lists, loops and whole numbers only. It shares no code with
``llmgym``: the rules are written from arXiv:2504.07347v3 (sections 3 and 6). The policies stand in
``reference_policies``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any


@dataclass(eq=False)
class Request:
    """A request, named by its class and its number in it; ``arrival`` and other times in ticks."""

    job_class: int
    number: int
    arrival: int
    prefill: int
    decode: int
    first_token: int | None = None
    finish: int | None = None
    dropped: bool = False
    prefill_left: int = field(init=False)
    decode_left: int = field(init=False)
    last_service: int = field(init=False)

    def __post_init__(self) -> None:
        self.prefill_left, self.decode_left = self.prefill, self.decode
        self.last_service = self.arrival

    @property
    def name(self) -> tuple[int, int]:
        """(class, number)."""
        return self.job_class, self.number

    @property
    def decodes(self) -> bool:
        """Whether the prompt is done and output is left."""
        return self.prefill_left == 0 and self.decode_left > 0

    @property
    def started(self) -> bool:
        """Whether it has received a token."""
        return self.prefill_left < self.prefill or self.decode_left < self.decode


@dataclass(frozen=True)
class Engine:
    """Limits and batch time: ``batch_ms(tokens)`` exactly, ``tile`` tokens to a tile.

    ``attention_ms`` (tokens that decodes read, query-key pairs of prefill) comes on top of it, and
    ``samples`` says that the end of a prompt yields an output token. ``kv`` are the settings of a KV
    memory, and ``memory`` its state, a ``network_memory.Memory``: engines of networks alone have them.
    """

    batch_ms: Callable[[int], Fraction]
    token_budget: int
    max_num_seqs: int | None = None
    seq_limit: str = "batch"
    slots: int = 10**9
    tile: int = 128
    tick_ms: Fraction = Fraction(1, 100)
    attention_ms: Callable[[int, Fraction], Fraction] | None = None
    samples: bool = False
    kv: Any = None
    memory: Any = None

    def batch_ticks(self, tokens: int, context: int = 0, pairs: Fraction = Fraction(0)) -> int:
        """The batch time as the nearest whole number of ticks, at least one."""
        ms = self.batch_ms(tokens)
        if self.attention_ms is not None:
            ms += self.attention_ms(context, pairs)
        return max(round(ms / self.tick_ms), 1)


@dataclass(frozen=True)
class Ran:
    """A batch that ran: tokens of each request by (class, number), apart by phase."""

    start: int
    duration: int
    prefill: dict[tuple[int, int], int]
    decode: dict[tuple[int, int], int]

    @property
    def tokens(self) -> int:
        """b."""
        return sum(self.prefill.values()) + sum(self.decode.values())


class Formed(dict[tuple[int, int], int]):
    """Tokens of each request, and the names of those that are to lose their KV memory first."""

    preempt: frozenset[tuple[int, int]] = frozenset()


class Plan:
    """A batch being formed from the requests present: gives tokens while seats, memory and budget last."""

    def __init__(self, engine: Engine, present: list[Request], budget: int) -> None:
        self.engine, self.present = engine, present
        self.budget = budget
        self.tokens = Formed()

    @property
    def room(self) -> int:
        """Tokens that still fit."""
        return self.budget - sum(self.tokens.values())

    def fill(self, wanted: Iterable[tuple[Request, int]], whole: bool = False) -> None:
        """As many of the wanted tokens as fit, in the order given.

        Seats go first, then memory, then tokens: a request that has a seat keeps it from those behind
        even where it finds no memory. ``whole``: the first whose tokens do not all fit stops those behind.
        """
        most = self.room + 1  # nobody asks memory for more than a token too many
        some = [(request, min(tokens, most)) for request, tokens in wanted if tokens > 0]
        some = self.seated(some)
        if self.engine.memory is not None:
            some = self.engine.memory.entrance(self.present, self.tokens, some)
        for request, tokens in some:
            if whole and tokens > self.room:
                return
            if self.room > 0:
                self.tokens[request.name] = min(tokens, self.room)

    def seated(self, wanted: list[tuple[Request, int]]) -> list[tuple[Request, int]]:
        """Those of them who have a seat (k_max) or can get one."""
        if self.engine.max_num_seqs is None:
            return wanted
        resident = self.engine.seq_limit == "resident"
        has_one = {
            r.name for r in self.present if r.name in self.tokens or (resident and r.started)
        }
        free, found = self.engine.max_num_seqs - len(has_one), []
        for request, tokens in wanted:
            newcomer = request.name not in has_one
            if newcomer and free <= 0:
                continue
            free -= newcomer
            found.append((request, tokens))
        return found

    def add(self, request: Request, wanted: int) -> None:
        """As many of the wanted tokens of one request as fit."""
        self.fill([(request, wanted)])

    def add_decodes(self, requests: Iterable[Request]) -> None:
        """One token for each of the requests that decodes, in the order given."""
        self.fill((request, 1) for request in requests if request.decodes)

    def add_decodes_in_turn(self) -> None:
        """The same, and where there is no room for all, for those that were served longest ago."""
        decodes = [(request, 1) for request in self.present if request.decodes]
        if self.engine.seq_limit == "resident":
            decodes = self.seated(decodes)
        decodes.sort(key=lambda pair: pair[0].last_service)  # stable: ties in order of arrival
        chosen = [request for request, _ in self.seated(decodes)[: max(self.room, 0)]]
        self.add_decodes(request for request in self.present if request in chosen)

    def add_prefills(self, requests: Iterable[Request]) -> None:
        """Prompt tokens, in the order given; the last prompt is cut where the budget ends."""
        self.fill((request, request.prefill_left) for request in requests)

    def add_whole_prompts(self, requests: Iterable[Request]) -> None:
        """Whole prompts only: the first that does not fit stops those behind it."""
        self.fill(((request, request.prefill_left) for request in requests), whole=True)


Policy = Callable[[Engine, list[Request], int], dict[tuple[int, int], int]]
"""(engine, requests present in order of arrival, time now) -> tokens of each request."""


class Simulator:
    """Runs a policy on explicit requests, given in order of arrival."""

    def __init__(self, engine: Engine, policy: Policy, requests: list[Request]) -> None:
        self.engine, self.policy, self.coming = engine, policy, list(requests)
        self.now = 0
        self.present: list[Request] = []
        self.batches: list[Ran] = []
        self.arrived = self.dropped = 0
        self._admit()

    def _admit(self) -> None:
        """Requests that are due join; where all slots are taken they are lost."""
        while self.coming and self.coming[0].arrival <= self.now:
            request = self.coming.pop(0)
            self.arrived += 1
            if len(self.present) < self.engine.slots:
                self.present.append(request)
            else:
                request.dropped = True
                self.dropped += 1

    def step(self) -> bool:
        """One batch, or idling until the next arrival. False where nothing can happen any more."""
        tokens = self.policy(self.engine, list(self.present), self.now)
        if tokens:
            self._run(tokens)
        elif self.coming:
            self.now = self.coming[0].arrival
        else:
            return False
        self._admit()
        return True

    def _run(self, tokens: dict[tuple[int, int], int]) -> None:
        start = self.now
        duration = self.engine.batch_ticks(sum(tokens.values()))
        self.now += duration
        served = [r for r in self.present if r.name in tokens]
        ran = Ran(
            start,
            duration,
            prefill={r.name: tokens[r.name] for r in served if r.prefill_left > 0},
            decode={r.name: tokens[r.name] for r in served if r.prefill_left == 0},
        )
        self._check(ran)
        for request in served:
            self._credit(request, tokens[request.name])
        self.present = [r for r in self.present if r.finish is None]
        self.batches.append(ran)

    def _credit(self, request: Request, tokens: int) -> None:
        request.last_service = self.now
        if request.prefill_left > 0:
            request.prefill_left -= tokens
        else:
            request.decode_left -= tokens
            if request.first_token is None:
                request.first_token = self.now
        if request.prefill_left == 0 and request.decode_left == 0:
            request.finish = self.now
            if request.decode == 0:  # the prompt's end is all the answer there is
                request.first_token = self.now

    def _check(self, ran: Ran) -> None:
        """(6a), (6c), (6d) and the limit on requests; a policy that breaks them is itself broken."""
        left = {r.name: r.prefill_left for r in self.present}
        seats = {*ran.prefill, *ran.decode}
        if self.engine.seq_limit == "resident":
            seats |= {r.name for r in self.present if r.started}
        assert ran.tokens <= self.engine.token_budget
        assert all(0 < n <= left[name] for name, n in ran.prefill.items())
        assert all(n == 1 for n in ran.decode.values())
        assert self.engine.max_num_seqs is None or len(seats) <= self.engine.max_num_seqs

    def run(self, batches: int | None = None, until: int | None = None) -> list[Ran]:
        """Go on until so many batches have run, or the clock has reached ``until`` ticks, or the end."""
        while batches is None or len(self.batches) < batches:
            if until is not None and self.now >= until:
                break
            if not self.step():
                break
        return self.batches


def exact(value: object) -> Fraction:
    """The decimal number that is written, not the binary one nearest to it."""
    return Fraction(str(value))


def staircase(c_ms: object, a_ms: object, tile: int) -> Callable[[int], Fraction]:
    """t_b = c + a * ceil(b / tile)."""
    return lambda b: exact(c_ms) + exact(a_ms) * -(-b // tile)


def hinge(c_ms: object, a_ms_per_token: object, free_tokens: int) -> Callable[[int], Fraction]:
    """t_b = c + a * max(0, b - b_0)."""
    return lambda b: exact(c_ms) + exact(a_ms_per_token) * max(0, b - free_tokens)


def affine(c_ms: object, a_ms_per_token: object) -> Callable[[int], Fraction]:
    """t_b = c + a * b."""
    return lambda b: exact(c_ms) + exact(a_ms_per_token) * b


def attention(kv: object, prefill: object, mixed: object) -> Callable[[int, Fraction], Fraction]:
    """k * KV / 1000 + p * PP / 10^6, and k_mix * KV / 1000 more where the batch holds prefill as well."""

    def ms(context: int, pairs: Fraction) -> Fraction:
        per_token = exact(kv) + (exact(mixed) if pairs > 0 else 0)
        return per_token * context / 1000 + exact(prefill) * pairs / 10**6

    return ms


BATCH_TIMES: dict[str, Callable[..., Callable[[int], Fraction]]] = {
    "staircase": staircase,
    "hinge": hinge,
    "affine": affine,
}
