"""The command ``llmgym train``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmgym.cli import common as cli
from llmgym.cli.cards import CARD, check_card, write_card
from llmgym.cli.interfaces import OWN, interface_options
from llmgym.core.errors import LLMGymError, unknown

if TYPE_CHECKING:
    from llmgym.agents.training import Training
    from llmgym.scenario.scenario import Scenario

app = typer.Typer()

AGENTS = ("ppo", "budget", "scores", "sb3-ppo", "sb3-maskable-ppo", "sb3-dqn")

TRAINING_LOADS = (0.58, 0.72, 0.79, 0.83, 0.865, 0.9, 0.925, 0.945, 0.965)
"""The loads, as fractions of the LP capacity, that a policy is trained at where none are given."""

NETWORK_LOADS = (0.85, 0.9, 0.95)
"""The same where the scenario is a network."""

NETWORK = {
    "prefill_weight": 1.0,
    "num_envs": 32,
    "horizon_s": 2.0,
    "trace": 0.99,
    "epochs": 4,
    "minibatches": 8,
    "learning_rate": 3e-3,
    "entropy": 0.003,
}
"""Settings of the learner for a network, where --option does not give others."""


@app.command()
def train(
    scenario: Annotated[
        list[str] | None,
        typer.Option(
            "--scenario",
            "-s",
            help="Repeatable: one policy for all of them. capped:max_num_seqs=160 for settings.",
        ),
    ] = None,
    agent: Annotated[str, typer.Option(help=f"The algorithm: {', '.join(AGENTS)}.")] = "ppo",
    steps: Annotated[int, typer.Option(help="Environment steps of each seed.")] = 32_000_000,
    load: cli.Loads = None,
    rate: cli.Rates = None,
    seed: Annotated[int, typer.Option(help="Seed of the first policy.")] = 0,
    seeds: Annotated[int, typer.Option(help="Policies to train, from consecutive seeds.")] = 1,
    patience: Annotated[
        int | None, typer.Option(help="Stop after this many iterations without progress.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="Setting of the learner: prior=0. Repeatable."),
    ] = None,
    observation: Annotated[
        str | None,
        typer.Option(help="What a ppo policy sees: names of entries, prefill_tokens,decoding,..."),
    ] = None,
    action: Annotated[
        str | None,
        typer.Option(help="What it chooses: tiles, split, tokens or budget; split:shares=3."),
    ] = None,
    log: Annotated[
        str | None, typer.Option(help="Where the learning curve goes too: tensorboard or wandb.")
    ] = None,
    settings: cli.Set = None,
    out: cli.Out = None,
    as_json: cli.Json = False,
) -> None:
    """Train policies. Resumes where it was stopped; --out FOLDER holds agent-SEED.npz, curves and a card."""
    if agent not in AGENTS:
        raise unknown("agent", agent, AGENTS)
    typed = scenario or ["latency"]
    bases = [_scenario(name, settings or []) for name in typed]
    out = out or cli.results_folder(agent, bases[0].name)
    check_card(out)
    sees = interface_options(bases, agent, observation, action) if observation or action else None
    if agent.startswith("sb3-"):
        _refuse_for_sb3(agent, patience, log)
        worlds = [s for base in bases for s in cli.at_rates(base, load, rate, TRAINING_LOADS)]
        numbers = _seeds(seed, seeds)
        policies = _sb3(agent, worlds, steps, numbers, option, out, as_json, log)
    else:
        training = _training(bases, steps, load, rate, seed, seeds, patience, option, agent, sees)
        worlds, numbers = list(training.scenarios), training.seeds
        policies = _jax(training, out, as_json, log)
    again = _again(typed[0], settings or [])
    write_card(out, numbers, worlds, again)
    _tell(policies, numbers, out, again, as_json)


def _jax(training: Training, out: Path, quiet: bool, log: str | None) -> list[Any]:
    """Train policies with llmgym's own learner."""
    from llmgym.agents.training import train as run_training

    with cli.bar(quiet, steps=True) as bar:
        tasks = {
            s: bar.add_task(f"seed {s}: compiling", total=training.iterations)
            for s in training.seeds
        }

        def progress(seed: int, done: int, row: dict[str, Any]) -> None:
            bar.update(tasks[seed], completed=done, description=f"seed {seed}: {_told(row)}")

        return run_training(training, out, progress, log=log)


def _refuse_for_sb3(agent: str, patience: int | None, log: str | None) -> None:
    """Refuse what only llmgym's own learner has."""
    from llmgym.agents.logs import LOGS
    from llmgym.core.checks import check_name

    if log is not None:
        check_name("log", log, LOGS)
    if patience is not None:
        raise LLMGymError(f"--patience is for ppo, budget and scores; {agent} makes all its steps.")
    if log == "wandb":
        raise LLMGymError(
            f"--log {log} is for ppo, budget and scores; {agent} writes --log tensorboard, which "
            "'wandb sync' reads as well."
        )


def _tell(
    policies: list[Any], seeds: tuple[int, ...], out: Path, scenario: list[str], as_json: bool
) -> None:
    """Say what was written, and the command that judges it: ``scenario`` are its options for the scenario."""
    found = [
        {"seed": s, "file": str(out / f"agent-{s}.npz"), "digest": p.digest}
        | {name: p.header[name] for name in ("iterations", "steps_made") if name in p.header}
        for s, p in zip(seeds, policies, strict=True)
    ]
    if as_json:
        return cli.print_json(found)
    for record in found:
        cli.show(f"Wrote {record['file']}.")
    cli.show(f"What they are: {out / CARD}.")
    cli.show(f"Judge: {shlex.join(['llmgym', 'evaluate', *scenario, '-p', found[0]['file']])}")


