"""One engine of a network in plain Python: its calls, the batch that runs, and its KV memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil
from typing import Any

from network_memory import Memory, Tenant
from reference import Engine, Formed, Policy, Ran


@dataclass(eq=False)
class Job:
    """A job in the network: where each of its stages stands."""

    name: tuple[int, int]  # (type, number)
    status: list[str]
    visits: list[int]  # how often each stage has ended
    context: list[int]  # prompt and output of its last visit
    refused: bool = False


@dataclass(eq=False, kw_only=True)
class Call(Tenant):
    """A call, or a delay, which is over at ``until``."""

    job: Job
    stage: int
    visit: int
    until: int | None = None

    @property
    def name(self) -> Any:
        """(job type, job number, stage, visit)."""
        return *self.job.name, self.stage, self.visit

    @property
    def left(self) -> int:
        """Tokens to come."""
        return self.prefill_left + self.decode_left


@dataclass(eq=False)
class Server:
    """One engine: its calls in the order in which they came, and the batch that runs."""

    engine: Engine
    calls: list[Call] = field(default_factory=list)
    running: dict[Any, int] | None = None
    until: int = 0
    batches: list[Ran] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if self.engine.kv is not None:
            self.engine = replace(self.engine, memory=Memory(self.engine.kv))

    @property
    def tokens_in_memory(self) -> int:
        """Tokens in KV memory; where there is none, those computed of the calls that are here."""
        if self.engine.memory is None:
            return sum(c.prefill + c.decode - c.left for c in self.calls)
        return sum(c.cached for c in self.calls if c.resident)

    def start(self, policy: Policy, now: int, epoch: int) -> bool:
        """Form a batch and let it run, if there is anything in it. Whether anything changed."""
        asked = policy(self.engine, list(self.calls), now)
        asked = asked if isinstance(asked, Formed) else Formed(asked)
        decoding = {c.name for c in self.calls if c.prefill_left == 0}
        self._check(asked, decoding)
        tokens, swapped, gone = asked, 0, []
        if self.engine.memory is not None:
            admission = self.engine.memory.admit(self.calls, asked, epoch)
            tokens, swapped, gone = admission.tokens, admission.swapped, admission.gone
            self.counts["preempted"] += len(gone)
            for what in ("found", "lost", "swapped"):
                self.counts[what] += getattr(admission, what)
        if tokens:
            duration = self._ticks(tokens, decoding, swapped)
            prefill, decode = (
                {name: n for name, n in tokens.items() if (name in decoding) == phase}
                for phase in (False, True)
            )
            self.batches.append(Ran(now, duration, prefill, decode))
            self.running, self.until = tokens, now + duration
        return bool(tokens or gone)

    def _check(self, asked: Formed, decoding: set[Any]) -> None:
        """A policy that breaks a limit is itself broken."""
        runs = {name: n for name, n in asked.items() if name not in asked.preempt}
        left = {c.name: c.prefill_left for c in self.calls}
        seats = set(runs)
        if self.engine.seq_limit == "resident":
            seats |= {c.name for c in self.calls if c.started}
        assert sum(runs.values()) <= self.engine.token_budget
        assert all(0 < n <= (1 if name in decoding else left[name]) for name, n in asked.items())
        assert self.engine.max_num_seqs is None or len(seats) <= self.engine.max_num_seqs

    def _ticks(self, tokens: Formed, decoding: set[Any], swapped: int) -> int:
        """Ticks of a batch: of its tokens, of what its attention reads, and of what was swapped."""
        context, pairs = 0, Fraction(0)
        for call in (c for c in self.calls if c.name in tokens):
            count = tokens[call.name]
            if call.name in decoding:
                context += call.cached + 1
            else:
                pairs += count * (call.cached + Fraction(count, 2))
        ticks = self.engine.batch_ticks(sum(tokens.values()), context, pairs)
        if swapped:
            ticks += ceil(swapped / self.engine.kv.swap_per_ms / self.engine.tick_ms)
        return ticks

    def end(self, now: int) -> list[Call]:
        """Credit the batch; the calls that are done leave."""
        assert self.running is not None
        for call in [c for c in self.calls if c.name in self.running]:
            call.last_service = now
            if call.prefill_left > 0:
                call.prefill_left -= self.running[call.name]
                if call.samples and call.prefill_left == 0 and call.decode_left > 0:
                    call.decode_left -= 1
            else:
                call.decode_left -= self.running[call.name]
            if call.first_token is None and (call.decode_left < call.decode or call.left == 0):
                call.first_token = now
        self.running = None
        done, self.calls = ([c for c in self.calls if (c.left > 0) == m] for m in (False, True))
        if self.engine.memory is not None:
            self.engine.memory.leave(done)
        return done
