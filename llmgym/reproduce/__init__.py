"""Published results, reproduced: ``llmgym reproduce`` runs these items and judges every figure.

``ITEMS`` has them by name; ``select`` picks some, ``run`` measures, ``judge`` compares.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmgym.core.errors import unknown
from llmgym.reproduce import acyclic as networks
from llmgym.reproduce import (
    batch_limit,
    figure_1,
    figure_8,
    resident_cap,
    rybko_stolyar,
    theorem_2,
    work_conservation,
)
from llmgym.reproduce import kv_memory as memory
from llmgym.reproduce import policy_table as policies
from llmgym.reproduce.items import Check, Effort, Item

ITEMS: dict[str, Item] = {
    item.name: item
    for item in (
        figure_8.batch_time,
        figure_8.figure_8,
        theorem_2.theorem_2,
        theorem_2.rate_bound_item,
        work_conservation.work_conservation,
        figure_1.figure_1,
        theorem_2.faster_transformer,
        batch_limit.corner_c,
        batch_limit.polygon,
        networks.load_balancing,
        networks.acyclic,
        rybko_stolyar.rybko_stolyar,
        theorem_2.saturation,
        resident_cap.resident_cap,
        memory.kv_memory,
        memory.flow_control,
        memory.vllm_batches,
        policies.policies,
    )
}
"""All items, in the order in which they run."""


def select(names: Sequence[str] = ()) -> tuple[Item, ...]:
    """The items of these names, by default all. Raises LLMGymError for an unknown one."""
    for name in names:
        if name not in ITEMS:
            raise unknown("item", name, ITEMS)
    return tuple(ITEMS[name] for name in (dict.fromkeys(names) or ITEMS))


__all__ = ["ITEMS", "Check", "Effort", "Item", "select"]
