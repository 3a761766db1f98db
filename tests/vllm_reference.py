"""Batch formation of vLLM 0.33's V1 scheduler on one engine, in plain Python.

A workload and a configuration in, the batch of every step out, all of them dictionaries in the form of
the recorded batches that this must equal. Time is the number of the step. It shares no code with
``llmgym`` nor with vLLM: the rules are written from the recorded batches and, for what no record shows
(watermark, prefill interval, order of evictions), from public descriptions of vLLM's options.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Prefix = tuple[Any, ...]


def schedule(workload: list[dict[str, Any]], config: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps until every request has finished; ValueError where one never could."""
    requests = [read_request(row, number, config) for number, row in enumerate(workload)]
    scheduler = Scheduler(config)
    steps: list[dict[str, Any]] = []
    while len(scheduler.finished) < len(requests):
        now = len(steps)
        arriving = [request for request in requests if request.arrival_step == now]
        steps.append(scheduler.step(now, arriving))
    return steps


@dataclass(eq=False)
class Request:
    """A request: its prompt, the outputs it will have, and how far it has come."""

    id: str
    arrival_step: int
    rank: tuple[int, int, int]
    """(priority, arrival step, place in the workload): the smallest is the most urgent."""
    prompt: Prefix
    output_len: int
    outputs: int = 0
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    phase: str = "prefill"
    """prefill up to an output, then decode; recompute from a preemption up to the next output."""

    @property
    def known(self) -> int:
        """Its tokens: the prompt and the outputs so far. What is not computed of them is its work."""
        return len(self.prompt) + self.outputs

    def prefix(self, tokens: int) -> Prefix:
        """Its first tokens. An output is like no token of another request."""
        outputs = (("output", self.id, n) for n in range(tokens - len(self.prompt)))
        return self.prompt[:tokens] + tuple(outputs)


def read_request(row: dict[str, Any], number: int, config: dict[str, Any]) -> Request:
    """A row of the workload as a request; ValueError where it could never run to its end."""
    prompt_len, limit, arrival = row["prompt_len"], config["max_model_len"], row["arrival_step"]
    if min(prompt_len, row["output_len"]) < 1 or arrival < 0:
        raise ValueError(
            f"request {row['id']}: lengths must be at least 1, arrival_step at least 0"
        )
    if prompt_len >= limit:
        raise ValueError(f"request {row['id']}: prompt of {prompt_len}, max_model_len is {limit}")
    output_len = min(row["output_len"], limit - prompt_len)
    longest = prompt_len + output_len - 1  # the last output is never computed
    room = (config["num_blocks_incl_null"] - 1) * config["block_size"]
    if longest > room:
        raise ValueError(f"request {row['id']}: needs memory for {longest} tokens, there is {room}")
    budget = config["max_num_batched_tokens"]
    if not config["enable_chunked_prefill"] and longest > budget:
        raise ValueError(f"request {row['id']}: up to {longest} tokens at once, budget is {budget}")
    ids = row.get("prompt_token_ids") or [("prompt", row["id"], n) for n in range(prompt_len)]
    rank = (row["priority"], arrival, number)
    return Request(row["id"], arrival, rank, tuple(ids), output_len)


