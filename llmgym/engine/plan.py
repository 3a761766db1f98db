"""The structure of a network of engines, as the compiled step needs it: all static, all hashable."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.scenario.scenario import Scenario
from llmgym.scenario.workflow import Workflow

CHOICE = 128
"""Choices draw from the random words of class number + CHOICE, apart from lengths and loops."""


@dataclass(frozen=True)
class Routes:
    """A workflow without its lengths: stages are numbered within the job type."""

    parents: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    probability: tuple[float, ...]  # of being taken, 1 outside choices
    bodies: tuple[tuple[int, ...], ...]  # of a stage that closes a loop; else empty
    first: tuple[int, ...]  # stage that the loop goes back to
    again: tuple[float, ...]  # probability to go back
    rounds: tuple[int, ...]  # or the number of rounds; 0 where there is none

    @classmethod
    def of(cls, workflow: Workflow) -> Routes:
        """The structure of a workflow."""
        names = [s.name for s in workflow.stages]
        repeats = [s.repeat for s in workflow.stages]
        return cls(
            workflow.parents,
            workflow.order,
            workflow.choices,
            tuple(1.0 if s.probability is None else s.probability for s in workflow.stages),
            workflow.bodies,
            tuple(0 if r is None else names.index(r.to) for r in repeats),
            tuple(0.0 if r is None else r.probability or 0.0 for r in repeats),
            tuple(0 if r is None else r.rounds or 0 for r in repeats),
        )


@dataclass(frozen=True)
class Plan:
    """Engines, classes and routes. A class is a stage of a job type, numbered through all of them.

    Every replica counts as an engine. Where there are delays, one more station behind the engines holds
    the jobs that wait in one.
    """

    engines: int
    stations: int
    groups: tuple[tuple[int, int], ...]  # (first engine, replicas)
    group_of: tuple[int, ...]  # group of each class; -1 for a delay
    first_class: tuple[int, ...]  # of each job type
    type_of: tuple[int, ...]  # job type of each class
    next_class: tuple[int, ...]  # where every job is a chain: the class that follows, -1 at the end
    routes: tuple[Routes, ...]  # where some job is not a chain: of every job type
    inherits: tuple[bool, ...]
    is_delay: tuple[bool, ...]
    hop: tuple[int, ...]
    router: str
    most_begun: int = 1  # calls and delays of one job that can begin at one instant
    closes_loop: tuple[bool, ...] = ()  # of each class: whether a job may go round again
    begins_with_delay: bool = False

    def at_engines(self, x: jax.Array, axis: int = 0) -> jax.Array:
        """An array of engines with zeros added for the station of delays, if there is one."""
        if self.stations == self.engines:
            return x
        one = jnp.zeros_like(jax.lax.slice_in_dim(x, 0, 1, axis=axis))
        return jnp.concatenate([x, one], axis=axis)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.group_of)

    @property
    def most_stages(self) -> int:
        """Stages of the longest job type."""
        return max(len(r.order) for r in self.routes)

    @property
    def loops(self) -> bool:
        """Whether a job may come to a call again."""
        return any(any(r.bodies) for r in self.routes)

    @property
    def keeps_context(self) -> bool:
        """Whether it matters how many tokens the earlier calls of a job had."""
        return bool(self.routes) and (any(self.inherits) or any(self.is_delay))

    def engine_group(self) -> tuple[int, ...]:
        """The group of each engine."""
        return tuple(g for g, (_, replicas) in enumerate(self.groups) for _ in range(replicas))

    @classmethod
    def of(cls, scenario: Scenario) -> Plan:
        """The plan of a scenario."""
        groups, engines = [], 0
        for engine in scenario.engines:
            groups.append((engines, engine.replicas))
            engines += engine.replicas
        demand, classes = scenario.demand, scenario.classes
        names = [engine.name for engine in scenario.engines]
        flows = () if demand.single_calls else demand.workflows
        delays = any(one.is_delay for one in classes)
        # Where every job is one call, each class counts as a job type: a list of requests has several.
        sizes = [len(flow.stages) for flow in flows] or [1] * len(classes)
        first = tuple(int(n) for n in np.cumsum([0, *sizes[:-1]]))
        chains = all(flow.is_chain for flow in flows)
        following = tuple(one.children[0] if one.children else -1 for one in classes)
        stages = [stage for flow in flows for stage in flow.stages]
        return cls(
            engines=engines,
            stations=engines + delays,
            groups=tuple(groups),
            group_of=tuple(
                -1 if one.is_delay else names.index(one.engine or names[0]) for one in classes
            ),
            first_class=first,
            type_of=tuple(j for j, size in enumerate(sizes) for _ in range(size)),
            next_class=following if chains else (),
            routes=() if chains else tuple(Routes.of(flow) for flow in flows),
            inherits=tuple(one.inherits for one in classes),
            is_delay=tuple(one.is_delay for one in classes),
            hop=tuple(one.hop for one in classes),
            router=scenario.router,
            most_begun=max((_most_begun(flow, names) for flow in flows), default=1),
            closes_loop=tuple(s.repeat is not None for s in stages) or (False,) * len(classes),
            begins_with_delay=any(flow.stages[v].is_delay for flow in flows for v in flow.roots),
        )


def _most_begun(flow: Workflow, engines: list[str]) -> int:
    """Most stages of a job that can be under way at once."""
    return min(len(flow.stages), sum(flow.width(e) for e in engines) + flow.delay_width())
