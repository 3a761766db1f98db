"""VTC, the virtual token counter scheduler (arXiv:2401.00588, Sheng et al.)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from llmgym.baselines.policy import Policy
from llmgym.baselines.ranking import MOST, least_first
from llmgym.core.arrays import prefix_sum
from llmgym.core.errors import LLMGymError
from llmgym.engine.fill import fill, own_budget
from llmgym.engine.view import Batch, View


@dataclass(frozen=True)
class VTC(Policy):
    """Admit the oldest waiting request of the client that has been served least, again and again.

    A client is a request class; its counter, which ``llmgym.engine.service`` keeps, grows by w_p for every
    prompt token on admission and by w_q for every output token (Algorithm 2). In a batch the admitted
    go on, decodes first and then prompts in order of arrival; then, while budget, seats and memory
    last, the client with the smallest counter has its oldest waiting request admitted and its prompt
    charged. The first that does not fit ends the admission.

    Completed: prompts are chunked, as in Sarathi-Serve; ties between clients go to the earlier arrival;
    a preempted request waits again, without a second charge. Needs ``service_weights`` in the scenario.
    """

    name: ClassVar[str] = "vtc"
    work_conserving: ClassVar[bool] = True

    def __call__(self, key: jax.Array, view: View) -> Batch:
        budget = own_budget(view, self.token_budget)
        running = view.started
        batch = fill(view, view.empty(), jnp.where(running, view.decode, 0), budget)
        batch = fill(view, batch, jnp.where(running, view.prefill, 0), budget)
        waiting = jnp.where(running, 0, view.demand)
        return least_first(view, batch, waiting, self.turn(view), budget)

    def turn(self, view: View) -> jax.Array:
        """The counter of its client at the moment that each waiting request is admitted (slots, ...).

        Admitting the oldest request of the client with the smallest counter, with the charge before
        the next choice, is admitting in order of this number.
        """
        classes = view.classes
        if classes.counter is None or classes.service_weights is None:
            raise LLMGymError(
                "Policy 'vtc' goes by counters of the service to each client, which this scenario does "
                "not keep: set service_weights=(1, 2) in the scenario, on the command line "
                "--set service_weights=1,2."
            )
        never_served = ~view.started & (view.unserved == view.waited)
        # A full table of such charges stays inside 32 bits.
        most = MOST // view.prefill.shape[0]
        charge = jnp.minimum(classes.service_weights[0] * view.prompt, most)
        charge = jnp.where(never_served, charge, 0)
        turn = jnp.zeros_like(view.prefill)
        for k in range(classes.count):
            mine = view.job_class == k
            own = jnp.where(mine, charge, 0)
            turn = jnp.where(mine, classes.counter[k] + prefix_sum(own) - own, turn)
        return turn
