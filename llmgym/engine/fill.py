"""Forming batches: rules that fill within budget, seats and memory, and the nearest feasible batch.

Slots stand in order of arrival, so filling "first come, first served" is filling in slot order. A slot
whose request is gone holds no tokens; it may stand anywhere and takes part in nothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from llmgym.core.arrays import once, prefix_sum
from llmgym.core.checks import check_flag, check_kind
from llmgym.core.precision import in_32_bits
from llmgym.engine.memory.paged import secure
from llmgym.engine.view import Batch, View


@in_32_bits
def fill(
    view: View,
    batch: Batch,
    demand: jax.Array,
    token_budget: jax.Array | int | None = None,
    whole: bool = False,
) -> Batch:
    """Add tokens of ``demand`` (slots,) to a batch, in slot order, while budget, seats and memory last.

    Args:
        view: what the engine shows.
        batch: what is in the batch already.
        demand: tokens wanted from each slot, int32, on top of the batch.
        token_budget: tokens of the whole batch; the engine's own budget holds all the same.
        whole: give a slot all of its demand or nothing; the first that does not fit blocks the rest.
    """
    check_kind("view", view, View)
    check_kind("batch", batch, Batch)
    check_flag("whole", whole)
    room = jnp.maximum(own_budget(view, token_budget) - batch.size, 0)
    demand = jnp.minimum(demand, room + 1)  # more cannot matter, and the sums stay inside 32 bits
    if view.max_num_seqs is not None:
        seated = (batch.tokens > 0) | view.started if view.resident_limit else batch.tokens > 0
        seats = view.max_num_seqs - jnp.sum(seated.astype(jnp.int32), axis=0)
        newcomer = (demand > 0) & ~seated
        demand = jnp.where(newcomer & (prefix_sum(newcomer) > seats), 0, demand)
    if view.memory is not None:
        blocks, free = view.memory.entrance(batch.tokens, demand)
        demand = jnp.where((blocks > 0) & (prefix_sum(blocks) > free), 0, demand)

    def served(demand: jax.Array) -> jax.Array:
        upto = prefix_sum(demand)
        if whole:
            return jnp.where(upto <= room, demand, 0)
        return jnp.clip(room - (upto - demand), 0, demand)

    # Often there is room for all, as for decodes.
    given = once(jnp.any(jnp.sum(demand, axis=0) > room), served, demand)
    return Batch(batch.tokens + given)


def choose(condition: jax.Array, yes: Batch, no: Batch) -> Batch:
    """One batch or the other, as a whole.

    Args:
        condition: (...) for each environment; where it holds the batch is ``yes``, elsewhere ``no``.
        yes, no: batches of the same slots, with preemptions or without.
    """
    tokens = jnp.where(condition, yes.tokens, no.tokens)
    if yes.preempt is None and no.preempt is None:
        return Batch(tokens)
    nobody = jnp.zeros(tokens.shape, bool)
    yes_preempt, no_preempt = (nobody if b.preempt is None else b.preempt for b in (yes, no))
    return Batch(tokens, jnp.where(condition, yes_preempt, no_preempt))


@in_32_bits
def longest_unserved(view: View, candidates: jax.Array, count: jax.Array) -> jax.Array:
    """The ``count`` slots of the mask ``candidates`` that were served longest ago, as a mask.

    Ties go in slot order. No sort: the age that separates them is found bit by bit.

    Args:
        view: what the engine shows.
        candidates: (slots, ...) mask.
        count: (...) slots wanted, int32; where there are fewer candidates all of them are chosen.
    """
    age = jnp.where(candidates, view.unserved, -1)

    def at_least(bound: jax.Array) -> jax.Array:
        return jnp.sum((age >= bound).astype(jnp.int32), axis=0)

    def refine(bit: jax.Array, bound: jax.Array) -> jax.Array:
        higher = bound | jnp.left_shift(1, 30 - bit)
        return jnp.where(at_least(higher) >= count, higher, bound)

    highest = jnp.maximum(jax.lax.clz(jnp.max(age)) - 1, 0)  # no age has a bit above
    bound = jax.lax.fori_loop(highest, 31, refine, jnp.zeros_like(count))
    older, equal = age > bound, age == bound
    rest = count - jnp.sum(older.astype(jnp.int32), axis=0)
    return older | (equal & (prefix_sum(equal) <= rest))


@in_32_bits
def oldest_first(
    view: View, batch: Batch, demand: jax.Array, age: jax.Array, token_budget: jax.Array
) -> Batch:
    """Add tokens of ``demand`` (slots,) to a batch, the largest ``age`` first, ties in slot order.

    As ``fill``, but in another order than that of the slots, and still without a sort.

    Args:
        view: what the engine shows.
        batch: what is in the batch already.
        demand: (slots, ...) tokens wanted on top of the batch, int32.
        age: (slots, ...) int32, not negative; any number that says what goes first.
        token_budget: (...) tokens of the whole batch, at most the engine's budget.
    """
    room = jnp.maximum(token_budget - batch.size, 0)
    demand = jnp.minimum(demand, room + 1)
    if view.max_num_seqs is not None:
        seated = (batch.tokens > 0) | view.started if view.resident_limit else batch.tokens > 0
        seats = view.max_num_seqs - jnp.sum(seated.astype(jnp.int32), axis=0)
        newcomer = (demand > 0) & ~seated
        older, equal = oldest(age, newcomer.astype(jnp.int32), seats)
        left = seats - jnp.sum((older & newcomer).astype(jnp.int32), axis=0)
        last = equal & newcomer
        takes_seat = (older & newcomer) | (last & (prefix_sum(last) <= left))
        demand = jnp.where(newcomer & ~takes_seat, 0, demand)
    if view.memory is not None:
        blocks, free = view.memory.entrance(batch.tokens, demand)
        older, equal = oldest(age, blocks, free)
        left = free - jnp.sum(jnp.where(older, blocks, 0), axis=0)
        last = jnp.where(equal, blocks, 0)
        enters = older | (equal & (prefix_sum(last) <= left))
        demand = jnp.where((blocks > 0) & ~enters, 0, demand)
    older, equal = oldest(age, demand, room)
    sure = jnp.where(older, demand, 0)
    last = jnp.where(equal, demand, 0)
    left = room - jnp.sum(sure, axis=0)
    return Batch(batch.tokens + sure + jnp.clip(left - (prefix_sum(last) - last), 0, last))


def oldest(age: jax.Array, weight: jax.Array, room: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which slots fit into the room together with all that are as old or older, and who comes next.

    Args:
        age: (slots, ...) int32, not negative.
        weight: (slots, ...) what a slot takes of the room, int32, not negative.
        room: (...) int32.

    Returns:
        Two masks (slots, ...): the slots that fit, and those of the next lower age, of which not all
        fit (none if everything fits). That age is found bit by bit.
    """

    def fits(bound: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(age >= bound, weight, 0), axis=0) <= room

    def refine(bit: jax.Array, bound: jax.Array) -> jax.Array:
        higher = bound | jnp.left_shift(1, 30 - bit)
        return jnp.where(fits(higher), bound, higher)

    none = jnp.zeros_like(room)
    bound = jnp.where(fits(none), -1, jax.lax.fori_loop(0, 31, refine, none))
    return age > bound, age == bound