class BlockPool:
    """KV memory in blocks: how many use each, and which prefix a full one holds."""

    def __init__(self, usable: int, block_size: int, caching: bool) -> None:
        self.block_size, self.caching = block_size, caching
        self.free: dict[int, None] = dict.fromkeys(range(usable))
        """Blocks that nobody uses, the next to be taken first; what they hold can still be hit."""
        self.users: Counter[int] = Counter()
        self.held: dict[int, Prefix] = {}
        self.holders: dict[Prefix, dict[int, None]] = {}

    def hits(self, request: Request) -> list[int]:
        """Blocks that hold its beginning: whole ones, and at least one token is left to compute."""
        found: list[int] = []
        if self.caching:
            for end in range(self.block_size, request.known, self.block_size):
                holders = self.holders.get(request.prefix(end))
                if not holders:
                    break
                found.append(next(iter(holders)))
        return found

    def fits(self, request: Request, tokens: int, hits: Sequence[int] = (), spare: int = 0) -> bool:
        """Whether it can have blocks for its first ``tokens`` and ``spare`` more stay free.

        A hit block that nobody uses leaves the free ones as a new block does.
        """
        new = -(-tokens // self.block_size) - len(request.blocks) - len(hits)
        return new + sum(block in self.free for block in hits) + spare <= len(self.free)

    def allocate(self, request: Request, tokens: int, hits: Sequence[int] = ()) -> None:
        """Give it blocks for its first ``tokens``: the hits, then those longest free."""
        for block in hits:
            self._take(request, block)
        while len(request.blocks) * self.block_size < tokens:
            block = next(iter(self.free))
            self._forget(block)
            self._take(request, block)
        if self.caching:
            for number, block in enumerate(request.blocks[: tokens // self.block_size]):
                if block not in self.held:
                    prefix = request.prefix((number + 1) * self.block_size)
                    self.held[block] = prefix
                    self.holders.setdefault(prefix, {})[block] = None

    def release(self, request: Request) -> None:
        """Take its blocks back, the last first: the beginning of a prefix is forgotten last."""
        for block in reversed(request.blocks):
            self.users[block] -= 1
            if not self.users[block]:
                self.free[block] = None
        request.blocks = []

    def _take(self, request: Request, block: int) -> None:
        self.free.pop(block, None)
        self.users[block] += 1
        request.blocks.append(block)

    def _forget(self, block: int) -> None:
        if block in self.held:
            del self.holders[self.held.pop(block)][block]


class Scheduler:
    """One engine: who runs, who waits, and the batch that is being formed."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        if config["policy"] not in ("fcfs", "priority"):
            raise ValueError(f"policy is {config['policy']!r}; it must be 'fcfs' or 'priority'")
        if min(config["max_num_seqs"], config["max_num_batched_tokens"]) < 1:
            raise ValueError("max_num_seqs and max_num_batched_tokens must be at least 1")
        usable, block_size = config["num_blocks_incl_null"] - 1, config["block_size"]
        self.pool = BlockPool(usable, block_size, config["enable_prefix_caching"])
        self.running: list[Request] = []
        self.waiting: list[Request] = []
        self.finished: list[Request] = []
        self.backlogged = False
        """Whether the last step that could admit left requests waiting."""

    def step(self, now: int, arriving: Sequence[Request]) -> dict[str, Any]:
        """Requests join, a batch is formed and runs, tokens are sampled, who is done leaves."""
        self.batch: dict[Request, int] = {}
        self.preempted: list[Request] = []
        self.budget: int = self.config["max_num_batched_tokens"]
        self.waiting += arriving
        self._sort_waiting()
        alone = len(self.running) + len(self.waiting) == 1
        self.chunk_cap = 0 if alone else self.config["long_prefill_token_threshold"]
        self.defers = (
            now % self.config["prefill_schedule_interval"] != 0
            and not self.backlogged
            and any(request.phase == "decode" for request in self.running)
        )
        self._scan_running()
        if not self.preempted:
            self._scan_waiting()
            if not self.defers:
                self.backlogged = bool(self.waiting)
        formed = {
            "step": now,
            "arrivals": _ids(arriving),
            "scheduled": [_entry(request, tokens) for request, tokens in self.batch.items()],
            "total_tokens": sum(self.batch.values()),
            "preempted": _ids(self.preempted),
            "free_blocks_after_schedule": len(self.pool.free),
            "running_after_schedule": _ids(self.running),
            "waiting_after_schedule": _ids(self.waiting),
        }
        done = self._run()
        return formed | {
            "finished": sorted(_ids(done)),  # as text: so the records list them
            "free_blocks_after_update": len(self.pool.free),
        }

    def _scan_running(self) -> None:
        """Each that runs, in order of admission, gets its work as far as the budget goes.

        It stops at a request that had to preempt itself; those behind it get nothing.
        """
        for request in list(self.running):
            if self.budget == 0:
                return
            if request in self.preempted or (self.defers and request.phase != "decode"):
                continue
            tokens = min(self._capped(request.known - request.computed), self.budget)
            while not self.pool.fits(request, request.computed + tokens):
                victim = self._victim()
                self._preempt(victim)
                if victim is request:
                    return
            self._schedule(request, tokens)

    def _scan_waiting(self) -> None:
        """Requests are admitted in order, up to the first that does not fit."""
        for request in list(self.waiting):
            if self.budget == 0 or len(self.running) == self.config["max_num_seqs"]:
                return
            hits = self.pool.hits(request)
            start = len(hits) * self.config["block_size"]
            if self.defers and request.known - start > 1:
                continue
            tokens = self._capped(request.known - start)
            if tokens > self.budget and not self.config["enable_chunked_prefill"]:
                return
            tokens = min(tokens, self.budget)
            reserve = self.config["scheduler_reserve_full_isl"]
            must_fit = request.known if reserve else start + tokens
            if not self.pool.fits(request, must_fit, hits, self._spare()):
                return
            self.waiting.remove(request)
            self.running.append(request)
            request.computed = start
            self._schedule(request, tokens, hits)

    def _capped(self, tokens: int) -> int:
        return min(tokens, self.chunk_cap) if self.chunk_cap else tokens

    def _spare(self) -> int:
        """Blocks that an admission must leave free, unless nobody runs."""
        blocks = int(self.config["watermark"] * self.config["num_blocks_incl_null"])
        return blocks if self.running else 0

    def _schedule(self, request: Request, tokens: int, hits: Sequence[int] = ()) -> None:
        self.pool.allocate(request, request.computed + tokens, hits)
        self.batch[request] = tokens
        self.budget -= tokens

    def _victim(self) -> Request:
        """The last admitted, or under priorities the least urgent."""
        if self.config["policy"] == "fcfs":
            return self.running[-1]
        return max(self.running, key=lambda request: request.rank)

    def _preempt(self, request: Request) -> None:
        """Back to the head of the queue: outputs are kept, everything computed is lost.

        If it was in this batch already, its tokens return to the budget.
        """
        self.budget += self.batch.pop(request, 0)
        self.pool.release(request)
        request.computed, request.phase = 0, "recompute"
        self.running.remove(request)
        self.waiting.insert(0, request)
        self._sort_waiting()
        self.preempted.append(request)

    def _sort_waiting(self) -> None:
        if self.config["policy"] == "priority":
            self.waiting.sort(key=lambda request: request.rank)

    def _run(self) -> list[Request]:
        """The batch runs: who has all its tokens computed samples one; who is done leaves."""
        for request, tokens in self.batch.items():
            request.computed += tokens
            if request.computed == request.known:
                request.outputs += 1
                request.phase = "decode"
        done = [request for request in self.batch if request.outputs == request.output_len]
        for request in done:
            self.running.remove(request)
            self.pool.release(request)
        self.finished += done
        return done


def _ids(requests: Sequence[Request]) -> list[str]:
    return [request.id for request in requests]


def _entry(request: Request, tokens: int) -> dict[str, Any]:
    return {
        "id": request.id,
        "tokens": tokens,
        "computed_before": request.computed,
        "phase": request.phase,
        "samples": request.computed + tokens == request.known,
    }


def random_case(
    seed: int, prefix_caching: bool = False
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A small workload and a configuration that serves it, mostly with too little memory.

    With ``prefix_caching`` the prompts have token ids and share their beginnings.
    """
    rng = random.Random(seed)
    block_size, count = rng.choice((1, 2, 4, 8)), rng.randint(2, 10)
    max_model_len, chunked = rng.choice((48, 8192)), rng.random() < 0.75
    arrivals = sorted(rng.randint(0, 2 * count) for _ in range(count))
    workload: list[dict[str, Any]] = [
        {
            "id": str(number),
            "arrival_step": arrival,
            "prompt_len": rng.randint(1, 40),
            "output_len": rng.randint(1, 30),
            "priority": rng.randint(0, 2),
        }
        for number, arrival in enumerate(arrivals)
    ]
    for row in workload if prefix_caching else ():
        shared = rng.randint(0, row["prompt_len"])
        row["prompt_token_ids"] = [
            n if n < shared else rng.randint(1000, 1002) for n in range(row["prompt_len"])
        ]
    ends = [min(row["prompt_len"] + row["output_len"], max_model_len) for row in workload]
    longest = max(ends) - 1
    least = -(-longest // block_size)
    config = {
        "max_num_batched_tokens": rng.choice((3, 8, 16, 64)) if chunked else longest + 9,
        "max_num_seqs": rng.randint(1, count + 1),
        "block_size": block_size,
        "num_blocks_incl_null": 1 + least + rng.randint(0, least),
        "enable_chunked_prefill": chunked,
        "long_prefill_token_threshold": rng.choice((0, 0, 5, 12)),
        "policy": rng.choice(("fcfs", "priority")),
        "enable_prefix_caching": prefix_caching,
        "scheduler_reserve_full_isl": rng.random() < 0.5,
        "watermark": rng.choice((0.0, 0.0, 0.05, 0.2)),
        "prefill_schedule_interval": rng.choice((1, 1, 2, 3)),
        "max_model_len": max_model_len,
    }
    return workload, config
