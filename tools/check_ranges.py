"""Play random masked actions on every scenario, and see which part of its range each observation uses.

    python tools/check_ranges.py [SCENARIO ...] [--out docs/results/ranges]

Every encoding plays on its own environments: half begin with a backlog, half empty, at loads from 0.3 to
1.2, and actions are drawn evenly among those that the mask allows. Observations are taken before they are
cut to their bounds. Scenarios that the file has already, with equal settings, are not played again.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from llmgym.core.errors import LLMGymError
from llmgym.core.files import to_json, write
from llmgym.engine.view import Batch, View
from llmgym.envs.functional import FunctionalEngine, FunctionalNetwork
from llmgym.envs.interface.actions import make_encoding
from llmgym.envs.interface.encoding import ActionEncoding, Sizes, parts_of
from llmgym.envs.interface.interface import Interface, Sight
from llmgym.envs.interface.network import NetworkEncoding
from llmgym.envs.interface.observations import Observation, ObservationBase
from llmgym.envs.task import Task
from llmgym.reporting.table import Column, Table
from llmgym.scenario.library import names, scenario
from llmgym.scenario.scenario import Scenario

ROOT = Path(__file__).resolve().parents[1]
ENCODINGS = ("tiles", "split", "tokens", "scores", "budget")
LOADS = (0.3, 1.2)
LISTED = 2
"""Single requests that an observation lists."""

THIRD = 1 / 3


@dataclass(frozen=True)
class Unbounded(Observation):
    """The observation as it is before it is cut to its bounds."""

    @property
    def space(self) -> gym.spaces.Box:  # type: ignore[override]
        """The largest box there is."""
        high = np.full(len(self.names), np.finfo(np.float32).max, np.float32)
        return gym.spaces.Box(np.zeros_like(high), high, dtype=np.float32)


@dataclass(frozen=True)
class Players(Interface):
    """Environments side by side, ``each`` of them under every encoding; an action is a random key."""

    seen: ObservationBase
    encodings: tuple[ActionEncoding, ...]
    each: int

    @property
    def names(self) -> tuple[str, ...]:
        return self.seen.names

    @property
    def observation_space(self) -> gym.spaces.Box:
        return self.seen.space

    @property
    def action_space(self) -> gym.Space[Any]:
        return gym.spaces.Discrete(1)  # not None: batches are cut as those of encodings are

    def start(self, view: View) -> Any:
        own = [e.start(self._view(view, n)) for n, e in enumerate(self.encodings)]
        return self.seen.start(view), tuple(own)

    def look(self, view: View, memory: Any) -> Sight:
        none = jnp.zeros((0, self.each * len(self.encodings)))
        return Sight(self.seen(view, memory[0]), none.astype(bool), none)

    def decide(self, action: Any, view: View, memory: Any) -> tuple[Batch, Any]:
        made, told = [], []
        for n, encoding in enumerate(self.encodings):
            mine = self._view(view, n)
            drawn = random_action(encoding, jax.random.fold_in(action, n), encoding.mask(mine))
            batch, new = encoding.decide(drawn, mine, memory[1][n])
            made.append(batch.tokens)
            told.append(new)
        tokens = jnp.concatenate(made, axis=-1)
        return Batch(tokens), (self.seen.remember(view, memory[0]), tuple(told))

    def _view(self, view: View, n: int) -> View:
        """What the environments of an encoding show."""
        whole, part = self.each * len(self.encodings), slice(n * self.each, (n + 1) * self.each)
        own: View = jax.tree.map(lambda x: x[..., part] if x.shape[-1:] == (whole,) else x, view)
        return own


def random_action(encoding: ActionEncoding, key: jax.Array, mask: jax.Array) -> jax.Array:
    """Actions drawn evenly among those that are allowed.

    Args:
        encoding: of the actions.
        key: random.
        mask: allowed choices (choices, environments).
    """
    space = encoding.space
    if isinstance(space, gym.spaces.Box):
        return jax.random.uniform(key, mask.shape, minval=-1.0, maxval=1.0)
    noise = jnp.where(mask, jax.random.uniform(key, mask.shape), -1.0)
    ends = np.cumsum(parts_of(space))[:-1]
    drawn = [jnp.argmax(part, axis=0) for part in jnp.split(noise, ends)]
    return drawn[0] if isinstance(space, gym.spaces.Discrete) else jnp.stack(drawn)


def made(chosen: Scenario, each: int) -> tuple[Any, Task, np.ndarray]:
    """The environment of a scenario, what its players do, and the upper bounds of what they see.

    Args:
        chosen: the scenario.
        each: environments of every encoding.
    """
    network = chosen.is_network
    form = FunctionalNetwork if network else FunctionalEngine
    settings: dict[str, Any] = {"observed_requests": LISTED, "start": "backlog"}
    try:
        core = form(chosen, load=LOADS, **settings)
    except LLMGymError:  # all requests come at one instant: there is no load
        core = form(chosen, **settings)
    if network:
        wholes: Any = [part.sizes for part in core.observation.parts]
        seen: Any = replace(
            core.observation, parts=tuple(Unbounded(sizes, LISTED) for sizes in wholes)
        )
        encodings = [NetworkEncoding.of(core.scenario, name, {}) for name in ENCODINGS]
    else:
        seen = Unbounded(Sizes.of(core.scenario), LISTED)
        encodings = [make_encoding(name, core.scenario) for name in ENCODINGS]
    players = Players(seen, tuple(encodings), each)
    return core, Task(players, core.reward), core.observation_space.high


@partial(jax.jit, static_argnums=(0, 1))
def play(task: Task, steps: int, params: Any, conditions: Any, key: jax.Array, top: Any) -> Any:
    """Lowest and highest of each entry, the steps at its upper bound and above it; steps that were cut.

    Args:
        task: of the players.
        steps: decisions.
        params, conditions: of the environment.
        key: random.
        top: upper bounds (entries, 1).

    Returns:
        Four arrays (entries, environments), and the cut steps (environments,).
    """
    players: Any = task.interface
    first = jax.random.split(key, players.each * len(players.encodings))
    state = task.init(params, conditions, first)

    def step(carry: Any, number: jax.Array) -> tuple[Any, None]:
        state, (low, high, at, over, cut) = carry
        state, seen = task.step(params, state, jax.random.fold_in(key, number))
        now, clipped = seen.observation, seen.info["clipped"]
        found = (
            jnp.minimum(low, now),
            jnp.maximum(high, now),
            at + (now >= top),
            over + (now > top),
            cut + (clipped if clipped.ndim == 1 else jnp.any(clipped, axis=0)),
        )
        return (state, found), None

    shape = (len(players.names), first.shape[0])
    zeros, none = jnp.zeros(shape, jnp.int32), jnp.zeros(shape[1], jnp.int32)
    start = (jnp.full(shape, jnp.inf), jnp.full(shape, -jnp.inf), zeros, zeros, none)
    return jax.lax.scan(step, (state, start), jnp.arange(steps))[0][1]


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """What the random players of a scenario saw, by kind of entry.

    Args:
        name: of the scenario.
        given: the options: num_envs, steps, episodes, slots.
    """
    shipped = scenario(name)
    chosen = replace(shipped, slots=min(shipped.slots, given.slots))
    core, task, top = made(chosen, given.num_envs)
    envs = given.num_envs * len(ENCODINGS)
    backlog = jnp.where(jnp.arange(envs) % 2 == 0, core.conditions.burst, 0)
    conditions = replace(core.conditions, burst=backlog)
    found = []
    for episode in range(given.episodes):
        key = jax.random.fold_in(jax.random.key(0), episode)
        made_of = play(task, given.steps, core.params, conditions, key, top[:, None])
        found.append([np.asarray(x) for x in made_of])
    low, high = np.min([f[0] for f in found], axis=0), np.max([f[1] for f in found], axis=0)
    at, over, cut = (np.sum([f[n] for f in found], axis=0) for n in (2, 3, 4))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise SystemExit(f"{name}: an entry is not finite")
    steps = given.steps * given.episodes * given.num_envs
    return {
        "steps_of_an_encoding": steps,
        "entries": len(top),
        "cut_steps": dict(zip(ENCODINGS, by_encoding(cut).sum(axis=-1).tolist(), strict=True)),
        "kinds": kinds(task.interface.names, top, low, high, at, over),
    }


def by_encoding(of_envs: np.ndarray) -> np.ndarray:
    """The same (..., encodings, environments of each)."""
    return of_envs.reshape(*of_envs.shape[:-1], len(ENCODINGS), -1)


def kinds(entries: Any, top: Any, low: Any, high: Any, at: Any, over: Any) -> dict[str, Any]:
    """Of each kind of entry that which uses most of its range.

    Args:
        entries: names.
        top: upper bounds.
        low, high, at, over: of the entries (entries, environments), see ``play``.
    """
    used = (np.minimum(high.max(axis=1), top) - low.min(axis=1)) / top
    found: dict[str, Any] = {}
    for n, name in enumerate(entries):
        kind = kind_of(name)
        mine = {
            "entry": name,
            "used": round(float(used[n]), 4),
            "low": round(float(low[n].min()), 4),
            "high": round(float(high[n].max()), 4),
            "bound": round(float(top[n]), 4),
            "at_bound_steps": int(at[n].sum()),
            "above_bound_steps": int(over[n].sum()),
        }
        before = found.setdefault(kind, mine)
        above = max(before["above_bound_steps"], mine["above_bound_steps"])
        widest = mine if mine["used"] > before["used"] else before
        found[kind] = widest | {"above_bound_steps": above}
    return found


def kind_of(name: str) -> str:
    """What an entry stands for, whichever the tile, class, request or engine: ``waiting_c``, say."""
    own = name.partition(".")[2] or name  # behind the engine of a network
    own = re.sub(r"^rate_\d+$", "rate_k", re.sub(r"^request_\d+_", "request_n_", own))
    if own != "prefill_tokens":
        own = re.sub(r"^(waiting|decoding|prefill|age|gap)_.*", r"\1_c", own)
    return own


def table(folder: Path = ROOT / "docs" / "results" / "ranges") -> list[str]:
    """For a page: each kind of entry, with the scenario on which it uses most of its range."""
    result = json.loads((folder / "ranges.json").read_text())
    found = result["scenarios"]
    steps = {name: s["steps_of_an_encoding"] for name, s in found.items()}
    cut = sum(sum(s["cut_steps"].values()) for s in found.values())
    columns = (
        Column("entry", text=True, code=True),
        Column("most used", ".0f", " %", 100),
        Column("on", text=True, code=True),
        Column("highest", ".3g"),
        Column("bound", ".3g"),
        Column("above its bound", ".4f", " %", 100),
    )
    rows = []
    for kind in dict.fromkeys(kind for s in found.values() for kind in s["kinds"]):
        mine = {name: s["kinds"][kind] for name, s in found.items() if kind in s["kinds"]}
        on = max(mine, key=lambda name: mine[name]["used"])
        above = max(m["above_bound_steps"] / steps[n] / len(ENCODINGS) for n, m in mine.items())
        rows.append((kind, mine[on]["used"], on, mine[on]["high"], mine[on]["bound"], above))
    little = [row[0] for row in rows if row[1] < THIRD]
    lines = Table(columns, tuple(rows)).to_markdown().splitlines()
    return [
        f"`python tools/check_ranges.py`: {min(steps.values()):,} random masked steps of each of "
        f"{len(ENCODINGS)} encodings on each of {len(found)} of the {len(names())} scenarios, in tables of "
        f"at most {result['settings']['slots']} rows. Batches that the engine had to cut: {cut}. Of each "
        "entry the share of its range that it uses on the scenario where that is most, the highest value "
        "there before "
        "it is cut to its bound, and the largest share of steps above the bound on any scenario. "
        f"Entries that use less than a third on every scenario: {', '.join(little) or 'none'}.",
        "",
        *lines,
    ]


def main(arguments: list[str] | None = None) -> None:
    """Read the options, play what the file has not, and write it after each scenario."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scenario", nargs="*", help="names (default: all)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "ranges")
    parser.add_argument("--num-envs", type=int, default=64, help="environments of every encoding")
    parser.add_argument("--steps", type=int, default=800, help="decisions of an episode")
    parser.add_argument("--episodes", type=int, default=2, help="of every environment")
    parser.add_argument("--slots", type=int, default=256, help="most rows of a request table")
    given = parser.parse_args(arguments)
    settings = {name: getattr(given, name) for name in ("num_envs", "steps", "episodes", "slots")}
    path = given.out / "ranges.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    if result.get("settings") != settings:
        result = {"settings": settings, "scenarios": {}}
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.scenario or names():
        if name in result["scenarios"]:
            continue
        began = time.perf_counter()
        found = result["scenarios"][name] = measure(name, given)
        result["scenarios"] = dict(sorted(result["scenarios"].items()))
        write(path, to_json(result))
        above = {k: m["above_bound_steps"] for k, m in found["kinds"].items()}
        print(
            f"{name}: {found['entries']} entries, cut {sum(found['cut_steps'].values())}, above bounds "
            f"{ {k: n for k, n in above.items() if n} or 'never' }, {time.perf_counter() - began:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
