"""KV memory of one engine in plain Python: who holds blocks, who enters, and who loses them.

Lists, loops and whole numbers only; the blocks one by one, for prefix caching, are those of
``vllm_reference``. It shares no code with ``llmgym``.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from reference import Formed, Request
from vllm_reference import BlockPool

Name = tuple[int, ...]


@dataclass(frozen=True)
class KV:
    """Settings of a memory. ``swap_per_ms`` tokens go to the host or back in a ms; None: recompute."""

    blocks: int
    block_size: int
    caching: bool = False
    swap_per_ms: Fraction | None = None


@dataclass(eq=False, kw_only=True)
class Tenant(Request):
    """A request as a memory sees it.

    ``samples``: the end of its prompt yields an output token, which is computed with the next one.
    ``limited``: its engine has a memory. ``shared``: tokens that it has in common with others, and
    whose they are.
    """

    samples: bool = False
    limited: bool = False
    shared: tuple[int, Any] = (0, None)
    swapped: bool = False
    admitted: int = -1  # epoch in which it got the memory that it has
    blocks: list[int] = field(default_factory=list)  # with prefix caching

    @property
    def outputs(self) -> int:
        """Output tokens so far."""
        return self.decode - self.decode_left

    @property
    def known(self) -> int:
        """Its tokens so far: what it computes again when it has lost its memory."""
        return self.prefill + self.outputs

    @property
    def cached(self) -> int:
        """Tokens computed since it last had none, wherever they are."""
        if self.prefill_left > 0:
            return self.known - self.prefill_left
        return self.known - (self.samples and self.prefill > 0 and self.outputs > 0)

    @property
    def again(self) -> int:
        """Tokens to compute on top of what is left when it loses its memory.

        With ``samples`` the end of what is then a prompt yields a token, which saves one.
        """
        if self.prefill_left > 0:
            return self.cached
        return self.known - (self.samples and self.decode_left > 0)

    @property
    def resident(self) -> bool:
        """Whether it holds memory."""
        return self.cached > 0 and not self.swapped

    @property
    def started(self) -> bool:
        """Whether it runs: where memory is limited, whether it holds some."""
        return self.resident if self.limited else super().started

    @property
    def longest(self) -> int:
        """Most tokens that it will ever have in memory."""
        return self.prefill + self.decode - (self.samples and self.prefill > 0)

    @property
    def work(self) -> int:
        """Tokens to compute."""
        both = self.prefill_left > 0 and self.decode_left > 0
        return self.prefill_left + self.decode_left - (self.samples and both)

    def prefix(self, tokens: int) -> Any:
        """A name for its first tokens: only requests that begin alike have the same."""
        common, whose = self.shared
        return (whose if tokens <= min(common, self.prefill) else self.name), tokens


@dataclass(frozen=True)
class Admission:
    """A batch that fits into memory, and what it changed: everything in tokens but who is ``gone``."""

    tokens: Formed
    gone: list[Tenant]
    found: int
    lost: int
    swapped: int


class Memory:
    """The memory of one engine. Where requests are given they stand in order of arrival."""

    def __init__(self, kv: KV) -> None:
        self.kv = kv
        self.pool = BlockPool(kv.blocks, kv.block_size, True) if kv.caching else None

    def fits(self, request: Tenant) -> bool:
        """Whether it can run to its end at all."""
        return request.longest <= self.kv.blocks * self.kv.block_size

    def needed(self, request: Tenant, tokens: int = 0) -> int:
        """Blocks that it holds when ``tokens`` more of it are computed."""
        return -(-(request.cached + tokens) // self.kv.block_size)

    def held(self, request: Tenant) -> int:
        """Blocks that it holds."""
        return self.needed(request) if request.resident else 0

    def free(self, present: list[Tenant]) -> int:
        """Blocks that nobody holds."""
        if self.pool is not None:
            return len(self.pool.free)
        return self.kv.blocks - sum(self.held(r) for r in present)

    def entrance(
        self, present: list[Tenant], tokens: Formed, wanted: list[tuple[Tenant, int]]
    ) -> list[tuple[Tenant, int]]:
        """Those who hold memory or find it free, up to the first that does not, for all they want.

        ``tokens`` are in the batch already. What prefix caching may save is left out.
        """
        batch = [r for r in present if r.name in tokens]
        free = self.free(present)
        free -= sum(self.needed(r, tokens[r.name]) - self.held(r) for r in batch)
        found = []
        for request, count in wanted:
            if not request.resident and request not in batch:
                free -= self.needed(request, count)
                if free < 0:
                    continue
            found.append((request, count))
        return found

    def secure(
        self, present: list[Tenant], tokens: Formed, named: frozenset[Name] = frozenset()
    ) -> tuple[Formed, list[Tenant]]:
        """The batch that memory allows, and who is preempted for it: the named, then the last.

        Who holds none enters in order up to the first that does not fit; nobody, if anyone had to go.
        """
        gone = [r for r in present if r.resident and r.name in named]
        kept, used = Formed(), 0
        for request in present:
            if not request.resident or request in gone:
                continue
            count = tokens.get(request.name, 0)
            used += self.needed(request, count)
            if used > self.kv.blocks:
                gone.append(request)
            elif count:
                kept[request.name] = count
        for request in present:
            count = 0 if request.resident else tokens.get(request.name, 0)
            if gone or count == 0:
                continue
            used += self.needed(request, count)
            if used > self.kv.blocks:
                break
            kept[request.name] = count
        return kept, gone

    def admit(self, present: list[Tenant], asked: Formed, epoch: int) -> Admission:
        """Let the requests of a batch into memory and others lose it."""
        enter = [r for r in present if not r.resident]
        found: dict[Name, int] = {}
        if self.pool is None:
            named = asked.preempt
            tokens, gone = self.secure(present, _without(asked, named), named)
        else:
            tokens, gone, found = self._serve(present, asked)
        lost = swapped = 0
        for request in gone:
            if self.kv.swap_per_ms is not None:
                swapped += request.cached
                request.swapped = True
            else:
                lost += request.again
                request.prefill_left = request.known
        for request in (r for r in enter if r.name in tokens):
            request.admitted = epoch
            request.prefill_left -= found.get(request.name, 0)
            if request.swapped:
                swapped += request.cached
                request.swapped = False
        return Admission(tokens, gone, sum(found.values()), lost, swapped)

    def trial(self, present: list[Tenant]) -> tuple[BlockPool, dict[Name, Claim]]:
        """A copy of the blocks, for a policy that looks ahead."""
        claims = {r.name: Claim(r, list(r.blocks)) for r in present}
        return deepcopy(self.pool), claims

    def _serve(
        self, present: list[Tenant], asked: Formed
    ) -> tuple[Formed, list[Tenant], dict[Name, int]]:
        """Block by block. Who runs takes blocks in order of admission, at worst those of the last.

        Those that are named go before others do, and in the end all of them; one that is asked to run
        takes its blocks in turn before it loses them. Then, if nobody went, requests enter in order.
        """
        pool, gone = self.pool, []
        assert pool is not None
        running = sorted((r for r in present if r.resident), key=lambda r: r.admitted)
        named = [r for r in present if r.name in asked.preempt and r in running]

        def drop(candidates: list[Tenant]) -> None:
            victim = [r for r in candidates if r not in gone][-1]
            gone.append(victim)
            pool.release(victim)

        for request in (r for r in running if r.name in asked):
            upto = request.cached + asked[request.name]
            while request not in gone and not pool.fits(request, upto):
                some_named = any(r not in gone for r in named)
                drop(named if some_named else [r for r in present if r in running])
            if request not in gone:
                pool.allocate(request, upto)
        while any(r not in gone for r in named):
            drop(named)
        tokens = Formed({r.name: asked[r.name] for r in running if r.name in asked})
        found = {}
        for request in [] if gone else [r for r in present if r not in running and r.name in asked]:
            hits = pool.hits(request)
            begin = len(hits) * self.kv.block_size
            count = asked[request.name]
            if request.prefill_left > 0:
                count = min(count, request.prefill_left - begin)
            if not pool.fits(request, begin + count, hits):
                break
            pool.allocate(request, begin + count, hits)
            tokens[request.name], found[request.name] = count, begin
        return _without(tokens, {r.name for r in gone}), gone, found

    def leave(self, done: list[Tenant]) -> None:
        """Give back the blocks of those that are done, in order of admission."""
        if self.pool is not None:
            for request in sorted(done, key=lambda r: r.admitted):
                self.pool.release(request)


@dataclass(eq=False)
class Claim:
    """The blocks that a request would have."""

    request: Tenant
    blocks: list[int]

    def prefix(self, tokens: int) -> Any:
        """As that of the request."""
        return self.request.prefix(tokens)


def _without(tokens: Formed, names: Any) -> Formed:
    return Formed({name: count for name, count in tokens.items() if name not in names})
