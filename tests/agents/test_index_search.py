"""The tile index and its search: the rule by hand, trials against simulate, reproducible searches."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import llmgym
from llmgym import Geometric, Poisson, Scenario, Staircase, baselines, cli, simulate
from llmgym.agents import index_search
from llmgym.agents.index_search import SearchResult, Settings, blank, search, vary
from llmgym.agents.trials import Figures, measure
from llmgym.baselines.index import PARAMETERS, Index
from llmgym.baselines.tiles import admissible_prefill
from llmgym.core.errors import LLMGymError
from llmgym.scenario import toml_writer
from llmgym.scenario.stage import Stage
from llmgym.scenario.workload import JobType
from llmgym.theory.capacity import capacity

TILE, TILES = 4, 3
TIME = Staircase(10.0, 20.0, TILE)


Case = tuple[int, list[int], float]
"""Decodes, prompts that wait, and age of the first of them in seconds."""


def engine_view(cases: list[Case], **limits: Any) -> Any:
    """As much of a view as the index needs, a column for each case: decodes, then prompts."""
    shape = (16, len(cases))
    prefill, running, waited = np.zeros(shape, int), np.zeros(shape, bool), np.zeros(shape)
    for n, (decodes, prompts, age_s) in enumerate(cases):
        running[:decodes, n], waited[:decodes, n] = True, 9.9
        prefill[decodes : decodes + len(prompts), n] = prompts
        waited[decodes, n] = age_s
    return SimpleNamespace(
        prefill=jnp.asarray(prefill, jnp.int32),
        decode=jnp.asarray(running, jnp.int32),
        decoding=jnp.asarray(running),
        started=jnp.asarray(running),
        waited=jnp.asarray(waited * 1000 / 0.01, jnp.int32),
        tick_ms=jnp.float32(0.01),
        batch_time=TIME,
        max_num_seqs=limits.get("seats"),
        resident_limit=limits.get("resident", False),
    )


def tiles(policy: Any, view: Any) -> list[int]:
    most = jnp.full(view.prefill.shape[1:], TILES)
    return policy.tiles(view, jnp.int32(TILE), most).tolist()


def by_hand(rule: Index, decodes: int, prefill: int, age: float) -> int:
    """The definition, in Python."""
    weight = (
        rule.prefill_weight
        + rule.age_weight * age
        + rule.urgency_weight * age**2
        + rule.backlog_weight * prefill / TILE
        + rule.decode_weight * decodes / TILE
    )

    def index(k: int) -> float:
        tokens = min(decodes + prefill, k * TILE)
        held = min(decodes, tokens)
        time = float(TIME.ms(max(tokens, 1)))
        return (held + weight * (tokens - held)) / time**rule.power

    return max(range(1, TILES + 1), key=lambda k: (round(index(k), 5), -k))


RULES = (
    Index(),
    Index(prefill_weight=0.9, age_weight=0.0),
    Index(power=1.4),
    Index(prefill_weight=0.3, age_weight=0.4, urgency_weight=0.1, backlog_weight=0.06),
    Index(decode_weight=-0.2, backlog_weight=0.3, power=0.8),
)


CASES: list[Case] = [
    (0, [1], 0.0), (1, [3], 0.1), (2, [4, 4], 0.5), (3, [1], 2.0), (3, [2, 9], 0.2),
    (4, [8], 0.0), (5, [7], 1.0), (7, [2], 0.3), (9, [30], 0.7), (12, [1], 4.0), (6, [], 0.0),
]  # fmt: skip


def test_the_rule_is_its_definition() -> None:
    view, chosen = engine_view(CASES), set()
    for rule in RULES:
        expected = [by_hand(rule, d, sum(p), age if p else 0.0) for d, p, age in CASES]
        assert tiles(rule, view) == expected
        chosen.update(expected)
    assert chosen == {1, 2, 3}


def test_equal_weights_are_the_greedy_rate() -> None:
    view = engine_view([(d, [p], 1.0) for d in range(0, 14, 2) for p in (1, 3, 6)])
    rule = Index(prefill_weight=1.0, age_weight=0.0)
    assert tiles(rule, view) == tiles(baselines.make("greedy_rate"), view)


def test_prompts_without_a_seat_do_not_count() -> None:
    three = [(2, [5, 6, 7], 0.3)]
    free = engine_view(three)
    one_seat = engine_view(three, seats=3, resident=True)
    none = engine_view(three, seats=2, resident=True)
    batch_of_four = engine_view(three, seats=4)
    found = [int(admissible_prefill(v)[0]) for v in (free, one_seat, none, batch_of_four)]
    assert found == [18, 5, 0, 11]
    one_seat.started = one_seat.started.at[2].set(True)  # the first prompt has its seat already
    assert int(admissible_prefill(one_seat)[0]) == 5
    # A second tile is worth opening for three prompts, not for none.
    rule = Index(prefill_weight=0.9, age_weight=0.0)
    assert tiles(rule, free) == [3]
    assert tiles(rule, none) == [1]


@cache
def scenario(rate: float = 13.0) -> Scenario:
    stage = Stage(Geometric(5.0), Geometric(6.0))
    job = JobType(Poisson(rate), (stage,), ttft_ms=300.0, tpot_ms=60.0)
    return Scenario.single_engine(TIME, TILE * TILES, (job,), slots=64)


VECTORS = np.array([[0.4, 0.5, 0.0, 0.0, 0.0, 1.0], [0.9, 0.0, 0.0, 0.0, 0.0, 1.0]])
WARMUP_S, DURATION_S, ENVS = 5.0, 20.0, 32


@pytest.mark.slow
def test_trials_are_what_simulate_finds() -> None:
    figures = measure(scenario(), vary, blank(POOR), VECTORS, ENVS, WARMUP_S, DURATION_S, seed=3)
    rule = Index(prefill_weight=0.9, age_weight=0.0)
    run = simulate(
        scenario(), rule, duration_s=WARMUP_S + DURATION_S, num_envs=ENVS, seed=3, warmup_s=WARMUP_S
    )
    raw = run.raw
    elapsed = raw["end_clock"] - raw["warm_clock"]
    present = (raw["end_request_ticks"] - raw["warm_request_ticks"]) / elapsed
    np.testing.assert_allclose(figures.e2e_s[1], present / 13.0, rtol=1e-9)
    assert (figures.e2e_s[0] != figures.e2e_s[1]).any()
    tokens = (raw["end_served"] - raw["warm_served"]) / (elapsed * 1e-5)
    np.testing.assert_allclose(figures.requests_per_s[1], tokens / 11, rtol=1e-9)
    for env in range(4):
        done = run.requests[run.requests.env == env].dropna()
        done = done[done.finish_ms > raw["warm_clock"][env] * 0.01]
        late = done.first_token_ms - done.arrival_ms > 300
        slow = done.finish_ms - done.first_token_ms > 60 * (done.decode_tokens - 1)
        assert figures.late[1, env] == pytest.approx(late.mean())
        assert figures.good[1, env] == pytest.approx((~late & ~slow).mean())
    assert 0 < figures.late.mean() < 1
    assert 0 < figures.good.mean() < 1 - figures.late.mean()


def test_blocks_change_nothing() -> None:
    several = measure(scenario(), vary, blank(POOR), VECTORS, ENVS, WARMUP_S, DURATION_S, seed=3)
    alone = measure(scenario(), vary, blank(POOR), VECTORS[1:], ENVS, WARMUP_S, DURATION_S, seed=3)
    np.testing.assert_array_equal(alone.e2e_s[0], several.e2e_s[1])
    fewer = measure(scenario(), vary, blank(POOR), VECTORS, 20, WARMUP_S, DURATION_S, seed=3)
    np.testing.assert_array_equal(fewer.good, several.good[:, :20])


SMALL = Settings(
    population=12, elites=3, generations=3, num_envs=4, warmup_s=WARMUP_S, duration_s=DURATION_S,
    check_envs=16, seed=1,
)  # fmt: skip
POOR = Index(prefill_weight=-0.6, age_weight=0.4)


@cache
def found() -> SearchResult:
    return search(scenario(), settings=SMALL, start=POOR, spread={"prefill_weight": 1.0})


def test_a_search_improves_on_a_poor_start() -> None:
    result = found()
    poor = [[getattr(POOR, name) for name in PARAMETERS]]
    start = measure(
        scenario(), vary, blank(POOR), np.array(poor), 16, WARMUP_S, DURATION_S, seed=1000
    )
    assert result.figures[0]["e2e_s"][0] < 0.9 * start.e2e_s.mean()
    assert len(result.history) == 3
    assert all(row["best"] < 1 for row in result.history)
    assert result.policy.age_weight == POOR.age_weight  # has no deviation: it stays
    assert result.policy.prefill_weight > POOR.prefill_weight


def test_a_search_that_was_stopped_ends_the_same(tmp_path: Path) -> None:
    path = tmp_path / "search.json"

    class StopError(Exception):
        pass

    def stop(done: int, total: int, line: str) -> None:
        if done == 2:
            raise StopError

    options: dict[str, Any] = {
        "settings": SMALL, "start": POOR, "spread": {"prefill_weight": 1.0}, "path": path,
    }  # fmt: skip
    with pytest.raises(StopError):
        search(scenario(), progress=stop, **options)
    calls: list[int] = []
    result = search(scenario(), progress=lambda done, total, line: calls.append(done), **options)
    assert calls == [3]
    assert result == found()
    with pytest.raises(LLMGymError, match="other settings"):
        search(scenario(), **(options | {"settings": replace(SMALL, seed=2)}))
    path.write_text("{}")
    with pytest.raises(LLMGymError, match="does not hold a search"):
        search(scenario(), **options)


def test_penalties_and_overflow_enter_the_objective() -> None:
    once = replace(SMALL, generations=1)
    strict = replace(once, goodput_weight=0.05)
    result = search(scenario(), settings=strict, start=POOR, spread={"prefill_weight": 1.0})
    plain = found().history[0]["best"]
    assert result.history[0]["best"] > plain + 0.05
    late = search(
        scenario(), settings=replace(once, late_weight=0.05), start=POOR,
        spread={"prefill_weight": 1.0},
    )  # fmt: skip
    assert late.history[0]["best"] > plain
    with pytest.raises(LLMGymError, match="overflow"):
        search(scenario().at_rate(60.0), settings=once, start=POOR)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spread": {"prefil_weight": 0.1}}, "Did you mean 'prefill_weight'"),
        ({"loads": ()}, "at least one load"),
    ],
)
def test_bad_searches_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LLMGymError, match=message):
        search(scenario(), **arguments)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"objective": "speed"}, "Unknown objective"),
        ({"elites": 0}, "at least 1"),
        ({"elites": 99}, "at most"),
        ({"smoothing": 0.0}, "greater than 0"),
        ({"late_weight": -1.0}, "at least 0"),
    ],
)
def test_bad_settings_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(LLMGymError, match=message):
        Settings(**setting)


def test_a_network_and_bad_parameters_are_refused() -> None:
    with pytest.raises(LLMGymError, match="one engine"):
        search(llmgym.scenario("load-balanced"))
    with pytest.raises(LLMGymError, match="finite"):
        Index(prefill_weight=float("nan"))
    with pytest.raises(LLMGymError, match="at least 0"):
        Index(power=-1.0)
    assert set(PARAMETERS) < set(Index.__dataclass_fields__)


def test_the_command_tunes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "engine.toml"
    toml_writer.save(scenario(), path)
    arguments = ["tune", "-s", str(path), "--rate", "13", "--generations", "1", "--json"]
    cli.app([*arguments, "--population", "3"], standalone_mode=False)
    result = json.loads(capsys.readouterr().out)
    assert set(result["parameters"]) == set(PARAMETERS)
    assert result["figures"][0]["load"] == pytest.approx(
        13 / llmgym.capacity(scenario()).requests_per_s
    )
    assert 0.2 < result["figures"][0]["e2e_s"][0] < 1.0


@pytest.mark.slow
def test_under_a_cap_it_beats_every_budget_of_sarathi() -> None:
    capped = llmgym.scenario("capped", slots=320)
    limit = llmgym.capacity(capped).requests_per_s
    tuned = Index(prefill_weight=0.7025, age_weight=0.0)
    served = llmgym.estimate_capacity(capped, tuned, requests=3000).requests_per_s
    assert served > 0.99 * limit
    assert served > 1.08 * 11.36


def test_a_search_for_throughput_says_at_which_load_it_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads play no part in it: one row, of the overload that was simulated."""
    rates = []

    def measured(
        scenario: Scenario, vary: Any, base: Any, rows: Any, num_envs: int, *_: Any, **__: Any
    ) -> Figures:
        rates.append(scenario.arrival_rate_per_s)
        ones = np.ones((len(rows), num_envs))
        return Figures(ones, ones, 0 * ones, ones, 0 * ones)

    monkeypatch.setattr(index_search, "measure", measured)
    settings = replace(SMALL, objective="throughput", generations=1)
    result = search(scenario(), (0.5, 0.9), settings)
    assert [row["load"] for row in result.figures] == [1.4]
    assert set(rates) == {1.4 * capacity(scenario()).requests_per_s}
    result = search(scenario(), (0.5, 0.9), replace(settings, objective="latency"))
    assert [row["load"] for row in result.figures] == [0.5, 0.9]
