"""The stronger baselines: their rules on hand-made views, and their settings."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from views import Slot, decoding, paused, show, tokens, waiting

from llmgym import baselines
from llmgym.baselines.exclusive_batching import theta_0
from llmgym.core.errors import LLMGymError
from llmgym.scenario.batch_time import Roofline


def test_slai_takes_critical_decodes_then_paused_then_new_prefills_then_the_others() -> None:
    # TBT 100, batches of 10 ms, offset 5: critical from 50 ms without service.
    slots = [waiting(30), decoding(unserved=49), paused(20, 60), decoding(unserved=50)]
    rule = {"tbt_ms": 100.0, "offset": 5.0}
    assert tokens("slai", show(slots, budget=1), **rule) == [0, 0, 0, 1]
    assert tokens("slai", show(slots, budget=10), **rule) == [0, 0, 9, 1]
    assert tokens("slai", show(slots, budget=51), **rule) == [30, 0, 20, 1]
    assert tokens("slai", show(slots, budget=52), **rule) == [30, 1, 20, 1]


def test_slai_serves_the_tightest_class_and_the_longest_unserved_decode_first() -> None:
    slots = [decoding(unserved=60), decoding(unserved=90), decoding(unserved=40, job_class=1)]
    rule = {"tbt_ms": (100, 40), "offset": 0.0}
    assert tokens("slai", show(slots, budget=1, classes=2), **rule) == [0, 0, 1]
    assert tokens("slai", show(slots, budget=2, classes=2), **rule) == [0, 1, 1]
    assert tokens("slai", show(slots, classes=2), max_decodes=2, **rule) == [0, 1, 1]
    with pytest.raises(LLMGymError, match="2 entries, and the scenario has 1 classes"):
        tokens("slai", show(slots), **rule)


def test_slai_makes_decodes_critical_earlier_where_memory_is_scarce() -> None:
    slots = [waiting(30), decoding(prompt=79, generated=1, unserved=30)]
    rule = {"tbt_ms": 100.0, "offset": 5.0, "scarce_offset": 8.0, "memory_limit": 0.8}
    assert tokens("slai", show(slots, budget=1, blocks=101), **rule) == [1, 0]
    assert tokens("slai", show(slots, budget=1, blocks=100), **rule) == [0, 1]


def test_slai_can_take_new_prompts_shortest_first() -> None:
    slots = [waiting(30), waiting(8)]
    assert tokens("slai", show(slots, budget=10)) == [10, 0]
    assert tokens("slai", show(slots, budget=10), prefill_order="shortest") == [2, 8]


def test_spf_takes_the_shortest_remaining_prompt_unless_another_has_aged() -> None:
    slots = [waiting(40, waited=25), decoding(), waiting(20), paused(19, 90)]
    assert tokens("spf", show(slots, budget=20), ageing=0.0) == [0, 1, 0, 19]
    assert tokens("spf", show(slots, budget=20), ageing=1.0) == [19, 1, 0, 0]
    assert tokens("spf", show(slots, budget=50), ageing=0.5) == [10, 1, 20, 19]


def test_srpt_counts_prompt_and_output_left() -> None:
    slots = [decoding(left=30), waiting(10, left=19), paused(5, 50, left=25)]
    assert tokens("srpt", show(slots, budget=1, known=True)) == [0, 1, 0]
    assert tokens("srpt", show(slots, budget=10, known=True)) == [0, 10, 0]
    # Both 30 left: the earlier arrival.
    assert tokens("srpt", show(slots, budget=11, known=True)) == [1, 10, 0]
    late = [waiting(2, left=1), decoding(generated=20, left=5)]
    assert tokens("srpt", show(late, budget=1, known=True)) == [1, 0]
    assert tokens("srpt", show(late, budget=1, known=True), preemptible=0.8) == [0, 1]


@pytest.mark.parametrize("name", ["srpt", "mc_sf"])
def test_policies_that_must_know_lengths_say_so(name: str) -> None:
    with pytest.raises(LLMGymError, match="lengths_known=True"):
        tokens(name, show([waiting(3)]))


def test_las_takes_the_least_served() -> None:
    slots = [decoding(prompt=5, generated=3), paused(50, 57), waiting(4)]
    assert tokens("las", show(slots, budget=3)) == [0, 0, 3]
    assert tokens("las", show(slots, budget=10)) == [0, 6, 4]
    assert tokens("las", show(slots, budget=55)) == [1, 50, 4]
    # A request that lost its memory is to compute its outputs again: it has had no service.
    lost = [paused(50, 57), Slot(9, 5, generated=4, started=False)]
    assert tokens("las", show(lost, budget=5)) == [0, 5]


def test_edf_orders_by_deadline_and_puts_the_late_last() -> None:
    # Time left: 60, 10, 30 (no output yet: the target of the first token), and 20 too late.
    slots = [
        waiting(9, waited=140),
        decoding(unserved=40),
        decoding(generated=0, waited=170, unserved=99),
        waiting(9, waited=220),
    ]
    rule = {"ttft_ms": 200.0, "tbt_ms": 50.0}
    assert tokens("edf", show(slots, budget=1), **rule) == [0, 1, 0, 0]
    assert tokens("edf", show(slots, budget=2), **rule) == [0, 1, 1, 0]
    assert tokens("edf", show(slots, budget=12), **rule) == [9, 1, 1, 1]
    assert tokens("edf", show(slots, budget=12), relegate=False, **rule) == [1, 1, 1, 9]


def test_llf_subtracts_the_time_that_is_needed() -> None:
    # Batches of 10 ms and 20 tokens; the long prompt needs 5 of them.
    slots = [waiting(10, waited=50), waiting(90, waited=20)]
    rule = {"ttft_ms": 100.0}
    assert tokens("edf", show(slots, budget=20), **rule) == [10, 10]
    assert tokens("llf", show(slots, budget=20), **rule) == [0, 20]
    # 20 ms later it cannot be in time any more.
    later = [waiting(10, waited=70), waiting(90, waited=51)]
    assert tokens("llf", show(later, budget=20), **rule) == [10, 10]


def test_exclusive_batching_waits_for_k_free_slots_and_then_fills_all() -> None:
    rule = {"k": 2}
    one_free = [decoding(), decoding(), waiting(7), waiting(8)]
    assert tokens("exclusive_batching", show(one_free, seats=3), **rule) == [1, 1, 0, 0]
    assert tokens("exclusive_batching", show(one_free, seats=4), **rule) == [0, 0, 7, 8]
    # The first batch of prefill was cut at the budget: the phase goes on, though one slot is free.
    middle = [decoding(unserved=10), paused(3, 7), waiting(8)]
    assert tokens("exclusive_batching", show(middle, seats=3), **rule) == [0, 3, 8]
    # It ended with a prompt: a decode that was left out shows that it was prefill.
    whole = [decoding(unserved=10), decoding(generated=0), waiting(8)]
    assert tokens("exclusive_batching", show(whole, seats=3), **rule) == [0, 0, 8]
    assert tokens("exclusive_batching", show(whole, seats=2), **rule) == [1, 1, 0]


def test_exclusive_batching_finds_k_from_its_equation() -> None:
    theta = float(theta_0(1 / 64))
    assert theta / (1 - theta) + np.log(1 - theta) == pytest.approx(1 / 64, rel=1e-3)
    assert float(theta_0(1e-6)) == pytest.approx(np.sqrt(2e-6), rel=0.05)  # theta^2 / 2 is left
    policy = baselines.make("exclusive_batching", mean_output=64.0)
    view = show([waiting(3)], seats=100)
    assert int(policy.threshold(view, jnp.int32(100))) == int(theta * 100)
    costly = baselines.make("exclusive_batching", mean_output=64.0, alpha_ratio=4.0)
    assert int(costly.threshold(view, jnp.int32(100))) > int(theta * 100)


def test_exclusive_batching_plus_mixes_where_mixing_is_cheap() -> None:
    slots = [decoding(), decoding(), waiting(7), waiting(8)]
    view = show(slots, seats=8)
    rule = {"mean_prompt": 100.0, "mean_output": 64.0}
    policy = baselines.make("exclusive_batching_plus", **rule)
    k = int(policy.threshold(view, jnp.int32(8)))
    zeta = -np.log(1 - k / 8)
    gain = 10 * ((1 + zeta * 64) / k - 65 / 8) / 164
    for factor, mixed in ((0.99, [1, 1, 7, 8]), (1.01, [0, 0, 7, 8])):
        got = tokens("exclusive_batching_plus", view, mixing_ms_per_token=factor * gain, **rule)
        assert got == mixed
    # What the batch time charges for mixing: k_mix * mu_O * (mu_L + mu_O / 2) / 1000 a request.
    for factor, mixed in ((0.99, [1, 1, 7, 8]), (1.01, [0, 0, 7, 8])):
        extra = factor * gain * 164 / (64 * 132 / 1000)
        engine = Roofline(10.0, 0.0, 0, mixed_ms_per_kilotoken=extra)
        view = show(slots, seats=8, batch_time=engine)
        assert tokens("exclusive_batching_plus", view, **rule) == mixed


def test_wait_runs_when_a_type_has_gathered_its_threshold() -> None:
    # o_j = 9, two types alike, L = 40: L_j = 20 and n_j = 2.
    rule = {"limit": 40}
    few = [decoding(), waiting(3), waiting(4, job_class=1)]
    assert tokens("wait", show(few, classes=2), **rule) == [0, 0, 0]
    ready = [*few, waiting(5), waiting(6)]
    assert tokens("wait", show(ready, classes=2), **rule) == [1, 3, 0, 5, 0]
    assert tokens("wait", show(ready, classes=2), start="all", **rule) == [0] * 5
    both = [*ready, waiting(7, job_class=1)]
    assert tokens("wait", show(both, classes=2), start="all", **rule) == [1, 3, 4, 5, 0, 7]
    # Three of four requests are of the second type: thresholds 1 and 3.
    assert tokens("wait", show(few, classes=2), rates=(1, 3), **rule) == [1, 3, 0]


def test_wait_ends_after_its_timeout_and_where_there_is_no_room() -> None:
    late = [decoding(unserved=20), waiting(3), waiting(4, job_class=1)]
    assert tokens("wait", show(late, classes=2), limit=40, timeout_ms=21.0) == [0, 0, 0]
    assert tokens("wait", show(late, classes=2), limit=40, timeout_ms=20.0) == [1, 3, 4]
    full = [decoding(), decoding(), waiting(3)]
    assert tokens("wait", show(full), limit=2) == [1, 1, 0]


def test_mlfq_skips_queues_by_prompt_and_demotes_by_service() -> None:
    # Prompts of 4, 3 and 1 iterations join queues 2, 2 and 0; one of 2 iterations joins queue 1.
    slots = [waiting(40), waiting(21), waiting(9)]
    assert tokens("mlfq", show(slots, budget=10)) == [1, 0, 9]
    assert tokens("mlfq", show([*slots, waiting(20)], budget=10)) == [0, 0, 9, 1]
    # Queue 0 takes 1 iteration and queue 1 two more: after 3 and 2 they are in queues 2 and 1.
    served = [decoding(prompt=10, generated=2), decoding(prompt=10, generated=1), waiting(11)]
    assert tokens("mlfq", show(served, budget=10)) == [0, 1, 9]
    assert tokens("mlfq", show(served, budget=10), quantum=4) == [1, 1, 8]
    assert tokens("mlfq", show(served, budget=10), levels=2) == [1, 1, 8]
    starving = [decoding(prompt=10, generated=2, unserved=70), waiting(1)]
    assert tokens("mlfq", show(starving, budget=1), starve_ms=70.0) == [1, 0]
    assert tokens("mlfq", show(starving, budget=1), starve_ms=71.0) == [0, 1]


def test_rad_prefills_by_the_tile_until_a_tile_of_decodes_is_there() -> None:
    slots = [decoding(unserved=1), decoding(unserved=2), waiting(7), decoding(unserved=3)]
    assert tokens("rad", show(slots), tile=4, b_col=4) == [0, 0, 4, 0]
    assert tokens("rad", show(slots), tile=4, b_col=3) == [1, 1, 0, 1]
    assert tokens("rad", show(slots), tile=4, b_col=2) == [0, 1, 0, 1]  # one tile, in turn
    assert tokens("rad", show([slots[0], slots[1]]), tile=4, b_col=4) == [1, 1]  # no prompts
    assert tokens("rad", show([slots[0], waiting(7)], seats=1), tile=4) == [1, 0]  # no seat


def test_mc_sf_admits_the_shortest_outputs_whose_peaks_fit() -> None:
    # In memory 10 tokens with 2 to come: 12 at t = 2. Then 6 + 4 = 10 at t = 4, alone.
    slots = [decoding(prompt=9, generated=1, left=2), waiting(6, left=4), waiting(3, left=8)]
    # At t = 2 there are 12 + 8 = 20; with the third also 12 + 8 + 5 = 25, later less.
    assert tokens("mc_sf", show(slots, blocks=19, known=True)) == [1, 0, 0]
    assert tokens("mc_sf", show(slots, blocks=20, known=True)) == [1, 6, 0]
    assert tokens("mc_sf", show(slots, blocks=24, known=True)) == [1, 6, 0]
    assert tokens("mc_sf", show(slots, blocks=25, known=True)) == [1, 6, 3]
    assert tokens("mc_sf", show(slots, blocks=25, known=True), protection=0.2) == [1, 6, 0]
    assert tokens("mc_sf", show(slots, known=True)) == [1, 6, 3]
    # The first that does not fit ends the admission, in order of output.
    order = [slots[0], waiting(3, left=8), waiting(9, left=4)]
    assert tokens("mc_sf", show(order, blocks=20, known=True)) == [1, 0, 0]


def test_nobody_in_memory_never_stops_mc_sf() -> None:
    slots = [waiting(6, left=4), waiting(3, left=8)]
    assert tokens("mc_sf", show(slots, blocks=12, known=True), protection=0.9) == [6, 0]


@pytest.mark.parametrize("name", ["spf", "mlfq"])
def test_requests_in_memory_run_where_the_chosen_find_no_room(name: str) -> None:
    # The short prompt goes first, but the paused one may have left it 8 blocks, where it needs 9.
    slots = [paused(30, 60, unserved=5), waiting(9)]
    view = show(slots, budget=9, blocks=39)
    assert tokens(name, view) == [0, 9]
    tight = show(slots, budget=9, blocks=38)
    assert tokens(name, tight) == [9, 0]


@pytest.mark.parametrize(
    ("name", "chosen", "message"),
    [
        ("slai", {"tbt_ms": float("nan")}, "tbt_ms must be finite"),
        ("slai", {"tbt_ms": 0}, "tbt_ms must be greater than 0"),
        ("slai", {"tbt_ms": (100, -1)}, r"tbt_ms\[1\] must be greater than 0"),
        ("slai", {"tbt_ms": []}, "list is empty"),
        ("slai", {"tbt_ms": "fast"}, "must be a number"),
        ("slai", {"offset": -1}, "offset must be at least 0"),
        ("slai", {"memory_limit": 1.5}, "at most 1"),
        ("slai", {"max_decodes": 0}, "at least 1"),
        ("slai", {"prefill_order": "short"}, "Did you mean 'shortest'"),
        ("slai", {"ofset": 1}, "Did you mean 'offset'"),
        ("rad", {"tile": 0}, "at least 1"),
        ("rad", {"b_col": 1.5}, "whole number"),
        ("exclusive_batching", {"k": 0}, "at least 1"),
        ("exclusive_batching", {"mean_output": 0}, "greater than 0"),
        ("exclusive_batching", {"alpha_ratio": float("inf")}, "finite"),
        ("exclusive_batching_plus", {"mixing_ms_per_token": float("nan")}, "finite"),
        ("exclusive_batching_plus", {"mean_prompt": -3}, "greater than 0"),
        ("wait", {"start": "al"}, "Did you mean 'all'"),
        ("wait", {"limit": 0}, "at least 1"),
        ("wait", {"rates": (1.0, float("nan"))}, r"rates\[1\] must be finite"),
        ("wait", {"timeout_ms": 0}, "greater than 0"),
        ("nested_wait", {"cuts": ()}, "must be a list of numbers"),
        ("nested_wait", {"cuts": 50}, "must be a list of numbers"),
        ("nested_wait", {"cuts": (50, 50)}, "does not exceed the one before"),
        ("nested_wait", {"cuts": (0, 50)}, r"cuts\[0\] must be at least 1"),
        ("nested_wait", {"cuts": (1.5,)}, "whole number"),
        ("nested_wait", {"reach": (1.0,)}, "one share for each of the cuts"),
        ("nested_wait", {"cuts": (5, 9), "reach": (1.0,)}, "one share for each of the cuts"),
        ("nested_wait", {"cuts": (5, 9), "reach": (0.5, 1.0)}, "exceeds the one before"),
        ("nested_wait", {"cuts": (5, 9), "reach": (1.0, 0.0)}, "greater than 0"),
        ("nested_wait", {"limit": 0}, "at least 1"),
        ("nested_wait", {"rates": -1}, "greater than 0"),
        ("nested_wait", {"timeout_ms": float("inf")}, "finite"),
        ("flow_control", {"activations": 0}, "greater than 0"),
        ("flow_control", {"activations": (4, float("nan"))}, r"activations\[1\] must be finite"),
        ("flow_control", {"activations": "four"}, "must be a number"),
        ("flow_control_eviction", {"activations": -1}, "greater than 0"),
        ("flow_control_eviction", {"activations": (4, 4)}, "must be one number"),
        ("mc_sf", {"protection": -0.1}, "at least 0"),
        ("spf", {"ageing": float("nan")}, "finite"),
        ("spf", {"ageing": -1}, "at least 0"),
        ("srpt", {"preemptible": 2}, "at most 1"),
        ("las", {"token_budget": 0}, "at least 1"),
        ("edf", {"ttft_ms": -5}, "greater than 0"),
        ("edf", {"relegate": 1}, "True or False"),
        ("llf", {"tbt_ms": None}, "must be a number"),
        ("mlfq", {"quantum": 0}, "at least 1"),
        ("mlfq", {"levels": 99}, "at most 16"),
        ("mlfq", {"starve_ms": float("inf")}, "finite"),
    ],
)
def test_bad_settings_are_refused(name: str, chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(LLMGymError, match=message):
        baselines.make(name, **chosen)
