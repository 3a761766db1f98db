"""Tile policies trained with Stable-Baselines3: PPO, MaskablePPO and DQN on llmgym's vector adapter.

What comes out is an ordinary policy of llmgym: the weights of the network, in JAX. See ``train``.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from llmgym.agents import checkpoint
from llmgym.agents.sb3_worlds import Worlds
from llmgym.agents.tile_choice import TileChoice
from llmgym.agents.worlds import tiles_of
from llmgym.core.errors import LLMGymError, check_number, unknown
from llmgym.core.files import write
from llmgym.core.folders import alone_in
from llmgym.integrations.sb3 import SB3VecEnv
from llmgym.scenario import toml_writer
from llmgym.scenario.library import as_scenario
from llmgym.scenario.scenario import Scenario

try:
    import torch
    from sb3_contrib import MaskablePPO
    from stable_baselines3 import DQN, PPO
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
    from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

    from llmgym.agents.sb3_networks import HIDDEN, MaskableResidualPolicy, ResidualPolicy
    from llmgym.agents.sb3_policies import policy_of
except ImportError as error:
    raise ImportError(
        "llmgym.agents.sb3_ppo needs Stable-Baselines3: pip install 'llmgym[sb3]'."
    ) from error

GAMMA = 0.999
"""Discount per step: about 1000 steps count, which are one or two minutes."""

ALGORITHMS: dict[str, tuple[type[BaseAlgorithm], Any]] = {
    "ppo": (PPO, ResidualPolicy),
    "maskable-ppo": (MaskablePPO, MaskableResidualPolicy),
    "dqn": (DQN, "MlpPolicy"),
}

ACTIONS = ("tiles", "split")


def choice_of(
    scenarios: Sequence[Scenario], action: str, algorithm: str, **settings: Any
) -> TileChoice:
    """What a policy of these scenarios observes and may do.

    Args:
        scenarios: those to learn from; the largest gives the number of tiles.
        action: ``"tiles"`` or ``"split"``, see ``train``.
        algorithm: a name in ALGORITHMS.
        settings: of TileChoice, in place of those that suit the scenarios.

    Raises LLMGymError for an unknown action or algorithm, or a pair that does not go together.
    """
    if algorithm not in ALGORITHMS:
        raise unknown("algorithm", algorithm, ALGORITHMS)
    if action == "scores":
        raise LLMGymError(
            f"Action 'scores' is continuous, and {algorithm} here chooses among tiles: use action "
            "'tiles' or 'split', or train scores with llmgym.agents.training."
        )
    if action not in ACTIONS:
        raise unknown("action", action, ACTIONS)
    usual: dict[str, Any] = {"tiles": tiles_of(scenarios), "shares": 1 if action == "tiles" else 3}
    if any(s.engine.max_num_seqs is not None for s in scenarios):
        usual["guard"] = None  # a full batch is not safe there
    if algorithm == "dqn":
        usual["prior"] = 0.0  # a prior of logits says nothing of values
    choice = TileChoice(**usual | settings)
    if algorithm == "dqn" and len(choice.parts) > 1:
        raise LLMGymError(
            "DQN needs one discrete action, and 'split' is two choices; use action 'tiles', or "
            "algorithm 'maskable-ppo'."
        )
    if algorithm == "dqn" and choice.prior:
        raise LLMGymError("DQN learns values and takes no prior of logits; set prior to 0.")
    return choice


def settings_of(algorithm: str, choice: TileChoice, num_envs: int) -> dict[str, Any]:
    """Settings of an SB3 algorithm that suit the problem; ``train`` can override each.

    Args:
        algorithm: a name in ALGORITHMS.
        choice: what the policy observes and may do.
        num_envs: engines that step together, to which batches and buffers are sized.
    """
    network: dict[str, Any] = {"activation_fn": torch.nn.Tanh, "net_arch": list(HIDDEN)}
    if algorithm == "dqn":
        return {
            "policy_kwargs": network, "gamma": GAMMA, "learning_rate": 1e-3, "batch_size": 512,
            "buffer_size": 1000 * num_envs, "learning_starts": 100 * num_envs,
            "train_freq": 1, "gradient_steps": 2, "target_update_interval": 200,
            "exploration_fraction": 0.5, "exploration_final_eps": 0.02,
        }  # fmt: skip
    return {
        "policy_kwargs": network | {"inputs": choice.inputs, "logits": sum(choice.parts)},
        "gamma": GAMMA, "gae_lambda": 0.98, "n_steps": 128, "batch_size": 16 * num_envs, "n_epochs": 4,
        "learning_rate": lambda left: 2e-3 * max(left, 0.1), "ent_coef": 0.0,
    }  # fmt: skip


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: small networks gain nothing from more, and sums keep their order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Told(BaseCallback):
    """Logs the requests present and the cost per second of every world."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        present, cost = (self.training_env.get_attr(x)[0] for x in ("present", "average_cost"))
        for n, (a, b) in enumerate(zip(present, cost, strict=True)):
            self.logger.record(f"worlds/present_{n}", float(a))
            self.logger.record(f"worlds/cost_{n}", float(b))


