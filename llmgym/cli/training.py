"""The commands ``llmgym train`` and ``llmgym evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmgym.cli import common as cli
from llmgym.core.errors import LLMGymError, unknown
from llmgym.theory.capacity import at_load

if TYPE_CHECKING:
    from llmgym.agents.training import Training
    from llmgym.scenario.scenario import Scenario

app = typer.Typer()

AGENTS = ("ppo", "budget", "scores", "sb3-ppo", "sb3-maskable-ppo", "sb3-dqn")

TRAINING_LOADS = (0.58, 0.72, 0.79, 0.83, 0.865, 0.9, 0.925, 0.945, 0.965)
"""Fractions of the LP capacity that a policy learns from where no loads are named."""

NETWORK_LOADS = (0.85, 0.9, 0.95)

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
"""Settings of the learner where none are named and the scenario is a network."""

EVALUATION_LOADS = (0.6, 0.7, 0.8, 0.9, 0.95)

Rates = Annotated[
    list[float] | None,
    typer.Option("--rate", help="Requests per second, in place of a load. Repeatable."),
]
Loads = Annotated[
    list[float] | None,
    typer.Option("--load", help="Fraction of the LP capacity. Repeatable."),
]


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
    load: Loads = None,
    rate: Rates = None,
    seed: Annotated[int, typer.Option(help="Seed of the first policy.")] = 0,
    seeds: Annotated[int, typer.Option(help="Policies to train, from consecutive seeds.")] = 1,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many iterations without progress.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="Setting of the learner: prior=0. Repeatable."),
    ] = None,
    settings: cli.Set = None,
    out: cli.Out = None,
    as_json: cli.Json = False,
) -> None:
    """Train policies. Resumes where it was stopped; --out FOLDER holds agent-SEED.npz and curves."""
    from llmgym.agents.training import train as run_training

    if agent not in AGENTS:
        raise unknown("agent", agent, AGENTS)
    bases = [_scenario(name, settings or []) for name in scenario or ["latency"]]
    out = out or Path("results") / f"{agent}-{bases[0].name}"
    if agent.startswith("sb3-"):
        if patience is not None:
            raise LLMGymError(
                f"--patience is for ppo, budget and scores; {agent} makes all its steps."
            )
        worlds = [s for base in bases for s in _at(base, load, rate, TRAINING_LOADS)]
        numbers = _seeds(seed, seeds)
        policies = _sb3(agent, worlds, steps, numbers, option, out, as_json)
        return _tell(policies, numbers, out, bases[0].name, as_json)
    training = _training(bases, steps, load, rate, seed, seeds, patience, option, agent)
    with cli.bar(as_json, steps=True) as bar:
        tasks = {
            s: bar.add_task(f"seed {s}: compiling", total=training.iterations)
            for s in training.seeds
        }
        policies = run_training(
            training,
            out,
            lambda s, done, row: bar.update(
                tasks[s], completed=done, description=f"seed {s}: {_told(row)}"
            ),
        )
    _tell(policies, training.seeds, out, bases[0].name, as_json)


def _tell(
    policies: list[Any], seeds: tuple[int, ...], out: Path, scenario: str, as_json: bool
) -> None:
    """Say what was written, and how to judge it."""
    found = [
        {"seed": s, "file": str(out / f"agent-{s}.npz"), "digest": p.digest}
        | {name: p.header[name] for name in ("iterations", "steps_made") if name in p.header}
        for s, p in zip(seeds, policies, strict=True)
    ]
    if as_json:
        return cli.print_json(found)
    for record in found:
        cli.console.print(f"Wrote {record['file']}.", markup=False)
    cli.console.print(f"Judge: llmgym evaluate -s {scenario} -p {found[0]['file']}", markup=False)


def _sb3(
    agent: str,
    worlds: list[Scenario],
    steps: int,
    seeds: tuple[int, ...],
    option: list[str] | None,
    out: Path,
    quiet: bool,
) -> list[Any]:
    """Policies of Stable-Baselines3, one seed after the other."""
    from dataclasses import fields

    from llmgym.agents import sb3_ppo
    from llmgym.agents.tile_choice import TileChoice

    given, of_choice = _options(option), {f.name for f in fields(TileChoice)}
    choice = {k: v for k, v in given.items() if k in of_choice}
    rest = {k: v for k, v in given.items() if k not in of_choice}
    if "num_envs" not in rest:  # of each world equally many
        rest["num_envs"] = len(worlds) * max(256 // len(worlds), 1)
    found = []
    with cli.bar(quiet, steps=True) as bar:
        for seed in seeds:
            task = bar.add_task(f"seed {seed}", total=steps)

            def progress(values: dict[str, Any], _: Any, task: Any = task) -> bool:
                bar.update(task, completed=min(values["self"].num_timesteps, steps))
                return True

            model = sb3_ppo.train(
                worlds, agent.removeprefix("sb3-"), choice=choice, steps=steps, seed=seed, out=out,
                callback=progress, **rest,
            )  # fmt: skip
            found.append(sb3_ppo.policy_of(model, header={"steps_made": model.num_timesteps}))
    return found


def _options(option: list[str] | None) -> dict[str, Any]:
    """Settings of the learner: name=value each."""
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
    base, _, own = name.partition(":")
    chosen: Scenario = cli.scenario(base, [*settings, *(own.split(",") if own else [])], None)
    return chosen


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
) -> Training:
    """The training run that the options describe."""
    from dataclasses import fields, replace

    from llmgym.agents.checkpoint import CHOICES
    from llmgym.agents.ppo import PPO
    from llmgym.agents.training import Training, network_size, tiles_of
    from llmgym.envs.rewards import ServiceLevels

    network = all(base.is_network for base in bases)
    usual = NETWORK_LOADS if network else TRAINING_LOADS
    worlds = [s for base in bases for s in _at(base, load, rate, usual)]
    kind = "network" if network else "tiles" if agent == "ppo" else agent
    given: dict[str, Any] = network_size(bases) | NETWORK if network else {"tiles": tiles_of(bases)}
    engines = [] if network else [base.engine for base in bases]
    if any(e.max_num_seqs is not None or e.kv_cache is not None for e in engines):
        # No full batch is safe there: the policy learns how many of its seats to fill.
        given |= {"guard": None} | ({"shares": 3} if kind == "tiles" else {})
    given |= _options(option)
    of_choice = {f.name for f in fields(CHOICES[kind])}
    known = {f.name for f in fields(PPO)} - {"choice", "levels"} | of_choice
    for name in given:
        if name not in known:
            raise unknown("option", name, known)
    choice = CHOICES[kind](**{k: v for k, v in given.items() if k in of_choice})
    promised = not network and all(base.has_targets for base in bases)
    learner = PPO(
        choice=choice,
        levels=ServiceLevels.of(bases[0]) if promised and given.get("late_weight") else None,
        **{k: v for k, v in given.items() if k not in of_choice},
    )
    numbers = _seeds(seed, seeds)
    return replace(Training(tuple(worlds), learner, seeds=numbers), steps=steps, patience=patience)


def _at(
    base: Scenario, load: list[float] | None, rate: list[float] | None, usual: tuple[float, ...]
) -> list[Scenario]:
    """The scenario at each rate or load."""
    if load and rate:
        raise LLMGymError("Give --load or --rate, not both.")
    if rate:
        return [base.at_rate(r) for r in rate]
    return [at_load(base, x) for x in load or usual]


@app.command()
def evaluate(
    scenario: cli.ScenarioName = "latency",
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy", "-p", help="A name, an .npz file, or a folder of seeds. Repeatable."
        ),
    ] = None,
    load: Loads = None,
    rate: Rates = None,
    budget: Annotated[
        list[int] | None,
        typer.Option(help="Token budget that the reference is tuned over. Repeatable."),
    ] = None,
    reference: Annotated[str, typer.Option(help="The baseline to judge against.")] = "sarathi",
    seeds: Annotated[int, typer.Option(help="Evaluation seeds.")] = 8,
    arrivals: Annotated[
        int, typer.Option(help="Requests of a run at least; a quarter is warm-up.")
    ] = 16_000,
    settings: cli.Set = None,
    seed: cli.Seed = 0,
    jobs: cli.Jobs = 1,
    out: cli.Out = None,
    repeat: Annotated[
        Path | None, typer.Option(help="Repeat the evaluation of this result folder.")
    ] = None,
    as_json: cli.Json = False,
) -> None:
    """Judge policies against a published one, fixed and tuned for each rate. Resumes where stopped."""
    from llmgym.core.files import write
    from llmgym.evaluation import evaluate as evaluations
    from llmgym.reporting import evaluation_page
    from llmgym.reporting import evaluation_report as report

    if repeat is not None:
        chosen = evaluations.from_config(repeat)
    else:
        base = cli.scenario(scenario, settings, None)
        rates = [s.arrival_rate_per_s for s in _at(base, load, rate, EVALUATION_LOADS)]
        chosen = evaluations.Evaluation(
            base,
            tuple(policy or ["greedy_rate"]),
            tuple(round(r, 6) for r in rates),
            tuple(budget or evaluations.BUDGETS),
            seeds=seeds,
            arrivals=arrivals,
            seed=seed,
            reference=reference,
        )
    out = out or repeat or Path("results") / f"evaluation-{chosen.scenario.name}"
    with cli.counter(as_json) as progress:
        results = evaluations.evaluate(
            chosen,
            out,
            progress,
            jobs,
        )
    paths = report.publish(chosen, results, out)
    write(out / "README.md", evaluation_page.page(chosen, results))
    if as_json:
        return cli.print_json(report.as_json(chosen, results))
    cli.console.print(report.tables(chosen, results))
    cli.console.print(f"Wrote {', '.join(map(str, paths))}; raw numbers in {out / 'raw'}.")
