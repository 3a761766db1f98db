"""Scenario files hold every scenario, to the bit, and are written whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from random_scenarios import ARGUMENTS, KINDS, PLAIN, networks, same, scenarios

from llmgym.core.errors import LLMGymError
from llmgym.scenario.batch_time import Hinge
from llmgym.scenario.engine import Engine
from llmgym.scenario.lengths import LENGTHS, Fixed
from llmgym.scenario.replay import Replay
from llmgym.scenario.toml_reader import load, loads
from llmgym.scenario.toml_writer import dumps, save


@settings(max_examples=60, deadline=None)
@given(networks())
def test_round_trip_of_a_network(drawn):
    text = dumps(drawn)
    assert same(loads(text), drawn)
    assert dumps(loads(text)) == text


def test_every_kind_is_drawn():
    assert KINDS.keys() == ARGUMENTS.keys()


@settings(max_examples=150, deadline=None)
@given(scenarios())
def test_round_trip(drawn):
    text = dumps(drawn)
    assert same(loads(text), drawn)
    assert dumps(loads(text)) == text


def test_a_change_is_seen():
    """The equality of the round trip can fail."""
    assert not same(PLAIN.override(slots=9), PLAIN)
    assert not same(Replay([0.0], [1], [1]), Replay([0.0], [1], [2]))


def test_lists_are_wrapped():
    text = dumps(PLAIN.override(prefill_tokens=LENGTHS["empirical"](range(100))))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) < 45


def test_numpy_and_jax_numbers_are_written():
    odd = PLAIN.override(token_budget=np.int64(256), batch_time=Hinge(jnp.float32(2.5), 1, 64.0))
    engine = loads(dumps(odd)).engine
    assert same(engine, Engine(Hinge(2.5, 1, 64), 256))
    assert type(engine.batch_time.free_tokens) is int


def test_unregistered_class_is_refused():
    @dataclass(frozen=True)
    class Mine(Fixed):
        pass

    with pytest.raises(LLMGymError, match=r"Mine cannot be written to TOML; .*fixed, geometric"):
        dumps(PLAIN.override(prefill_tokens=Mine(3)))


def test_save_and_load(tmp_path):
    path = tmp_path / "s.toml"
    save(PLAIN, path)
    save(PLAIN.override(slots=99, description="naïve"), path)
    assert same(load(path), PLAIN.override(slots=99, description="naïve"))
    assert [p.name for p in tmp_path.iterdir()] == ["s.toml"]


def test_save_writes_all_or_nothing(tmp_path):
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "file").write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    for target in ("folder.toml", "file/s.toml", "none/s.toml", "a\0b.toml"):
        with pytest.raises(LLMGymError, match="Cannot write"):
            save(PLAIN, tmp_path / target)
    with pytest.raises(LLMGymError, match="Cannot write"):
        save(PLAIN.override(name="\ud800"), tmp_path / "file")  # no UTF-8 for half a character
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "kept"


def test_unreadable_files(tmp_path):
    (tmp_path / "s.toml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "s.toml", tmp_path / "no.toml", tmp_path):
        with pytest.raises(LLMGymError, match=f"Cannot read scenario {path}"):
            load(path)
