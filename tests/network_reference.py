"""A plain event simulator of a network of engines: what the JAX network must equal batch by batch.

Lists, loops and whole numbers only; it shares no code with ``llmgym``. Jobs come in with their times of
arrival, and random numbers as a table (``Draws``); out come the batches of every engine. Every job
joins at the instant of its arrival, every call at the instant at which what it waits for is done.
Events of one instant: ends of batches, engine by engine; ends of delays, in the order in which they
began; new jobs.

KV memory (``network_memory``) takes part when a batch starts: its requests get their blocks then, those
that it preempts lose theirs, and nothing changes until it ends. A call that could never fit is refused:
its job leaves at once and counts as dropped. What else of the job has begun, or begins at that instant,
runs to its end and sets off nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

from network_server import Call, Job, Server
from reference import Engine, Policy

WAITING, RUNNING, DONE, PASSED = "waiting", "running", "done", "passed"


@dataclass(frozen=True)
class Loop:
    """Back to stage ``to`` with a probability, or until there were so many rounds."""

    to: int
    probability: float | None = None
    rounds: int | None = None


@dataclass(frozen=True)
class Step:
    """A stage of a job type, those before it by number; ``group`` None: a delay.

    ``shared``: tokens with which its prompts begin, and how many such beginnings there are.
    """

    group: int | None
    parents: tuple[int, ...]
    probability: float | None = None
    loop: Loop | None = None
    inherits: bool = False
    shared: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class Site:
    """Engines behind routers: a list of replicas for each group, and how calls choose among them."""

    groups: tuple[tuple[Engine, ...], ...]
    router: str
    slots: int
    tick_ms: Fraction


class Draws(Protocol):
    """Random numbers of a job (type, number) at a stage, for the visit of that number."""

    def lengths(self, job: tuple[int, int], stage: int, visit: int) -> tuple[int, int]:
        """Prompt and output tokens of a call; milliseconds and 0 of a delay."""

    def uniform(self, what: str, job: tuple[int, int], stage: int, visit: int) -> float:
        """For a "loop", the "choice" whose first stage is given, or a "router" ("other": once more).

        Or for the "prefix" that a prompt begins with.
        """


class NetworkSimulator:
    """Runs a policy in every engine on jobs given as (arrival, type, number) in order of arrival."""

    def __init__(
        self,
        site: Site,
        types: Sequence[Sequence[Step]],
        policy: Policy,
        jobs: Sequence[tuple[int, int, int]],
        draws: Draws,
    ) -> None:
        self.site, self.types, self.policy, self.draws = site, types, policy, draws
        self.coming = list(jobs)
        self.groups = [[Server(engine) for engine in group] for group in site.groups]
        self.servers = [server for group in self.groups for server in group]
        self.delays: list[Call] = []
        self.turns = [0] * len(self.groups)
        self.now = self.arrived = self.dropped = self.present = self.completed = 0
        self.epoch = self.refused = 0
        self.finished: dict[Any, tuple[int, int]] = {}  # name of a call: first token, finish
        self.events: list[int] = []  # times at which something happened
        self.decisions: list[int] = []  # those at which an engine may have become free, or was
        self.passed_over = self.rounds = self.joined = 0  # stages, rounds of loops, tokens
        self._admit()

    @property
    def backlog(self) -> int:
        """Tokens to come of all calls at engines."""
        return sum(c.work for s in self.servers for c in s.calls)

    def count(self, what: str) -> int:
        """Calls "preempted", or tokens "found", "lost" or "swapped", over all engines."""
        return sum(server.counts[what] for server in self.servers)

    def step(self) -> bool:
        """Free engines start batches; then time passes to the next event. False: nothing is to come."""
        free = [s for s in self.servers if s.running is None]
        changed = [server.start(self.policy, self.now, self.epoch) for server in free]
        self.epoch += 1
        times = [s.until for s in self.servers if s.running is not None]
        times += [d.until for d in self.delays if d.until is not None]
        times += [arrival for arrival, _, _ in self.coming[:1]]
        if not times:  # who was preempted may run in the next epoch, at the same instant
            return any(changed)
        some_free = any(s.running is None for s in self.servers)
        self.now = min(times)
        ended, came = self._end(), self._admit()
        self.events.append(self.now)
        if ended or (came and some_free):
            self.decisions.append(self.now)
        return True

    def _end(self) -> bool:
        """All that ends now; then all that this sets off, one after the other."""
        servers = [s for s in self.servers if s.running and s.until == self.now]
        done = [call for server in servers for call in server.end(self.now)]
        over = [d for d in self.delays if d.until == self.now]
        self.delays = [d for d in self.delays if d.until != self.now]
        for call in done + over:
            self.finished[call.name] = call.first_token or 0, self.now
            if not call.job.refused:
                self._stage_ended(call.job, call.stage, call.prefill + call.decode)
        return bool(servers or over)

    def _admit(self) -> bool:
        """New jobs of this instant; where all slots are taken they are lost."""
        before = self.arrived
        while self.coming and self.coming[0][0] <= self.now:
            _, kind, number = self.coming.pop(0)
            self.arrived += 1
            if self.present == self.site.slots:
                self.dropped += 1
                continue
            self.present += 1
            stages = len(self.types[kind])
            job = Job((kind, number), [WAITING] * stages, [0] * stages, [0] * stages)
            self._start(job, self._ready(job))
        return self.arrived > before

    def _stage_ended(self, job: Job, stage: int, context: int) -> None:
        steps = self.types[job.name[0]]
        loop, visit = steps[stage].loop, job.visits[stage]
        job.visits[stage], job.context[stage] = visit + 1, context
        draw = self.draws.uniform("loop", job.name, stage, visit)
        again, begins = loop is not None and draw < (loop.probability or 0.0), {}
        if loop is not None and loop.rounds is not None:
            again = (visit + 1) % loop.rounds != 0
        if loop is not None and again:
            self.rounds += 1
            for body in body_of(steps, loop.to, stage):
                job.status[body] = WAITING
            job.status[loop.to], begins[loop.to] = RUNNING, context
        else:
            job.status[stage] = DONE
        self._start(job, begins | self._ready(job))
        if all(status in (DONE, PASSED) for status in job.status):
            self.present, self.completed = self.present - 1, self.completed + 1

    def _ready(self, job: Job) -> dict[int, int]:
        """The stages that start now, with the context that those before them bring."""
        steps, begins, settled = self.types[job.name[0]], {}, False
        while not settled:
            settled = True
            for stage, step in enumerate(steps):
                open_ = [u for u in step.parents if job.status[u] not in (DONE, PASSED)]
                if job.status[stage] != WAITING or open_:
                    continue
                settled, taken = False, [u for u in step.parents if job.status[u] == DONE]
                if (step.parents and not taken) or not self._chosen(job, stage):
                    job.status[stage] = PASSED
                    self.passed_over += 1
                else:
                    job.status[stage] = RUNNING
                    begins[stage] = sum(job.context[u] for u in taken)
        return begins

    def _chosen(self, job: Job, stage: int) -> bool:
        """Whether the choice among the stages after the same ones falls on this one."""
        steps = self.types[job.name[0]]
        if steps[stage].probability is None:
            return True
        parents = steps[stage].parents
        group = [(v, s.probability) for v, s in enumerate(steps) if set(s.parents) == set(parents)]
        options = [(v, chance) for v, chance in group if chance is not None]
        visit = sum(job.visits[u] for u in parents)  # grows from round to round of a loop
        draw = self.draws.uniform("choice", job.name, options[0][0], visit)
        for option, chance in options[:-1]:
            draw -= chance
            if draw < 0:
                return stage == option
        return stage == options[-1][0]

    def _start(self, job: Job, begins: dict[int, int]) -> None:
        """Calls join the queue of an engine, and delays begin, in order of the stages."""
        for stage in sorted(begins):
            step, visit = self.types[job.name[0]][stage], job.visits[stage]
            first, second = self.draws.lengths(job.name, stage, visit)
            prompt = 0 if step.group is None else first
            if step.inherits or step.group is None:  # a delay passes on what it inherits
                prompt += begins[stage]
            call = Call(*job.name, self.now, prompt, second, job=job, stage=stage, visit=visit)
            if step.group is None:
                call.until = self.now + max(round(Fraction(first) / self.site.tick_ms), 1)
                self.delays.append(call)
            else:
                self._join(step, call)
        if job.refused:
            self.present, self.dropped = self.present - 1, self.dropped + 1

    def _join(self, step: Step, call: Call) -> None:
        """A call joins the queue of an engine, or is refused if it could never fit into memory."""
        assert step.group is not None
        engine = self.groups[step.group][0].engine
        call.samples, call.limited = engine.samples, engine.memory is not None
        if engine.memory is not None and not engine.memory.fits(call):
            self.refused += 1
            call.job.refused = True
            return
        tokens, variants = step.shared
        if tokens:
            at = call.job.name, call.stage, call.visit
            variant = int(self.draws.uniform("prefix", *at) * variants)
            call.shared = tokens, (call.job.name[0], call.stage, variant)
        self.joined += call.work
        self._route(step.group, call).calls.append(call)

    def _route(self, group: int, call: Call) -> Server:
        """The replica that a call goes to: the first of those that are equally good."""
        servers, turn, count = self.groups[group], self.turns[group], len(self.groups[group])
        self.turns[group] += 1
        at = call.job.name, call.stage, call.visit
        one, other = self.draws.uniform("router", *at), self.draws.uniform("other", *at)
        match self.site.router:
            case "round_robin":
                return servers[turn % count]
            case "random":
                return servers[int(one * count)]
            case "power_of_two" if count > 1:
                pair = servers[int(one * count) :] + servers[: int(one * count)]
                return min(pair[0], pair[1 + int(other * (count - 1))], key=lambda s: len(s.calls))
            case "fewest_tokens":
                return min(servers, key=lambda s: sum(c.left for c in s.calls))
            case "least_kv":
                return min(servers, key=lambda s: s.tokens_in_memory)
        return min(servers, key=lambda s: len(s.calls))


def body_of(steps: Sequence[Step], first: int, last: int) -> set[int]:
    """The stages on all ways from the first to the last of a loop."""
    if first == last:
        return {first}
    inside = set().union(*(body_of(steps, first, u) for u in steps[last].parents))
    return inside | {last} if inside else set()
