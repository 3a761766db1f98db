"""The KV memory of an engine, as a scenario describes it."""

from __future__ import annotations

from dataclasses import dataclass

from llmgym.core.checks import check_flag, keep_number
from llmgym.core.errors import LLMGymError, answers_other_names, check_number


@answers_other_names
@dataclass(frozen=True)
class KVCache:
    """The KV memory of an engine, in blocks of ``block_size`` tokens.

    A request holds whole blocks for all its tokens that were computed and not lost. One that finishes
    gives them back. One that is preempted loses them, and computes its prompt and its outputs so far
    again (recompute); or they are swapped out to the memory of the host.

    Args:
        blocks: number of usable blocks. vLLM counts one more, the null block.
        block_size: tokens in a block.
        prefix_caching: whether requests that begin the same way share full blocks. These can be found
            after their request is gone, until they are taken for another.
        swap_tokens_per_ms: swap instead of recompute: tokens whose keys and values move to the host or
            back in a millisecond, which prolongs the batch. A link of 25 GB/s and 128 KiB per token
            make 190. The host has room for all.
    """

    blocks: int
    block_size: int = 16
    prefix_caching: bool = False
    swap_tokens_per_ms: float | None = None

    def __post_init__(self) -> None:
        keep_number(self, "blocks", low=1, high=2**24, integer=True)
        keep_number(self, "block_size", low=1, high=2**16, integer=True)
        check_number("blocks * block_size", self.tokens, high=2**30, integer=True)
        object.__setattr__(
            self, "prefix_caching", check_flag("prefix_caching", self.prefix_caching)
        )
        if self.swap_tokens_per_ms is not None:
            keep_number(self, "swap_tokens_per_ms", above=0)
            if self.prefix_caching:
                raise LLMGymError(
                    "Swapping and prefix caching together are not modelled: choose one."
                )

    @classmethod
    def left_over(
        cls,
        memory_gb: float,
        weights_gb: float,
        bytes_per_token: float,
        utilization: float = 0.9,
        block_size: int = 16,
    ) -> KVCache:
        """The KV memory that weights leave.

        Args:
            memory_gb: memory of all the engine's GPUs, in GB of 10**9 bytes.
            weights_gb: what the weights take of it, in GB.
            bytes_per_token: KV memory of a token: 2 (key and value) * layers * KV heads * head size *
                bytes of a number.
            utilization: share of the memory for weights and KV; activations, which are not counted,
                must fit into the rest.
            block_size: tokens in a block.

        Raises:
            LLMGymError: a number out of range, or not one block is left.
        """
        utilization = check_number("utilization", utilization, above=0, high=1)
        given = {"memory_gb": memory_gb, "weights_gb": weights_gb}
        memory_gb, weights_gb, bytes_per_token = (
            float(check_number(name, value, above=0))
            for name, value in (given | {"bytes_per_token": bytes_per_token}).items()
        )
        block_size = check_number("block_size", block_size, low=1, high=2**16, integer=True)
        blocks = (utilization * memory_gb - weights_gb) * 1e9 // (bytes_per_token * block_size)
        if not blocks >= 1:
            raise LLMGymError(
                f"{weights_gb:g} GB of weights leave no KV memory in {utilization:g} of {memory_gb:g} "
                "GB; use more or larger GPUs."
            )
        return cls(int(min(blocks, 2.0**62)), block_size)

    @property
    def tokens(self) -> int:
        """Tokens that fit."""
        return self.blocks * self.block_size
