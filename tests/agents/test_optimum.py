"""A problem small enough to be solved exactly: PPO without prior and guard finds the optimum."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats
from scipy.sparse.linalg import spsolve

import llmgym
from llmgym import Engine, Geometric, Poisson, Scenario, Staircase
from llmgym.agents.ppo import PPO
from llmgym.agents.tile_choice import TileChoice
from llmgym.agents.training import Training, train
from llmgym.scenario.stage import Stage
from llmgym.scenario.workload import JobType

RATE, OUTPUT, C, A, TILE, TILES = 13.0, 3, 10.0, 20.0, 2, 2
MOST = 30
"""Requests in prefill, and in decode, that the exact solution counts up to."""

STATES = [(p, d) for p in range(MOST + 1) for d in range(MOST + 1)]


def scenario() -> Scenario:
    """Prompts of one token and geometric outputs: requests in prefill and in decode are the state."""
    stage = Stage(prefill=1, decode=Geometric(OUTPUT))
    engine = Engine(Staircase(C, A, TILE), TILE * TILES)
    return Scenario((engine,), (JobType(Poisson(RATE), (stage,)),), slots=128)


def outcomes(p: int, d: int, k: int) -> tuple[float, float, dict[tuple[int, int], float]]:
    """Seconds, request-seconds and next states of a batch of up to k tiles, decodes first."""
    if p + d == 0:
        return 1 / RATE, 0.0, {(1, 0): 1.0}
    decodes = min(d, k * TILE)
    prompts = min(p, k * TILE - decodes)
    seconds = (C + A * np.ceil((decodes + prompts) / TILE)) / 1000
    cost = (p + d) * seconds + RATE * seconds**2 / 2
    found: dict[tuple[int, int], float] = {}
    coming = stats.poisson(RATE * seconds).pmf(np.arange(12))
    for done, chance in enumerate(stats.binom(decodes, 1 / OUTPUT).pmf(np.arange(decodes + 1))):
        for arrived, likely in enumerate(coming / coming.sum()):
            after = (min(p - prompts + arrived, MOST), min(d - done + prompts, MOST))
            found[after] = found.get(after, 0.0) + chance * likely
    return seconds, cost, found


def requests_present(policy: dict[tuple[int, int], int] | None) -> float:
    """Mean requests present under a policy; None: the best of all (policy iteration)."""
    index = {state: n for n, state in enumerate(STATES)}
    options = {k: [outcomes(*state, k) for state in STATES] for k in range(1, TILES + 1)}

    def matrix(k: int) -> sparse.csr_matrix:
        entries = [
            (n, index[after], chance)
            for n, (_, _, found) in enumerate(options[k])
            for after, chance in found.items()
        ]
        rows, columns, values = zip(*entries, strict=True)
        return sparse.csr_matrix((values, (rows, columns)), shape=(len(STATES),) * 2)

    moves = {k: matrix(k) for k in options}
    seconds, costs = (np.array([[o[i] for o in options[k]] for k in options]) for i in (0, 1))
    chosen = np.array([1 if policy is None else policy[s] for s in STATES])
    each = np.arange(len(STATES))
    while True:
        picked = sparse.vstack([moves[k][n] for n, k in enumerate(chosen)]).tocsr()
        # h + eta * seconds - P h = cost, and h = 0 in the empty state, whose column eta takes.
        system = (sparse.eye(len(STATES)) - picked).tolil()
        system[:, 0] = seconds[chosen - 1, each][:, None]
        found = spsolve(system.tocsc(), costs[chosen - 1, each])
        eta, value = found[0], np.concatenate([[0.0], found[1:]])
        ahead = np.array([costs[k - 1] - eta * seconds[k - 1] + moves[k] @ value for k in options])
        better = ahead.argmin(axis=0) + 1
        gain = ahead[chosen - 1, each] - ahead.min(axis=0)
        if policy is not None or gain.max() < 1e-9:
            return float(eta)
        chosen = np.where(gain > 1e-9, better, chosen)


@pytest.mark.slow
def test_ppo_finds_the_optimum() -> None:
    optimum = requests_present(None)
    full = requests_present(dict.fromkeys(STATES, TILES))
    one = requests_present({(p, d): 1 + (p + d > 12) for p, d in STATES})
    assert full > 1.03 * optimum and one > 1.03 * optimum  # there is something to be found
    choice = TileChoice(tiles=TILES, prior=0.0, guard=None)
    settings = PPO(choice=choice, hidden=32, prefill_weight=1.0)
    (policy,) = train(Training((scenario(),), settings, steps=1_500_000))

    def measured(policy: llmgym.baselines.Policy) -> float:
        run = llmgym.simulate(
            scenario(), policy, duration_s=1500, warmup_s=20, num_envs=64, record=False
        )
        return float(run.summary["mean_in_system"])

    assert measured(llmgym.baselines.make("always_full")) == pytest.approx(full, rel=0.01)
    assert measured(policy) == pytest.approx(optimum, rel=0.01)
