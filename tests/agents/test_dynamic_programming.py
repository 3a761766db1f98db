"""The optimum of the decode-first problem: by enumeration, closed forms and simulation."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import llmgym
from llmgym import Fixed, Geometric, Poisson, Scenario, Staircase, cli
from llmgym.agents.decode_first import DecodeFirst
from llmgym.agents.dynamic_programming import solve
from llmgym.agents.optimality import optimality_gap, optimality_gaps
from llmgym.agents.optimum import DynamicProgram, Optimum, load, save
from llmgym.core.errors import LLMGymError
from llmgym.scenario import toml_writer
from llmgym.scenario.arrivals import MMPP
from llmgym.scenario.stage import Stage
from llmgym.scenario.workload import JobType


def engine(
    rate: float, prompt: int, output: float, tile: int, tiles: int, slots: int = 64
) -> Scenario:
    """Fixed prompts, geometric outputs, 10 ms and 20 ms a tile."""
    job = JobType(Poisson(rate), (Stage(Fixed(prompt), Geometric(output)),))
    return Scenario.single_engine(Staircase(10.0, 20.0, tile), tile * tiles, (job,), slots=slots)


def outcome(
    p: int, d: int, k: int, problem: DecodeFirst
) -> tuple[float, float, dict[tuple[int, int], float]]:
    """Seconds, cost and next states of k tiles at p prompt tokens and d decodes, worked out by hand."""
    if p == d == 0:
        return 1 / problem.rate, 0.0, {(problem.prompt_tokens, 0): 1.0}
    size, most, seats = problem.sizes[k - 1], problem.most_waiting, problem.most_decoding
    seconds, m = problem.times[k - 1], problem.prompt_tokens
    decodes = min(d, size)
    left = p - min(p, size - decodes)
    begun = -(-p // m) - -(-left // m)
    cost = (-(-p // m) + d) * seconds + problem.rate * seconds**2 / 2
    found: dict[tuple[int, int], float] = {}
    for ends, coming in itertools.product(range(decodes + 1), range(40)):
        chance = stats.binom.pmf(ends, decodes, 1 / problem.output_tokens)
        chance *= stats.poisson.pmf(coming, problem.rate * seconds)
        waiting, decoding = -(-left // m) + coming, d + begun - ends
        over = max(waiting - most, 0)
        lost = over + max(decoding - seats, 0)
        cost += chance * lost * problem.turned_away
        after = (left + m * (coming - over), min(decoding, seats))
        found[after] = found.get(after, 0.0) + chance
    return seconds, cost, found


def least_by_enumeration(problem: DecodeFirst) -> float:
    """Least average cost a second over all stationary policies, one linear system for each."""
    top = problem.most_waiting * problem.prompt_tokens
    states = list(itertools.product(range(top + 1), range(problem.most_decoding + 1)))
    index = {state: n for n, state in enumerate(states)}
    options = [
        [k for k in range(1, len(problem.sizes) + 1) if k == 1 or p + d > problem.sizes[k - 2]]
        for p, d in states
    ]
    rows: list[list[np.ndarray]] = []
    costs: list[list[float]] = []
    for n, (p, d) in enumerate(states):
        rows.append([])
        costs.append([])
        for k in options[n]:
            seconds, cost, found = outcome(p, d, k, problem)
            row = np.zeros(len(states))
            for after, chance in found.items():
                row[index[after]] -= chance
            row[n] += 1.0
            row[0] = seconds  # the empty state has relative value 0; its column holds the cost rate
            rows[n].append(row)
            costs[n].append(cost)
    each = np.array(list(itertools.product(*(range(len(o)) for o in options))))
    systems = np.stack([np.array(rows[n])[each[:, n]] for n in range(len(states))], axis=1)
    sides = np.stack([np.array(costs[n])[each[:, n]] for n in range(len(states))], axis=1)
    return float(np.linalg.solve(systems, sides[..., None])[:, 0, 0].min())


def tiny() -> Scenario:
    return engine(rate=8.0, prompt=2, output=2.0, tile=2, tiles=2)


def test_equals_the_best_of_all_policies_of_a_tiny_problem() -> None:
    found = solve(tiny(), residues=None, tolerance=1e-9, most_waiting=2, most_decoding=3)
    problem = found.problem
    least = least_by_enumeration(problem)
    assert problem.rate * found.low == pytest.approx(least, rel=1e-7)
    assert problem.rate * found.high == pytest.approx(least, rel=1e-7)
    full = solve(replace_budget(tiny(), 2), residues=None, most_waiting=2, most_decoding=3)
    assert full.low > found.high  # a second tile is worth something: the choice is not trivial


def replace_budget(scenario: Scenario, budget: int) -> Scenario:
    return scenario.override(token_budget=budget)


@pytest.mark.parametrize("output", [1.0, 3.0])
def test_equals_pollaczek_khinchine_where_nothing_is_to_choose(output: float) -> None:
    # One token a batch: a request is served alone, for 1 + G batches of 30 ms with G geometric.
    rate, batch = 8.0 if output > 1 else 12.0, 0.03
    found = solve(engine(rate, 1, output, tile=1, tiles=1), residues=None, tolerance=1e-6)
    service = batch * (1 + output)
    second = batch**2 * output * (output - 1) + service**2
    expected = service + rate * second / (2 * (1 - rate * service))
    assert found.exact
    assert found.truncation < 2e-4
    assert found.low == pytest.approx(expected, rel=2e-4)
    assert found.low <= found.high


def small() -> Scenario:
    return engine(rate=13.0, prompt=5, output=6.0, tile=4, tiles=3)


@cache
def solved() -> Optimum:
    return solve(small(), residues=None, tolerance=1e-4)


def test_simulation_of_its_policy_gives_its_value() -> None:
    gaps = optimality_gaps(small(), [solved().policy, "sarathi"], None, solved(), 64, 150.0, 20.0)
    own, other = gaps
    assert own.exact
    half = (own.e2e_s[2] - own.e2e_s[1]) / 2
    assert abs(own.e2e_s[0] - solved().low) < 1.5 * half  # 3 standard errors
    assert half < 0.03 * solved().low
    assert own.behind == (0.0, 0.0, 0.0)
    assert own.high == own.e2e_s
    assert other.behind[1] > 0.01  # clearly behind, on the same requests
    assert other.gap[0] == pytest.approx(other.e2e_s[0] / solved().low - 1)
    assert own.good == 1.0
    assert own.late == 0.0


def test_fewer_residues_come_close_and_are_not_called_exact() -> None:
    coarse = solve(small(), residues=2, tolerance=1e-5)
    assert not coarse.exact
    assert coarse.low == pytest.approx(solved().low, rel=0.02)
    assert len(coarse.policy.table) < len(solved().policy.table)


def test_other_lengths_are_solved_by_their_means_and_not_called_exact() -> None:
    fixed = small().override(decode_tokens=6)
    found = solve(fixed, residues=None, tolerance=1e-5)
    assert not found.exact
    assert found.low == pytest.approx(solved().low, rel=1e-4)


def test_the_table_grows_until_hardly_anyone_is_turned_away() -> None:
    cramped = solve(small(), residues=1, most_waiting=2, most_decoding=8)
    assert cramped.truncation > 0.01
    assert solved().truncation < 1e-3
    assert solved().problem.most_waiting > 2


def view(decodes: list[int], prefill: list[int]) -> SimpleNamespace:
    """As much of a view as a table needs; one column for each environment."""
    most = max(decodes)
    decode = (np.arange(most)[:, None] < np.array(decodes)).astype(np.int32)
    return SimpleNamespace(decode=jnp.asarray(decode), prefill=jnp.asarray([prefill], jnp.int32))


def test_the_policy_reads_its_table() -> None:
    # p = 0, 1, 2 half prompts of 4 tokens; D = 0, 1, 2 and more.
    table = bytes([1, 1, 2, 1, 3, 2, 2, 2, 1])
    policy = DynamicProgram(None, None, table, columns=3, prompt_tokens=4, residues=2)
    decodes, prefill = [2, 1, 2, 0, 9, 9, 1], [0, 1, 2, 3, 4, 5, 2]
    seen = policy.tiles(view(decodes, prefill), jnp.int32(4), jnp.full(7, 3))
    assert seen.tolist() == [2, 3, 2, 2, 1, 3, 3]
    least = policy.tiles(view(decodes, prefill), jnp.int32(4), jnp.full(7, 2))
    assert least.tolist() == [2, 2, 2, 2, 1, 2, 2]


def test_saved_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "optimum.npz"
    save(solved(), path)
    again = load(path)
    assert again == solved()
    assert hash(again.policy) == hash(solved().policy)
    header = str(np.load(path, allow_pickle=False)["header"])
    assert '"rate": 13.0' in header
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(LLMGymError, match="holds no optimum"):
        load(path)
    np.savez(path, table=np.zeros(3))
    with pytest.raises(LLMGymError, match="holds no optimum"):
        load(path)
    with pytest.raises(LLMGymError, match="holds no optimum"):
        load(tmp_path / "missing.npz")


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        (llmgym.scenario("capped"), "no limit on requests"),
        (llmgym.scenario("load-balanced"), "no network"),
        (llmgym.scenario("llama-3-70b"), "staircase"),
        (llmgym.scenario("two-class"), "one class"),
        (small().override(arrivals=MMPP(6.5, (0.5, 1.5), (1.0, 1.0))), "Poisson"),
        (small().override(decode_tokens=0), "at least one token"),
        (small().at_rate(1000.0), "at or above the capacity"),
    ],
)
def test_what_it_cannot_solve_is_refused(scenario: Scenario, message: str) -> None:
    with pytest.raises(LLMGymError, match=message):
        solve(scenario)


def test_bad_arguments_are_refused() -> None:
    for settings in ({"residues": 0}, {"tolerance": 0.0}, {"most_waiting": 0}, {"load": -1.0}):
        with pytest.raises(LLMGymError):
            solve(small(), **settings)  # type: ignore[arg-type]
    with pytest.raises(LLMGymError, match="solve it again"):
        optimality_gap(small().at_rate(9.0), "sarathi", optimum=solved())
    overload = replace(solved(), problem=replace(solved().problem, rate=40.0))
    with pytest.raises(LLMGymError, match="overflow"):
        optimality_gap(small().at_rate(40.0), "sarathi", None, overload, 64, 30.0, 0.0)
    with pytest.raises(LLMGymError, match="whole rows"):
        DynamicProgram(None, None, bytes(5), columns=2)


def test_the_command_gives_the_bracket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "engine.toml"
    toml_writer.save(small(), path)
    arguments = ["optimum", "-s", str(path), "--residues", "0", "--num-envs", "64", "--json"]
    cli.app([*arguments, "--duration-s", "20", "--out", str(tmp_path)], standalone_mode=False)
    (row,) = json.loads(capsys.readouterr().out)
    assert row["low_s"] == solved().low
    assert row["exact"]
    assert [p["policy"] for p in row["policies"]] == ["dynamic_program"]
    assert row["policies"][0]["e2e_s"][0] == pytest.approx(solved().low, rel=0.2)
    assert load(tmp_path / "rate-13.npz") == solved()
    assert json.loads((tmp_path / "optimum.json").read_text()) == [row]


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "low", "high"), [(10.0, 5.535, 5.600), (12.0, 7.305, 7.639)])
def test_the_known_bracket(rate: float, low: float, high: float) -> None:
    scenario = llmgym.scenario("latency", arrival_rate_per_s=rate)
    found = solve(scenario, residues=16, tolerance=1e-4)
    assert low <= found.low <= found.high <= high
    gap = optimality_gap(scenario, found.policy, None, found, 64, 600.0, 60.0)
    assert low <= gap.e2e_s[0] <= high