def train(
    scenarios: Scenario | str | Sequence[Scenario | str],
    algorithm: str = "maskable-ppo",
    *,
    action: str = "tiles",
    choice: Mapping[str, Any] | None = None,
    steps: int = 1_000_000,
    num_envs: int = 256,
    max_steps: int = 1024,
    seed: int = 0,
    out: Path | str | None = None,
    tensorboard: Path | str | None = None,
    callback: Any = None,
    progress_bar: bool = False,
    **settings: Any,
) -> BaseAlgorithm:
    """Train a tile policy with Stable-Baselines3; ``policy_of(model)`` makes a policy of the result.

    Args:
        scenarios: one, or several to learn from at once (loads of one: ``at_load(scenario, x)``).
        algorithm: ``"ppo"``, ``"maskable-ppo"`` (sb3-contrib) or ``"dqn"``.
        action: ``"tiles"``, or ``"split"``: also which share of the room goes to prefill.
        choice: settings of llmgym.agents.tile_choice.TileChoice: prior, guard, shares and so on.
        steps: environment steps of all engines together.
        num_envs: engines, divided equally among the scenarios.
        max_steps: decisions after which an episode is cut; see ``Worlds``.
        seed: of engines and learner; the same seed gives the same policy.
        out: folder for agent-SEED.npz, a policy of llmgym, and sb3-SEED.zip, which SB3 loads.
        tensorboard, callback, progress_bar: those of SB3 (``tensorboard_log``, and of ``learn``).
        settings: of the algorithm, in place of those of ``settings_of``.

    Raises:
        LLMGymError: an unknown algorithm or setting, an action that the algorithm cannot choose, a
            scenario that cannot be trained, or a folder that cannot be written.
    """
    given = [scenarios] if isinstance(scenarios, (Scenario, str)) else list(scenarios)
    worlds = [as_scenario(s) for s in given]
    check_number("steps", steps, low=1, integer=True)
    check_number("seed", seed, low=0, high=2**32 - 1, integer=True)
    chosen = choice_of(worlds, action, algorithm, **dict(choice or {}))
    envs = Worlds(worlds, chosen, num_envs, algorithm != "dqn", max_steps)
    learner, policy = ALGORITHMS[algorithm]
    with alone_in(out), one_thread():
        adapter = VecNormalize(VecMonitor(SB3VecEnv(envs)), norm_obs=False, gamma=GAMMA)
        usual = settings_of(algorithm, chosen, num_envs)
        try:
            model = learner(
                policy, adapter, seed=seed, device="cpu",
                tensorboard_log=None if tensorboard is None else str(tensorboard),
                **usual | settings,
            )  # fmt: skip
        except TypeError as error:
            raise LLMGymError(f"Algorithm {algorithm!r}: {error}.") from error
        model.learn(steps, callback=_callbacks(callback), progress_bar=progress_bar)
        if out is not None:
            header = _header_of(algorithm, envs, model, steps, seed, settings)
            checkpoint.save_agent(Path(out) / f"agent-{seed}.npz", policy_of(model, header=header))
            model.save(data := io.BytesIO())
            write(Path(out) / f"sb3-{seed}.zip", data.getvalue())
    return model


def _callbacks(callback: Any) -> CallbackList:
    """The user's callbacks, in any form that SB3 takes, and ours."""
    if callback is None:
        return CallbackList([_Told()])
    if not isinstance(callback, (list, BaseCallback)):
        callback = ConvertCallback(callback)
    return CallbackList([*(callback if isinstance(callback, list) else [callback]), _Told()])


def _header_of(
    algorithm: str,
    envs: Worlds,
    model: BaseAlgorithm,
    steps: int,
    seed: int,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that the policy of a seed depends on, as JSON."""
    versions = {n: metadata.version(n) for n in ("stable_baselines3", "sb3_contrib", "torch")}
    return {
        "algorithm": f"sb3-{algorithm}",
        "scenarios": [toml_writer.dumps(s) for s in envs.training.scenarios],
        "settings": {name: repr(value) for name, value in settings.items()},
        "num_envs": envs.num_envs,
        "max_steps": envs.max_steps,
        "steps": steps,
        "steps_made": model.num_timesteps,
        "seed": seed,
        "versions": checkpoint.versions() | versions,
    }
