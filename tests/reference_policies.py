"""Plain-Python policies for the event simulator of ``reference``.

They share no code with ``llmgym.baselines``: the rules are written from arXiv:2504.07347v3 (section 4)
and from what the policies say of themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from reference import Engine, Formed, Plan, Policy, Request

Tokens = dict[tuple[int, int], int]


def _own(engine: Engine, token_budget: int | None) -> int:
    return engine.token_budget if token_budget is None else min(engine.token_budget, token_budget)


def faster_transformer(token_budget: int | None = None, prompts: str = "whole") -> Policy:
    """While any request decodes, one token for each that does; else prefills."""

    def compose(engine: Engine, present: list[Request], now: int) -> Tokens:
        plan = Plan(engine, present, _own(engine, token_budget))
        if any(r.decodes for r in present):
            plan.add_decodes(present)
        elif prompts == "whole":
            plan.add_whole_prompts(present)
        else:
            plan.add_prefills(present)
        return plan.tokens

    return compose


def vllm(token_budget: int | None = None, prompts: str = "whole") -> Policy:
    """Prefills while there are any that can enter; else decodes."""

    def compose(engine: Engine, present: list[Request], now: int) -> Tokens:
        plan = Plan(engine, present, _own(engine, token_budget))
        if prompts == "whole":
            plan.add_whole_prompts(present)
        else:
            plan.add_prefills(present)
        # Prompts that were admitted in part may find no memory for the rest until others have ended.
        memory = engine.memory
        if not plan.tokens or (memory is not None and not memory.secure(present, plan.tokens)[0]):
            decodes = Plan(engine, present, _own(engine, token_budget))
            decodes.add_decodes(present)
            return decodes.tokens or plan.tokens
        return plan.tokens

    return compose


def orca(token_budget: int | None = None) -> Policy:
    """Prefill tokens, then decodes in the remainder."""

    def compose(engine: Engine, present: list[Request], now: int) -> Tokens:
        plan = Plan(engine, present, _own(engine, token_budget))
        plan.add_prefills(present)
        plan.add_decodes(present)
        return plan.tokens

    return compose


def sarathi(token_budget: int | None = None) -> Policy:
    """Decodes, then prefill tokens in the remainder."""

    def compose(engine: Engine, present: list[Request], now: int) -> Tokens:
        plan = Plan(engine, present, _own(engine, token_budget))
        plan.add_decodes(present)
        plan.add_prefills(present)
        return plan.tokens

    return compose


def k_fcfs(token_budget: int | None = None, k: int | None = None, order: str = "arrival") -> Policy:
    """Only the first k requests in order of arrival take part."""

    def compose(engine: Engine, present: list[Request], now: int) -> Tokens:
        plan = Plan(engine, present, _own(engine, token_budget))
        first = present if k is None else present[:k]
        if order == "arrival":
            plan.fill((r, 1 if r.decodes else r.prefill_left) for r in first)
        elif order == "decode":
            plan.add_decodes(first)
            plan.add_prefills(first)
        else:
            plan.add_prefills(first)
            plan.add_decodes(first)
        return plan.tokens

    return compose


def idle(token_budget: int | None = None) -> Policy:
    """Nothing, ever."""
    return lambda engine, present, now: {}


Rule = Callable[[Engine, int, int, int, int], int]
"""(engine, D, P, tile, K) -> tiles to open."""


def _tiles(tokens: int, tile: int) -> int:
    return -(-tokens // tile)


def tiled(rule: Rule, token_budget: int | None = None, tile: int | None = None) -> Policy:
    """Open the tiles that the rule says: decodes first, longest since served; then prefill FCFS."""

    def compose(engine: Engine, present: list[Request], now: int) -> Tokens:
        size, budget = tile or engine.tile, _own(engine, token_budget)
        decodes = [r for r in present if r.decodes]
        prefill = sum(r.prefill_left for r in present)
        open_tiles = rule(engine, len(decodes), prefill, size, _tiles(budget, size))
        plan = Plan(engine, present, min(open_tiles * size, budget))
        plan.add_decodes_in_turn()
        plan.add_prefills(present)
        return plan.tokens

    return compose


def always_full(token_budget: int | None = None, tile: int | None = None) -> Policy:
    """All tiles, always."""
    return tiled(lambda engine, d, p, size, most: most, token_budget, tile)


def greedy_rate(token_budget: int | None = None, tile: int | None = None) -> Policy:
    """The number of tiles with the most tokens per time; the smallest at a tie."""

    def rule(engine: Engine, decodes: int, prefill: int, size: int, most: int) -> int:
        def rate(tiles: int) -> Fraction:
            tokens = min(decodes + prefill, tiles * size)
            return tokens / engine.batch_ms(max(tokens, 1))

        return max(range(1, most + 1), key=rate)

    return tiled(rule, token_budget, tile)


def tile_align(token_budget: int | None = None, tile: int | None = None) -> Policy:
    """Tiles that are filled, and those that the decodes need."""

    def rule(engine: Engine, decodes: int, prefill: int, size: int, most: int) -> int:
        running = min(decodes, most * size)
        return min(max((running + prefill) // size, _tiles(running, size), 1), most)

    return tiled(rule, token_budget, tile)


def flush(token_budget: int | None = None, tile: int | None = None, threshold: int = 512) -> Policy:
    """The tiles that the decodes need; more where the prefill left over passes the threshold."""

    def rule(engine: Engine, decodes: int, prefill: int, size: int, most: int) -> int:
        needed = min(max(1, _tiles(decodes, size)), most)
        left_over = prefill - (needed * size - decodes)
        opened = [
            k for k in range(needed, most + 1) if left_over >= threshold + size * (k - needed)
        ]
        return max(opened, default=needed)

    return tiled(rule, token_budget, tile)


def vllm_v1(token_budget: int | None = None) -> Policy:
    """Those that run, then those that wait, up to the first whose known tokens find no memory.

    One that runs and finds no memory takes that of the last; then nobody who waits is admitted.
    """

    def compose(engine: Engine, present: list[Request], now: int) -> Tokens:
        budget = _own(engine, token_budget)
        if engine.memory is not None and engine.memory.pool is not None:
            return _vllm_v1_block_by_block(engine, present, budget)
        plan = Plan(engine, present, budget)
        running = [r for r in present if r.started]
        plan.fill((r, 1 if r.decodes else r.prefill_left) for r in running)
        free = None
        if engine.memory is not None:
            plan.tokens, gone = engine.memory.secure(running, plan.tokens)
            if gone:
                plan.tokens.preempt = frozenset(r.name for r in gone)
                return plan.tokens
            free = engine.memory.kv.blocks
            free -= sum(engine.memory.needed(r, plan.tokens.get(r.name, 0)) for r in running)
        seats = engine.max_num_seqs
        for request in present:
            if request.started:
                continue
            wanted = 1 if request.decodes else request.prefill_left
            given = min(wanted, plan.room)
            if given <= 0 or (seats is not None and len(running) >= seats):
                break
            if free is not None:
                if engine.memory.needed(request, wanted) > free:
                    break
                free -= engine.memory.needed(request, given)
            plan.tokens[request.name] = given
            running.append(request)
        return plan.tokens

    return compose


def _vllm_v1_block_by_block(engine: Engine, present: list[Request], budget: int) -> Formed:
    """The same with prefix caching: on a copy of the blocks, as each depends on those before it.

    A request that loses its memory may have been in the batch: it stays among the tokens, as its blocks
    keep what it would have computed.
    """
    memory, tokens, gone = engine.memory, Formed(), set()
    pool, claims = memory.trial(present)
    running = sorted((r for r in present if r.started), key=lambda r: r.admitted)
    for request in list(running):
        wanted = min(1 if request.decodes else request.prefill_left, budget)
        if budget <= 0 or request in gone:
            continue
        claim = claims[request.name]
        while request not in gone and not pool.fits(claim, request.cached + wanted):
            last = [r for r in present if r in running and r not in gone][-1]
            gone.add(last)
            pool.release(claims[last.name])
            budget += tokens.get(last.name, 0)
        if request in gone:
            break
        pool.allocate(claim, request.cached + wanted)
        tokens[request.name] = wanted
        budget -= wanted
    seats = engine.max_num_seqs
    for request in [] if gone else [r for r in present if not r.started]:
        if budget <= 0 or (seats is not None and len(running) >= seats):
            break
        claim, hits = claims[request.name], pool.hits(request)
        wanted = 1 if request.decodes else request.prefill_left
        begin = len(hits) * memory.kv.block_size
        if not pool.fits(claim, wanted, hits):
            break
        tokens[request.name] = min(wanted - begin, budget)
        pool.allocate(claim, begin + tokens[request.name], hits)
        budget -= tokens[request.name]
        running.append(request)
    tokens.preempt = frozenset(r.name for r in gone)
    return tokens


POLICIES: dict[str, Callable[..., Policy]] = {
    "faster_transformer": faster_transformer,
    "vllm": vllm,
    "orca": orca,
    "sarathi": sarathi,
    "always_full": always_full,
    "greedy_rate": greedy_rate,
    "tile_align": tile_align,
    "flush": flush,
    "k_fcfs": k_fcfs,
    "vllm_v1": vllm_v1,
    "idle": idle,
}
