"""What a policy is: a pure function ``policy(key, view) -> Batch`` that can describe itself.

One with a memory is a ``RememberingPolicy``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import jax

from llmgym.core.checks import check_flag, keep_number
from llmgym.core.errors import unknown
from llmgym.core.precision import in_32_bits
from llmgym.engine.view import Batch, View


@dataclass(frozen=True)
class Policy:
    """Base of the baselines: a frozen dataclass of settings, called as ``policy(key, view)``.

    Attributes:
        name: registry name.
        work_conserving: whether every batch obeys Eqs. (8)-(9) of arXiv:2504.07347v3 with
            ``b_max = token_budget`` and no limit on requests.
        saturates: whether its rate of departures under overload is its capacity (more waiting requests
            never slow it down).
        batched: whether the policy takes a view with batch axes behind the slots as it is; else it is
            vmapped, as any plain function is.
        token_budget: the policy's own budget, if it is below the engine's.
    """

    name: ClassVar[str]
    work_conserving: ClassVar[bool] = False
    saturates: ClassVar[bool] = False
    batched: ClassVar[bool] = True
    token_budget: int | None = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__call__" in vars(cls):
            cls.__call__ = in_32_bits(cls.__call__)  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.type == "bool":
                check_flag(field.name, getattr(self, field.name))
        if self.token_budget is not None:
            keep_number(self, "token_budget", low=1, integer=True, arrays=True)

    def __call__(self, key: jax.Array, view: View) -> Batch:
        """Compose the next batch of one engine; jit- and vmap-able."""
        raise TypeError("a policy must define __call__(key, view)")

    def unservable(self, longest_prompt: float, token_budget: int) -> str | None:
        """Why some request can never be served on an engine with this budget; None if all can."""
        return None


class RememberingPolicy(Protocol):
    """A policy with a memory: an estimate, a counter, the state of a recurrent network.

    It is used wherever a policy is. This one keeps prompts back while the decodes of its last batches,
    on average, fill half the budget::

        class Restrained:
            def start(self, view):
                return jnp.int32(0)  # 16 times the mean

            def __call__(self, key, view, memory):
                decodes = fill(view, view.empty(), view.decode)
                mean = memory + (16 * decodes.size - memory) // 8
                most = jnp.where(mean > 8 * view.token_budget, decodes.size, view.token_budget)
                return fill(view, decodes, view.prefill, most), mean

    The memory is a pytree of arrays, one for each environment, and in a network for each engine. Its
    structure, shapes and dtypes stay as ``start`` gives them. A policy that is ``batched`` gets and
    gives arrays whose last axes are those of the view, (engines, environments); any other is vmapped
    and sees one engine.

    All engines of a network are asked at every epoch, but only the free ones take their batch: the
    memory of an engine that is busy (``~view.free``) stays as it was, so one call is one decision of
    the engine. It stays as well where an environment stands still at the horizon of its run. Requests
    move between slots, so a memory by slot is of no use. Whole numbers are the same however a run is
    compiled; sums of floating-point products may differ in their last digit.
    """

    def start(self, view: View) -> Any:
        """The memory at the beginning of a run or an episode, whose first state ``view`` shows."""

    def __call__(self, key: jax.Array, view: View, memory: Any) -> tuple[Batch, Any]:
        """The next batch of one engine, and the memory for the decision after it."""


PROMPTS = ("whole", "split")


@dataclass(frozen=True)
class WholePromptPolicy(Policy):
    """Base of the two policies of the paper whose treatment of long prompts the sources leave open.

    ``prompts="whole"``: a prompt enters one batch entirely or not at all, and one above the budget
    freezes the head of the line. ``prompts="split"``: it is cut at the budget.
    """

    prompts: str = "whole"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompts not in PROMPTS:
            raise unknown("prompts mode", self.prompts, PROMPTS)

    def unservable(self, longest_prompt: float, token_budget: int) -> str | None:
        budget = min(token_budget, self.token_budget or token_budget)
        if self.prompts == "split" or longest_prompt <= budget:
            return None
        return (
            f"{self.name} takes prompts whole, and prompts of up to {longest_prompt:g} tokens do not fit "
            f"its token budget of {budget}: the first one stops the engine for good. Use prompts='split' "
            f"or a larger token budget."
        )