def _sb3(
    agent: str,
    worlds: list[Scenario],
    steps: int,
    seeds: tuple[int, ...],
    option: list[str] | None,
    out: Path,
    quiet: bool,
    log: str | None,
) -> list[Any]:
    """Train policies with Stable-Baselines3, one seed after the other."""
    from dataclasses import fields

    from llmgym.agents import sb3_ppo
    from llmgym.agents.logs import check_log
    from llmgym.agents.sb3_policies import policy_of
    from llmgym.agents.tile_choice import TileChoice

    given, of_choice = _options(option), {f.name for f in fields(TileChoice)}
    choice = {k: v for k, v in given.items() if k in of_choice}
    rest = {k: v for k, v in given.items() if k not in of_choice}
    if "num_envs" not in rest:  # equally many for each world
        rest["num_envs"] = len(worlds) * max(256 // len(worlds), 1)
    check_log(log, out)
    if log is not None:
        rest["tensorboard"] = out / "tensorboard"
    found = []
    with cli.alone_in(out), cli.bar(quiet, steps=True) as bar:
        for seed in seeds:
            task = bar.add_task(f"seed {seed}", total=steps)

            def progress(values: dict[str, Any], _: Any, task: Any = task) -> bool:
                bar.update(task, completed=min(values["self"].num_timesteps, steps))
                return True

            model = sb3_ppo.train(
                worlds, agent.removeprefix("sb3-"), choice=choice, steps=steps, seed=seed, out=out,
                callback=progress, **rest,
            )  # fmt: skip
            found.append(policy_of(model, header={"steps_made": model.num_timesteps}))
    return found


def _options(option: list[str] | None) -> dict[str, Any]:
    """Settings of the learner, each from name=value."""
    given: dict[str, Any] = {}
    for pair in option or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise LLMGymError(f"--option {pair}: write name=value.")
        given[name.strip()] = cli.parse(value.strip())
    return given


def _seeds(first: int, count: int) -> tuple[int, ...]:
    if count < 1:
        raise LLMGymError(f"--seeds must be at least 1, got {count}.")
    return tuple(range(first, first + count))


def _scenario(name: str, settings: list[str]) -> Scenario:
    """A scenario from ``name`` or ``name:setting=value,setting=value``, with settings for all on top."""
    base, own = _parts(name)
    chosen: Scenario = cli.scenario(base, [*settings, *own], None)
    return chosen


def _parts(name: str) -> tuple[str, list[str]]:
    """The name or file, and the settings that follow it."""
    base, _, own = name.partition(":")
    return base, own.split(",") if own else []


def _again(name: str, settings: list[str]) -> list[str]:
    """The options with which another command has the same scenario."""
    base, own = _parts(name)
    return ["-s", base, *(word for pair in (*settings, *own) for word in ("--set", pair))]


def _told(row: dict[str, Any]) -> str:
    """A row of the learning curve in a few words."""
    return (
        f"{float(row['present'].mean()):.1f} requests present, cost {float(row['cost'].mean()):.1f},"
        f" entropy {float(row['entropy']):.2f}"
    )


def _training(
    bases: list[Scenario],
    steps: int,
    load: list[float] | None,
    rate: list[float] | None,
    seed: int,
    seeds: int,
    patience: int | None,
    option: list[str] | None,
    agent: str = "ppo",
    sees: dict[str, Any] | None = None,
) -> Training:
    """The training run that the options describe; ``sees``: from ``interface_options``."""
    from dataclasses import fields, replace

    from llmgym.agents.checkpoint import CHOICES
    from llmgym.agents.ppo import PPO
    from llmgym.agents.training import Training
    from llmgym.agents.worlds import network_size, tiles_of
    from llmgym.envs.rewards import ServiceLevels

    network = all(base.is_network for base in bases)
    usual = NETWORK_LOADS if network else TRAINING_LOADS
    worlds = [s for base in bases for s in cli.at_rates(base, load, rate, usual)]
    kind = "network" if network else "tiles" if agent == "ppo" else agent
    given: dict[str, Any] = network_size(bases) | NETWORK if network else {"tiles": tiles_of(bases)}
    if sees is not None:
        kind, given = "interface", {}
    engines = [] if network or sees else [base.engine for base in bases]
    if any(e.max_num_seqs is not None or e.kv_cache is not None for e in engines):
        # Full batches, which a guard forces, are not safe there: the policy learns how many of
        # its seats to fill.
        given |= {"guard": None} | ({"shares": 3} if kind == "tiles" else {})
    given |= _options(option)
    of_choice = {f.name for f in fields(CHOICES[kind])} - (set(OWN) if sees else set())
    known = {f.name for f in fields(PPO)} - {"choice", "levels"} | of_choice
    for name in given:
        if name not in known:
            raise unknown("option", name, known)
    choice = CHOICES[kind](**{k: v for k, v in given.items() if k in of_choice}, **(sees or {}))
    promised = not network and all(base.has_targets for base in bases)
    learner = PPO(
        choice=choice,
        levels=ServiceLevels.of(bases[0]) if promised and given.get("late_weight") else None,
        **{k: v for k, v in given.items() if k not in of_choice},
    )
    numbers = _seeds(seed, seeds)
    return replace(Training(tuple(worlds), learner, seeds=numbers), steps=steps, patience=patience)
