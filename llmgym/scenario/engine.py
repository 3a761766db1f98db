"""One inference engine, as a scenario describes it."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np

from llmgym.core.checks import check_name, check_text, keep_number
from llmgym.core.errors import LLMGymError, answers_other_names, shown
from llmgym.scenario.batch_time import BatchTime
from llmgym.scenario.kv_cache import KVCache

SEQ_LIMITS = ("batch", "resident")


FIRST_TOKENS = ("decode", "prefill")


ROUTERS = (
    "fewest_tokens",
    "fewest_requests",
    "power_of_two",
    "least_kv",
    "round_robin",
    "random",
    "action",
)
"""How calls choose among replicas; ``"action"``: the one that the agent chose last."""


@answers_other_names
@dataclass(frozen=True)
class Engine:
    """One inference engine (arXiv:2504.07347v3, section 3).

    Args:
        batch_time: t_b, milliseconds against tokens in the batch.
        token_budget: b_max, the most tokens in one batch (6d).
        max_num_seqs: k_max, the most requests; None: no limit (section 6).
        seq_limit: what k_max counts: the requests in each ``"batch"``, or the ``"resident"`` ones: all
            that have received a token and are not finished. Sources differ.
        name: what stages call it.
        replicas: how many of it there are behind a router; stages name the group.
        kv_cache: its KV memory; None: no limit.
        first_token: ``"decode"``: every output token takes an iteration of its own, as in the model of
            arXiv:2504.07347; ``"prefill"``: the iteration that ends the prompt yields the first one,
            as in vLLM, so a request of P and O tokens costs P + O - 1.
    """

    batch_time: BatchTime
    token_budget: int
    max_num_seqs: int | None = None
    seq_limit: str = "batch"
    name: str = "engine"
    replicas: int = 1
    kv_cache: KVCache | None = None
    first_token: str = "decode"

    def __post_init__(self) -> None:
        keep_number(self, "replicas", low=1, high=256, integer=True)
        if not isinstance(self.batch_time, BatchTime):
            given = shown(self.batch_time)
            raise LLMGymError(
                f"batch_time must be a batch-time model such as Staircase, got {given}."
            )
        if any(np.ndim(constant) for constant in jax.tree.leaves(self.batch_time)):
            raise LLMGymError(
                f"The constants of batch_time must be numbers, got {shown(self.batch_time)}."
            )
        keep_number(self, "token_budget", low=1, high=2**20, integer=True)
        if self.max_num_seqs is not None:
            keep_number(self, "max_num_seqs", low=1, high=2**20, integer=True)
        check_name("seq_limit", self.seq_limit, SEQ_LIMITS)
        check_name("first_token", self.first_token, FIRST_TOKENS)
        check_text("The name of an engine", self.name)
        if not (self.kv_cache is None or isinstance(self.kv_cache, KVCache)):
            raise LLMGymError(f"kv_cache must be a KVCache or None, got {shown(self.kv_cache)}.")

    @property
    def prompt_samples(self) -> bool:
        """Whether the iteration that ends a prompt yields an output token."""
        return self.first_token == "prefill"

    @property
    def needs_memory(self) -> bool:
        """Whether what a request has in KV memory matters at all."""
        attention = self.batch_time.needs_attention
        return self.kv_cache is not None or self.prompt_samples or attention
