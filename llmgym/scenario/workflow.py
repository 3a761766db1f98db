"""How the stages of a job follow one another: precedence, choices, loops, and what they come to on average.

A stage starts when all stages it comes ``after`` are done. Of a choice exactly one stage is taken; a
stage all of whose predecessors were passed over is passed over itself, and counts as done. A loop
runs its body (all stages on the paths from its first to its last stage) again from the first; choices
inside are made again. The job ends when every stage is done.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Protocol

import numpy as np

from llmgym.core.errors import LLMGymError, unknown
from llmgym.scenario.precedence import (
    Fault,
    choices_of,
    largest_antichain,
    order_of,
    parents_of,
    reachable,
)
from llmgym.scenario.stage import Stage

MOST_STAGES = 31
"""Stages of a job type: their marks are the bits of one word."""

MOST_OUTCOMES = 4096

Node = tuple[int, tuple[tuple[int, int], ...]]
"""A stage, and the round of every loop of fixed rounds around it: (last stage of the loop, round)."""


class Job(Protocol):
    """What a workflow is made of: a job type, or anything with a name and stages."""

    @property
    def name(self) -> str:
        """For error messages."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Its calls and delays."""


@dataclass(frozen=True)
class Workflow:
    """The structure of a job type; stages are numbered as listed.

    Attributes:
        parents: of each stage, those that must be done before it.
        order: all stages, parents first.
        choices: groups of stages of which exactly one is taken.
        bodies: of each stage that closes a loop, the stages of the loop; else empty.
    """

    stages: tuple[Stage, ...]
    parents: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    bodies: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(job_type: Job) -> Workflow:
        """The workflow of a job type.

        Raises:
            LLMGymError: unknown or repeated names, a cycle, a stage that nothing leads to, choices
                whose probabilities do not add up to 1, or a loop that is not closed in itself.
        """
        return _workflow(job_type.name, job_type.stages)

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Of each stage, those that come after it."""
        everything = range(len(self.stages))
        return tuple(tuple(v for v in everything if u in self.parents[v]) for u in everything)

    @property
    def roots(self) -> tuple[int, ...]:
        """Stages that start with the job."""
        return tuple(v for v in self.order if not self.parents[v])

    @property
    def is_chain(self) -> bool:
        """Whether it is one call after another, with no choice, loop, join or inherited context."""
        return (
            len(self.roots) == 1
            and all(len(c) <= 1 for c in (*self.parents, *self.children))
            and not self.choices
            and not any(self.bodies)
            and not any(s.inherits for s in self.stages)
        )

    @cached_property
    def reach(self) -> np.ndarray:
        """Probability (stages,) that a stage is taken in a round of the loops around it."""
        total = np.zeros(len(self.stages))
        for outcome in itertools.product(*self.choices):
            chance = np.prod([self._probability(v) for v in outcome]) if outcome else 1.0
            passed = {v for group in self.choices for v in group} - set(outcome)
            taken: set[int] = set()
            for v in self.order:
                led_to = not self.parents[v] or any(u in taken for u in self.parents[v])
                if led_to and v not in passed:
                    taken.add(v)
            total[list(taken)] += chance
        return total

    @cached_property
    def visits(self) -> np.ndarray:
        """Mean number of times (stages,) that a job runs each stage: the visit rates."""
        found = self.reach.copy()
        for last, body in enumerate(self.bodies):
            repeat = self.stages[last].repeat
            if repeat is not None:
                found[list(body)] *= repeat.mean_rounds
        return found

    @cached_property
    def means(self) -> np.ndarray:
        """Mean prompt and output tokens (stages, 2) of a visit, inherited context included."""
        nodes, edges = self._unrolled
        own = np.array([[s.mean_prefill, s.mean_decode] for s in self.stages])
        context = np.zeros((len(nodes), len(nodes)))
        for source, target, weight in edges:
            if self.stages[nodes[target][0]].inherits or self.stages[nodes[target][0]].is_delay:
                context[target, source] += weight
        visits = self._node_visits
        brought = visits * np.array([own[v].sum() for v, _ in nodes])
        carried = np.linalg.solve(np.eye(len(nodes)) - context, brought)
        inherited = context @ carried
        found = own.copy()
        for v in range(len(self.stages)):
            if not self.stages[v].is_delay and self.visits[v] > 0:
                mine = sum(inherited[n] for n, node in enumerate(nodes) if node[0] == v)
                found[v, 0] += mine / self.visits[v]
        return found

    @cached_property
    def longest_prompts(self) -> tuple[float, ...]:
        """Largest possible prompt of each stage, inherited context included (infinite without a bound)."""
        back = {self._index(s.repeat.to) for s in self.stages if s.repeat is not None}
        longest, context = [0.0] * len(self.stages), [0.0] * len(self.stages)
        for v in self.order:
            stage, brought = self.stages[v], sum(context[u] for u in self.parents[v])
            if stage.is_delay:
                context[v] = np.inf if v in back else brought
                continue
            longest[v] = stage.longest_prompt
            if stage.inherits:
                longest[v] += np.inf if v in back else brought
            context[v] = longest[v] + stage.longest_output
        return tuple(longest)

    @cached_property
    def follows(self) -> np.ndarray:
        """Mean visits (stages, stages) to the second stage that a visit to the first brings on.

        The visits that lead to one bring it on in equal parts. So the entries of a column, weighted with
        the visits of their rows, add up to the visits of its stage that do not start with the job.
        """
        count = len(self.stages)
        flow = np.zeros((count, count))
        for u in range(count):
            leaves, repeat = 1.0, self.stages[u].repeat
            if repeat is not None:
                leaves = 1 / repeat.mean_rounds
                to = self._index(repeat.to)
                flow[u, to] += self.visits[u] * (1 - leaves)
            for v in self.children[u]:
                flow[u, v] += self.visits[u] * leaves * self._probability(v)
        for v in range(count):
            entering = list(self.parents[v])
            if entering and flow[entering, v].sum() > 0:
                back = flow[:, v].sum() - flow[entering, v].sum()
                flow[entering, v] *= max(self.visits[v] - back, 0) / flow[entering, v].sum()
        return flow / self.visits[:, None]

    @cached_property
    def depth(self) -> np.ndarray:
        """Calls (stages,) on the longest path from the start of the job to each stage, loops aside."""
        found = np.zeros(len(self.stages), int)
        for v in self.order:
            before = [found[u] + (not self.stages[u].is_delay) for u in self.parents[v]]
            found[v] = max(before, default=0)
        return found

    def width(self, engine: str) -> int:
        """Most calls of one job that can be at ``engine`` at once: a largest antichain (Dilworth)."""
        mine = [v for v, s in enumerate(self.stages) if not s.is_delay and s.engine == engine]
        return largest_antichain(self.children, mine)

    def delay_width(self) -> int:
        """Most delays of one job that can run at once."""
        delays = [v for v, s in enumerate(self.stages) if s.is_delay]
        return largest_antichain(self.children, delays)

    def _probability(self, v: int) -> float:
        given = self.stages[v].probability
        return 1.0 if given is None else given

    def _index(self, name: str) -> int:
        return [s.name for s in self.stages].index(name)

    def _around(self, v: int) -> list[int]:
        """The loops around a stage, by their last stages, inner ones first."""
        return sorted(
            (u for u, b in enumerate(self.bodies) if v in b), key=lambda u: len(self.bodies[u])
        )

    @cached_property
    def _unrolled(self) -> tuple[list[Node], list[tuple[int, int, float]]]:
        """Stages by the round of every loop of fixed rounds around them, and how they follow."""
        nodes: list[Node] = []
        for v in range(len(self.stages)):
            fixed = [u for u in self._around(v) if self._rounds(u)]
            for rounds in itertools.product(*(range(self._rounds(u)) for u in fixed)):
                nodes.append((v, tuple(sorted(zip(fixed, rounds, strict=True)))))
        number = {node: n for n, node in enumerate(nodes)}
        edges = []
        for (u, turns), n in number.items():
            repeat, now = self.stages[u].repeat, dict(turns)
            leaves = 1.0
            if repeat is not None:
                to = self._index(repeat.to)
                inner = {w for w in self.bodies[u] if self._rounds(w) and w != u}
                again = {w: r for w, r in now.items() if w not in inner}
                again |= {w: 0 for w in self._around(to) if self._rounds(w) and w not in again}
                if repeat.rounds is None:
                    assert repeat.probability is not None
                    edges.append((n, number[to, tuple(sorted(again.items()))], repeat.probability))
                    leaves = 1 - repeat.probability
                elif now[u] + 1 < repeat.rounds:
                    again[u] = now[u] + 1
                    edges.append((n, number[to, tuple(sorted(again.items()))], 1.0))
                    leaves = 0.0
            for v in self.children[u]:
                there = {w: now.get(w, 0) for w in self._around(v) if self._rounds(w)}
                target = number[v, tuple(sorted(there.items()))]
                if leaves:
                    edges.append((n, target, leaves * self._probability(v)))
        return nodes, edges

    def _rounds(self, u: int) -> int:
        repeat = self.stages[u].repeat
        return 0 if repeat is None or repeat.rounds is None else repeat.rounds

    @property
    def _node_visits(self) -> np.ndarray:
        nodes = self._unrolled[0]
        copies = [np.prod([self._rounds(u) for u, _ in rounds] or [1]) for _, rounds in nodes]
        return np.array([self.visits[v] for v, _ in nodes]) / np.array(copies)


@cache
def _workflow(job: str, stages: tuple[Stage, ...]) -> Workflow:
    names = [s.name for s in stages]

    def fault(v: int, text: str) -> LLMGymError:
        return LLMGymError(f"Job type {job!r}, stage {names[v]!r}: {text}")

    if len(stages) > MOST_STAGES:
        raise LLMGymError(f"Job type {job!r} has {len(stages)} stages; at most {MOST_STAGES}.")
    for v, name in enumerate(names):
        if name in names[:v]:
            raise fault(v, "two stages have this name.")
    parents = parents_of(stages, fault)
    order, choices = order_of(parents, fault), choices_of(stages, parents, fault)
    if np.prod([len(group) for group in choices] or [1]) > MOST_OUTCOMES:
        raise LLMGymError(
            f"Job type {job!r} has more than {MOST_OUTCOMES} outcomes of its choices."
        )
    found = Workflow(stages, parents, order, choices, ((),) * len(stages))
    for v in range(len(stages)):
        if found.reach[v] == 0:
            raise fault(v, "nothing leads to it: it can never run.")
    bodies = [() if s.repeat is None else _body(found, v, fault) for v, s in enumerate(stages)]
    for (u, one), (v, other) in itertools.combinations(enumerate(bodies), 2):
        shared = set(one) & set(other)
        if shared and shared not in (set(one), set(other)):
            raise fault(v, f"its loop crosses the loop of stage {names[u]!r}; nest them.")
    return Workflow(stages, parents, order, choices, tuple(bodies))


def _body(workflow: Workflow, last: int, fault: Fault) -> tuple[int, ...]:
    """The stages of the loop that ``last`` closes; it is entered at its first stage and left at the last."""
    names = [s.name for s in workflow.stages]
    repeat = workflow.stages[last].repeat
    assert repeat is not None
    if repeat.to not in names:
        raise fault(last, str(unknown("stage", repeat.to, names)))
    first = names.index(repeat.to)
    after, before = reachable(workflow.children, first), reachable(workflow.parents, last)
    if first != last and first not in before:
        raise fault(last, f"it repeats from {repeat.to!r}, which does not lead to it.")
    body = {first, last} | (after & before)
    for v in sorted(body):
        if v != first and not set(workflow.parents[v]) <= body:
            raise fault(
                last, f"its loop is entered at stage {names[v]!r}, not only at {repeat.to!r}."
            )
        if v != last and not set(workflow.children[v]) <= body:
            raise fault(last, f"its loop is left at stage {names[v]!r}, before it is closed.")
    if abs(workflow.reach[first] - workflow.reach[last]) > 1e-9:
        raise fault(last, "its loop may end without it: a loop must always reach its last stage.")
    return tuple(sorted(body))
