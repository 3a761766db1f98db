"""Work conservation, Eqs. (8)-(9) of arXiv:2504.07347v3, at every iteration, and counterexamples."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym import baselines
from llmgym.engine.view import View
from llmgym.reproduce.items import Check, Data, Effort, Item, at_least, equal, near
from llmgym.reproduce.watch import watch
from llmgym.scenario import library
from llmgym.scenario.batch_time import CODELLAMA_34B_A100
from llmgym.scenario.replay import Replay
from llmgym.scenario.scenario import Scenario
from llmgym.theory.capacity import at_load


def look(view: View, info: Any) -> dict[str, jax.Array]:
    """The demand sum_i (p_i + 1{p_i = 0}) and the tokens of the batch."""
    return {
        "demand": jnp.sum(view.demand, axis=0),
        "tokens": info.prefill_tokens + info.decode_tokens,
    }


def _random_load(effort: Effort, policy: str) -> Data:
    """How often a batch held less than it had to, under random lengths at load 0.9."""
    scenario = at_load(library.scenario("geometric"), 0.9)
    steps = effort.pick(20_000, 3_000)
    whole = not baselines.POLICIES[policy].work_conserving  # long prompts would freeze these two
    rule = baselines.make(policy, **({"prompts": "split"} if whole else {}))
    seen = watch(scenario, rule, look, steps, num_envs=4, seed=effort.seed)
    due = np.minimum(seen["demand"], scenario.engine.token_budget)
    short = np.argwhere(seen["tokens"] != due)
    found: Data = {"batches": int((seen["tokens"] > 0).sum()), "short": len(short)}
    if len(short):
        step, env = short[0]
        found |= {k: float(seen[k][step, env]) for k in ("start_ms", "demand", "tokens")}
    return found


def _witness() -> Data:
    """The batch of FasterTransformer, prompts split, with two (290, 990) requests 467.5 ms apart."""
    two = Replay(arrival_s=[0.0, 0.4675], prefill_tokens=[290, 290], decode_tokens=[990, 990])
    scenario = Scenario.single_engine(CODELLAMA_34B_A100, 128, two, slots=8)
    policy = baselines.make("faster_transformer", prompts="split")
    seen = watch(scenario, policy, look, 64)
    short = np.flatnonzero(seen["tokens"][:, 0] < np.minimum(seen["demand"][:, 0], 128))
    last = np.flatnonzero(seen["start_ms"][:, 0] <= 935.0)[-1]
    at = last if last in short else short[0]
    return {k: float(seen[k][at, 0]) for k in ("start_ms", "demand", "tokens")}


def _parts(effort: Effort) -> dict[str, Any]:
    random = {name: partial(_random_load, effort, name) for name in baselines.PAPER}
    return random | {"witness": _witness}


def _judge(data: Data) -> list[Check]:
    checks = []
    for name in baselines.PAPER:
        found = data[name]
        what = f"{name}: batches of {found['batches']:,} that hold less than (8)-(9) ask"
        if baselines.POLICIES[name].work_conserving:
            checks.append(equal(what, 0, found["short"]))
        else:
            seen = (
                f"; the first has {found.get('tokens', 0):g} tokens of {found.get('demand', 0):g}"
            )
            checks.append(at_least(what + seen, 1, found["short"]))
    witness = data["witness"]
    checks += [
        near(
            "witness against FasterTransformer: time, s", 0.935, witness["start_ms"] / 1000, 0.0005
        ),
        equal("its demand, tokens", 291, int(witness["demand"])),
        equal("its batch, tokens", 1, int(witness["tokens"])),
    ]
    return checks


work_conservation = Item(
    "work-conservation",
    "Who is work-conserving, at every iteration",
    "arXiv:2504.07347v3, Eqs. (8)-(9) and Table 1; witness derived",
    _parts,
    _judge,
)