def own_budget(view: View, token_budget: jax.Array | int | None) -> jax.Array:
    """The smaller of the engine's token budget and the policy's own, if it has one."""
    if token_budget is None:
        return view.token_budget
    return jnp.minimum(view.token_budget, jnp.asarray(token_budget, jnp.int32))


def feasible(view: View, batch: Batch) -> Batch:
    """What an engine makes of a batch that is within budget and seats.

    KV memory decides who runs and who is preempted; the step then has nothing more to cut. Without KV
    memory it is the batch itself.
    """
    return batch if view.memory is None else clip(view, batch)[0]


@in_32_bits
def clip(view: View, batch: Batch) -> tuple[Batch, jax.Array]:
    """The nearest feasible batch, and whether anything had to be cut.

    A slot gives no more than it has: prompt tokens left, or one token where it decodes (6a, 6c). Where
    seats (k_max) or the token budget (6d) do not suffice, later slots lose first. Where KV memory does
    not suffice, ``preempt`` of the result says who loses it.
    """
    asked = jnp.clip(batch.tokens.astype(jnp.int32), 0, view.demand)
    tokens = asked if batch.preempt is None else jnp.where(batch.preempt, 0, asked)
    budget = view.token_budget

    def excess(tokens: jax.Array) -> jax.Array:
        # Bounded by the budget per slot, so the sum cannot leave 32 bits.
        over = jnp.sum(jnp.minimum(tokens, budget + 1), axis=0) > budget
        if view.max_num_seqs is not None:
            taken = (tokens > 0) | view.started if view.resident_limit else tokens > 0
            over |= jnp.sum(taken.astype(jnp.int32), axis=0) > view.max_num_seqs
        return over

    def cut(tokens: jax.Array) -> jax.Array:
        trimmed = jnp.minimum(tokens, budget + 1)
        return jnp.where(excess(tokens), fill(view, view.empty(), trimmed).tokens, tokens)

    # A loop that rarely runs: a policy that fills with the rules above never exceeds anything.
    tokens = jax.lax.while_loop(lambda t: jnp.any(excess(t)), cut, tokens)
    if view.memory is None:
        return Batch(tokens), jnp.any(tokens != batch.tokens, axis=0)
    if view.memory.pool is not None:  # what fits shows block by block: see ``prefix_cache.serve``
        preempt = jnp.zeros_like(view.live) if batch.preempt is None else batch.preempt
        tokens = jnp.where(preempt, asked, tokens)
        return Batch(tokens, preempt), jnp.any(tokens != batch.tokens, axis=0)
    tokens, preempt = secure(view.memory, tokens, batch.preempt)
    return Batch(tokens, preempt), jnp.any(tokens != batch.tokens, axis=0)
