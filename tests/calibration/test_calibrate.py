"""Calibration: it finds the constants behind measurements, and ranks forms rightly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from measured_batches import MIXED, measured

from llmgym.calibration.calibrate import calibrate
from llmgym.scenario.batch_time import (
    CODELLAMA_34B_A100,
    LLAMA_3_70B,
    MOST_POINTS,
    Affine,
    Attention,
    BatchTime,
    MeasuredTable,
    Staircase,
)
from llmgym.scenario.batch_time_library import PRESETS

TRUTHS: dict[str, BatchTime] = {
    "affine": Affine(12.5, 0.11),
    "hinge": LLAMA_3_70B,
    "staircase": CODELLAMA_34B_A100,
    "roofline": PRESETS["rtx4090-llama-3.1-8b"],
    "mixed": MIXED,
    "table": MeasuredTable((1, 32, 64, 256, 600, 1300), (10.0, 11.0, 30.0, 32.0, 70.0, 71.0)),
}


def constants(model: BatchTime) -> list[float]:
    return list(vars(model).values())


@pytest.mark.parametrize("name", [name for name in TRUTHS if name != "table"])
def test_constants_are_recovered_without_noise(name: str) -> None:
    truth = TRUTHS[name]
    best = calibrate(measured(truth)).best
    assert type(best.model) is type(truth)
    assert constants(best.model) == pytest.approx(constants(truth), rel=1e-5)
    assert (best.r2, best.mape, best.largest_ms) == pytest.approx((1, 0, 0), abs=1e-3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", TRUTHS)
def test_the_true_form_is_ranked_first_in_spite_of_noise(name: str, seed: int) -> None:
    truth = TRUTHS[name]
    found = calibrate(measured(truth, noise=0.03, size=400, seed=10 * seed))
    assert found.best.form == truth.kind
    frame = measured(truth, size=50, seed=99)
    read = Attention(frame["decode_context"].to_numpy(), frame["prefill_pairs"].to_numpy())
    guess = found.best.model.ms(frame["tokens"].to_numpy(), read)
    limit = 0.15 if name == "table" else 0.05
    assert np.quantile(np.abs(guess / frame["ms"] - 1), 0.9) < limit


@pytest.mark.parametrize("name", ["affine", "staircase", "mixed"])
def test_constants_are_close_with_noise(name: str) -> None:
    best = calibrate(measured(TRUTHS[name], noise=0.02, size=2000)).best
    for found, true in zip(constants(best.model), constants(TRUTHS[name]), strict=True):
        assert found == pytest.approx(true, rel=0.1)


def test_the_figures_are_what_they_are_called() -> None:
    frame = measured(MIXED, noise=0.05)
    for fit in calibrate(frame).fits:
        read = Attention(frame["decode_context"].to_numpy(), frame["prefill_pairs"].to_numpy())
        error = fit.model.ms(frame["tokens"].to_numpy(), read) - frame["ms"].to_numpy()
        assert fit.r2 == pytest.approx(1 - np.mean(error**2) / np.var(frame["ms"]))
        assert fit.mape == pytest.approx(np.mean(np.abs(error) / frame["ms"]))
        assert fit.largest_ms == pytest.approx(np.abs(error).max())
        assert fit.cv_ms > 0.9 * np.sqrt(np.mean(error**2))


def test_the_order_is_by_the_error_on_unseen_sizes() -> None:
    found = calibrate(measured(MIXED, noise=0.05))
    errors = [fit.cv_ms for fit in found.fits]
    assert found.best.form == "roofline"
    assert errors[1:] == sorted(errors[1:])
    again = calibrate(measured(MIXED, noise=0.05))
    assert [fit.record() for fit in again.fits] == [fit.record() for fit in found.fits]


def test_forms_that_do_alike_are_ordered_by_their_constants() -> None:
    found = calibrate(measured(Affine(12.5, 0.11)))
    assert [(fit.form, fit.constants) for fit in found.fits[:3]] == [
        ("affine", 2),
        ("hinge", 3),
        ("roofline", 6),
    ]


def test_repeats_do_not_make_a_table_look_good() -> None:
    """Ten repeats of each size: were some of them left out alone, the table would know the others."""
    frame = pd.concat([measured(Staircase(5.0, 20.0, 64), size=40)] * 10)
    frame["ms"] += np.random.default_rng(0).normal(0, 0.1, len(frame))
    fits = {fit.form: fit for fit in calibrate(frame).fits}
    assert fits["table"].largest_ms < 5
    assert fits["table"].cv_ms > 5 * fits["staircase"].cv_ms


def test_a_table_holds_the_medians() -> None:
    frame = pd.DataFrame({"tokens": [4, 4, 4, 9, 9, 2, 2, 2], "ms": [5, 6, 90, 7, 8, 3, 1, 2]})
    assert calibrate(frame).fit("table").model == MeasuredTable((2, 4, 9), (2.0, 6.0, 7.5))


def test_a_table_of_many_sizes_has_few_points() -> None:
    tokens = np.arange(1, 1001)
    frame = pd.DataFrame({"tokens": tokens, "ms": 5 + 0.1 * tokens})
    table = calibrate(frame).fit("table").model
    assert isinstance(table, MeasuredTable)
    assert len(table.tokens) == MOST_POINTS
    assert (table.tokens[0], table.tokens[-1]) == (1, 1000)
    np.testing.assert_allclose(table.ms(tokens), frame["ms"], atol=0.06)


@pytest.mark.parametrize("tile", [16, 32, 64, 96, 128, 192, 256])
def test_the_tile_is_found_or_given(tile: int) -> None:
    frame = measured(Staircase(5.0, 20.0, tile), noise=0.002)
    assert calibrate(frame).best.model.period == tile
    other = calibrate(frame, tile=80).fit("staircase")
    assert (other.model.period, other.constants) == (80, 2)


def test_a_tile_is_not_read_out_of_sizes_that_do_not_show_it() -> None:
    """Multiples of 256 tokens alone fit steps of 16 tokens as well as steps of 256."""
    tokens = 256 * np.arange(1, 9)
    found = calibrate(pd.DataFrame({"tokens": tokens, "ms": 5 + 0.1 * tokens}))
    assert found.best.form == "affine"
    assert found.fit("staircase").model.period == 16


@pytest.mark.parametrize(
    ("change", "notes", "left_out"),
    [
        (
            {"decode_context": 0.0},
            ["decode_context does not vary: the roofline is fitted without kv_ms_per_kilotoken."],
            {"kv_ms_per_kilotoken", "mixed_ms_per_kilotoken"},
        ),
        (
            {"prefill_pairs": 7e6},
            ["prefill_pairs does not vary: the roofline is fitted without prefill_ms_per_megapair"],
            {"prefill_ms_per_megapair", "mixed_ms_per_kilotoken"},
        ),
        (
            {"decode_context": lambda frame: 512 * frame["tokens"]},
            ["decode_context moves in step with the others: the roofline is fitted without kv_"],
            {"kv_ms_per_kilotoken"},
        ),
        (
            {"prefill_pairs": lambda frame: 1 + frame["prefill_pairs"]},
            [
                "decode_context of mixed batches moves in step with the others: the roofline is fitted"
            ],
            {"mixed_ms_per_kilotoken"},
        ),
        ({}, [], set()),
    ],
)
def test_terms_without_variation_are_left_out(
    change: dict[str, Any], notes: list[str], left_out: set[str]
) -> None:
    found = calibrate(measured(MIXED).assign(**change))
    assert len(found.notes) == len(notes)
    assert all(note.startswith(start) for note, start in zip(found.notes, notes, strict=True))
    fit = found.fit("roofline")
    assert fit.constants == 6 - len(left_out)
    assert all(getattr(fit.model, name) == 0 for name in left_out)


def test_attention_is_optional() -> None:
    frame = measured(LLAMA_3_70B)[["tokens", "ms"]]
    found = calibrate(frame)
    assert [note.split()[0] for note in found.notes] == ["decode_context", "prefill_pairs"]
    assert [fit.form for fit in found.fits[:2]] == ["hinge", "roofline"]
    assert constants(found.fits[1].model)[:3] == pytest.approx(constants(LLAMA_3_70B))
