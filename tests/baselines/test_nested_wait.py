"""Nested WAIT: which segments run, who of them, and that nothing stands still."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from views import KEY, Slot, decoding, paused, show, tokens, waiting

from llmgym import baselines
from llmgym.core.errors import LLMGymError
from llmgym.engine.view import View

# Segments of 4 and 3 stages with work 4 and 1.5: of 11 requests L = (8, 3) and n = (2, 1).
RULE: dict[str, Any] = {"cuts": (3, 6), "reach": (1.0, 0.5), "limit": 11}


def nested(slots: list[Slot], rule: dict[str, Any] | None = None, **view: Any) -> list[int]:
    """Tokens of Nested WAIT."""
    return tokens("nested_wait", show(slots, **view), **(rule or RULE))


def past(generated: int, **fields: Any) -> Slot:
    """A request that has made so many outputs."""
    return decoding(generated=generated, **fields)


def test_segments_run_in_order_up_to_the_first_that_has_not_gathered_its_threshold() -> None:
    inside = [past(3), past(2), past(4), paused(5, 9), waiting(6)]
    assert nested(inside) == [0, 0, 0, 0, 0]  # one newcomer where two are asked for
    assert nested([*inside, waiting(7)]) == [1, 1, 1, 5, 6, 7]
    assert nested([*inside, waiting(7), waiting(8)]) == [1, 1, 1, 5, 6, 7, 0]
    # Twice the limit, L = (16, 6) and n = (4, 2): the second segment waits for another to come.
    rule = RULE | {"limit": 22}
    four = [waiting(6), waiting(7), waiting(8), waiting(9)]
    assert nested([past(3), past(2), past(4), *four], rule) == [0, 1, 0, 6, 7, 8, 9]
    both = [past(3), past(3), past(2), past(4), past(3), *four]
    assert nested(both, rule) == [1, 1, 1, 1, 0, 6, 7, 8, 9]


def test_a_full_segment_runs_without_newcomers() -> None:
    full = [past(1) for _ in range(8)]
    assert nested([*full, waiting(6)]) == [1] * 8 + [0]
    assert nested([*full[1:], waiting(6), waiting(7)]) == [1] * 7 + [6, 0]
    assert nested([*full[2:], waiting(6)]) == [0] * 6 + [0]  # room for two
    # The second segment is full as well: nobody of those at its entrance goes in.
    later = [past(5) for _ in range(3)]
    assert nested([*full, *later, past(3)]) == [1] * 11 + [0]


def test_outputs_beyond_the_last_cut_stay_in_the_last_segment() -> None:
    assert nested([past(99), past(6), waiting(5), waiting(6), past(3)]) == [1, 1, 5, 6, 1]


def test_who_lost_its_memory_enters_the_first_segment_again() -> None:
    lost = Slot(prefill=14, prompt=10, generated=4, started=False)
    assert nested([lost, waiting(6), past(3)]) == [14, 6, 1]
    back = Slot(prefill=3, prompt=10, generated=4)
    assert nested([back, waiting(6), waiting(7)]) == [3, 6, 7]


def test_cuts_and_shares_come_from_the_classes() -> None:
    # Equal rates, mean outputs 6 and 3: half of the requests pass the cut at 3, as in RULE.
    slots = [past(3), past(2), past(4), waiting(6), waiting(7)]
    means = {"classes": 2, "mean_decode": jnp.array([6.0, 3.0])}
    for some in (slots, slots[:-1]):
        assert nested(some, {"limit": 11}, **means) == nested(some)
    # Nine in ten are short: work 4 and 0.3, L = (10, 1).
    rule = {"limit": 11, "rates": (1, 9)}
    assert nested([past(4), past(3), *slots[-2:]], rule, **means) == [0, 0, 0, 0]
    three = [past(4), past(3), waiting(5), *slots[-2:]]
    assert nested(three, rule, **means) == [1, 0, 5, 6, 7]
    # Of equal means the segment between them is empty, and stops nobody.
    same = {"classes": 3, "mean_decode": jnp.array([3.0, 6.0, 2.5])}
    assert nested([past(3), waiting(6), waiting(7)], {"limit": 11}, **same) == [1, 6, 7]
    with pytest.raises(LLMGymError, match="3 entries, and the scenario has 2 classes"):
        nested(slots, {"rates": (1, 2, 3)}, **means)


def test_the_timeout_ends_every_wait_that_limits_allow() -> None:
    late = [past(3), past(3), past(2), past(3, unserved=20), past(3), waiting(6)]
    rule = RULE | {"limit": 22}  # the entrance of the second segment lets two in
    assert nested(late, rule | {"timeout_ms": 20.0}) == [0, 0, 0, 0, 0, 0]
    at_the_door = [past(3, unserved=20), *late[1:]]
    assert nested(at_the_door, rule | {"timeout_ms": 21.0}) == [0, 0, 0, 0, 0, 0]
    assert nested(at_the_door, rule | {"timeout_ms": 20.0}) == [1, 1, 1, 0, 0, 6]


def test_who_holds_memory_runs_where_nobody_else_can() -> None:
    # The one past the entrance is the last in memory, which has no block left for its token.
    rule = RULE | {"limit": 22}
    slots = [past(3), past(1), waiting(5), waiting(5), waiting(5), waiting(5)]
    assert nested(slots, rule, blocks=25)[:2] == [0, 1]
    assert nested(slots, rule, blocks=24)[:2] == [1, 1]


ROWS, LIMITS, TIMEOUT = 16, (1, 5, 11, 22, 40), 50
EVERY = [
    baselines.make("nested_wait", **RULE | {"limit": n, "timeout_ms": TIMEOUT}) for n in LIMITS
]


@jax.jit
def all_limits(view: View) -> jax.Array:
    """Tokens under every limit (limits, slots)."""
    return jnp.stack([policy(KEY, view).tokens for policy in EVERY])


def plain_reading(generated: list[int], new: int, limit: int, late: bool) -> list[int]:
    """Who runs, of requests with these outputs and then so many newcomers."""
    count = len(generated) + new
    allowed, runs, go = [0] * count, [0] * count, True
    for segment, (low, high, stages, work) in enumerate([(-1, 3, 4, 4.0), (3, 99, 3, 1.5)]):
        share = max(1, int(limit * work / 5.5 + 1e-4))
        inside = [i for i, g in enumerate(generated) if low < g < high]
        door = [i for i, g in enumerate(generated) if g == low]
        if segment == 0:
            door = list(range(len(generated), count))
        take = min(-(-share // stages), max(share - len(inside), 0))
        go = go and len(door) >= take
        for i in inside + door[:take]:
            allowed[i], runs[i] = 1, int(go)
    return allowed if late and any(allowed[: len(generated)]) else runs


@given(
    generated=st.lists(st.integers(0, 9), max_size=10),
    new=st.integers(0, 6),
    late=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_batches_are_those_of_a_plain_reading(generated: list[int], new: int, late: bool) -> None:
    slots = [past(g, unserved=TIMEOUT * late) for g in generated] + [waiting(2)] * new
    rest = [Slot(left=0, started=False)] * (ROWS - len(slots))
    found = np.asarray(all_limits(show([*slots, *rest])))[:, : len(slots)] > 0
    for limit, row in zip(LIMITS, found, strict=True):
        assert row.astype(int).tolist() == plain_reading(generated, new, limit, late)
