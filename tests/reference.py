"""A plain event simulator of one engine: what the JAX engine must equal batch by batch.

Explicit requests in, list of batches out; lists, loops and whole numbers only. It shares no code with
``llmgym``: the rules are written from arXiv:2504.07347v3 (sections 3 and 6). The policies stand in
``reference_policies``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction


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
    """Limits and batch time: ``batch_ms(tokens)`` exactly, ``tile`` tokens to a tile."""

    batch_ms: Callable[[int], Fraction]
    token_budget: int
    max_num_seqs: int | None = None
    seq_limit: str = "batch"
    slots: int = 10**9
    tile: int = 128
    tick_ms: Fraction = Fraction(1, 100)

    def batch_ticks(self, tokens: int) -> int:
        """The batch time as the nearest whole number of ticks, at least one."""
        return max(round(self.batch_ms(tokens) / self.tick_ms), 1)


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


class Plan:
    """A batch being formed from the requests present: gives tokens while budget and seats last."""

    def __init__(self, engine: Engine, present: list[Request], budget: int) -> None:
        self.engine, self.present = engine, present
        self.budget = budget
        self.tokens: dict[tuple[int, int], int] = {}

    @property
    def room(self) -> int:
        """Tokens that still fit."""
        return self.budget - sum(self.tokens.values())

    def seat(self, request: Request) -> bool:
        """Whether the request has a seat (k_max) or can get one."""
        most = self.engine.max_num_seqs
        if most is None:
            return True
        resident = self.engine.seq_limit == "resident"
        seated = [r for r in self.present if r.name in self.tokens or (resident and r.started)]
        return request in seated or len(seated) < most

    def add(self, request: Request, wanted: int) -> None:
        """As many of the wanted tokens as fit."""
        given = min(wanted, self.room)
        if given > 0 and self.seat(request):
            self.tokens[request.name] = given

    def add_decodes(self, requests: Iterable[Request]) -> None:
        """One token for each of the requests that decodes, in the order given."""
        for request in requests:
            if request.decodes:
                self.add(request, 1)

    def add_prefills(self, requests: Iterable[Request]) -> None:
        """Prompt tokens, in the order given; the last prompt is cut where the budget ends."""
        for request in requests:
            self.add(request, request.prefill_left)

    def add_whole_prompts(self, requests: Iterable[Request]) -> None:
        """Whole prompts only: the first that does not fit stops those behind it."""
        for request in requests:
            if request.prefill_left > self.room:
                return
            self.add(request, request.prefill_left)


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


BATCH_TIMES: dict[str, Callable[..., Callable[[int], Fraction]]] = {
    "staircase": staircase,
    "hinge": hinge,
    "affine": affine,
}
