"""The KV memory of an engine, as a scenario describes it."""

from __future__ import annotations

from dataclasses import dataclass

from llmgym.core.errors import LLMGymError, check_number


@dataclass(frozen=True)
class KVCache:
    """The KV memory of an engine, in blocks of ``block_size`` tokens.

    A request holds whole blocks for all its tokens that were computed and not lost. One that finishes
    gives them back, one that is preempted loses them and computes its prompt and its outputs so far
    again (recompute), or they are swapped out to the memory of the host.

    Args:
        blocks: that requests can have. vLLM counts one more, the null block.
        block_size: tokens in a block.
        prefix_caching: whether full blocks can be found after their request is gone, until they are
            taken again, and are shared by requests that begin the same way.
        swap_tokens_per_ms: swap instead of recompute: tokens whose keys and values go to the host or
            back in a millisecond, which prolongs the batch. A link of 25 GB/s and 128 KiB a token
            make 190. The host has room for all.
    """

    blocks: int
    block_size: int = 16
    prefix_caching: bool = False
    swap_tokens_per_ms: float | None = None

    def __post_init__(self) -> None:
        check_number("blocks", self.blocks, low=1, high=2**24, integer=True)
        check_number("block_size", self.block_size, low=1, high=2**16, integer=True)
        check_number("blocks * block_size", self.tokens, high=2**30, integer=True)
        if not isinstance(self.prefix_caching, bool):
            raise LLMGymError(f"prefix_caching must be True or False, got {self.prefix_caching!r}.")
        if self.swap_tokens_per_ms is not None:
            check_number("swap_tokens_per_ms", self.swap_tokens_per_ms, above=0)
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
        """The KV memory that weights leave: ``utilization`` of all memory, in GB of 10**9 bytes.

        A token takes 2 (key and value) * layers * KV heads * head size * bytes of a number. What
        activations take is not counted: it must fit into the rest, 1 - ``utilization``.

        Raises LLMGymError where nothing is left for a block.
        """
        check_number("utilization", utilization, above=0, high=1)
        given = {"memory_gb": memory_gb, "weights_gb": weights_gb}
        for name, value in (given | {"bytes_per_token": bytes_per_token}).items():
            check_number(name, value, above=0)
        blocks = (utilization * memory_gb - weights_gb) * 1e9 // (bytes_per_token * block_size)
        if blocks < 1:
            raise LLMGymError(
                f"{weights_gb:g} GB of weights leave no KV memory in {utilization:g} of {memory_gb:g} "
                "GB; use more or larger GPUs."
            )
        return cls(int(blocks), block_size)

    @property
    def tokens(self) -> int:
        """Tokens that fit."""
        return self.blocks * self.block_size
