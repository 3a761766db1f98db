"""The graph of a scenario: its engines, and how the stages of each job type follow one another."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from llmgym.core.errors import LLMGymError
from llmgym.core.files import write
from llmgym.core.pictures import UNDATED, bytes_of
from llmgym.reporting.graph_picture import picture
from llmgym.reporting.table import Column, Table
from llmgym.scenario.engine import Engine
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.workload import JobType
from llmgym.theory.capacity import batch_ms

TEXT_WIDTH = 80
ENGINE_COLUMNS = (
    Column("engine", text=True, key="name"),
    Column("replicas"),
    Column("token budget", key="token_budget"),
    Column("full batch", "g", " ms", key="full_batch_ms"),
    Column("nominal load", ".2f", key="load"),
)
STAGE_COLUMNS = (
    *(Column(name, text=True) for name in ("stage", "engine")),
    *(Column(name, ".0f", missing="") for name in ("prompt", "output")),
    Column("visits", ".2f"),
    Column("when", text=True),
)


def draw_graph(scenario: Scenario) -> Figure:
    """A picture of the graph, 900 pixels wide at 100 dots per inch and wider for long workflows.

    Engines are boxes with their token budget, the time of a full batch, their replicas and the
    nominal load. Below stand the job types, each with its stages from left to right: calls in the
    colour of their engine with the mean tokens of a visit, delays as ellipses; arrows with the
    probabilities of choices, and dashed ones for loops.
    """
    return picture(graph_data(scenario))


def save_graph(scenario: Scenario, path: str | Path) -> None:
    """Write the picture to a file whose ending gives the format: png, svg or pdf.

    Raises:
        LLMGymError: the file has another ending or cannot be written.
    """
    kind = Path(path).suffix[1:].lower()
    if kind not in UNDATED:
        raise LLMGymError(f"Cannot draw {path}: let its name end in .{', .'.join(UNDATED)}.")
    write(Path(path), bytes_of(draw_graph(scenario), kind))


def graph_data(scenario: Scenario) -> dict[str, Any]:
    """What picture and text show, in plain values.

    Tokens are means of a visit, inherited context included; ``visits`` are per job; ``load`` is the
    nominal load of ``nominal_loads``.
    """
    loads = nominal_loads(scenario)
    engines = [
        {
            "name": engine.name,
            "token_budget": engine.token_budget,
            "max_num_seqs": engine.max_num_seqs,
            "full_batch_ms": _full_batch_ms(engine),
            "replicas": engine.replicas,
            "load": loads[engine.name],
        }
        for engine in scenario.engines
    ]
    routed = any(engine.replicas > 1 for engine in scenario.engines)
    return {
        "name": scenario.name,
        "description": scenario.description,
        "source": scenario.source,
        "router": scenario.router if routed else None,
        "engines": engines,
        "job_types": [_job_type(job) for job in scenario.jobs],
    }


def nominal_loads(scenario: Scenario) -> dict[str, float]:
    """Tokens that arrive for each engine, over those that it serves in full batches in the same time.

    The sum over its visits of lambda*(m_p + m_d) over b_max/t_{b_max}, per replica
    (arXiv:2504.07347v3, section 5). Below 1 everywhere is enough for stability under work-conserving
    policies where routing is acyclic.
    """
    tokens_per_s = dict.fromkeys((engine.name for engine in scenario.engines), 0.0)
    for job in scenario.jobs:
        tokens = job.workflow.visits * job.workflow.means.sum(axis=1)
        for stage, of_a_job in zip(job.stages, tokens, strict=True):
            if not stage.is_delay:
                tokens_per_s[stage.engine] += job.rate_per_s * float(of_a_job)
    return {
        e.name: tokens_per_s[e.name] * _full_batch_ms(e) / (1000 * e.token_budget * e.replicas)
        for e in scenario.engines
    }


def _full_batch_ms(engine: Engine) -> float:
    return float(batch_ms(engine, np.array([engine.token_budget]))[0])


def _job_type(job: JobType) -> dict[str, Any]:
    flow = job.workflow
    stages = []
    for v, stage in enumerate(job.stages):
        repeat = stage.repeat
        prefill, decode = flow.means[v].tolist()
        stages.append(
            {
                "name": stage.name,
                "engine": None if stage.is_delay else stage.engine,
                "prefill_tokens": prefill,
                "decode_tokens": decode,
                "delay_ms": None if stage.delay_ms is None else stage.delay_ms.mean,
                "visits": float(flow.visits[v]),
                "after": [job.stages[u].name for u in flow.parents[v]],
                "probability": stage.probability,
                "repeat": None
                if repeat is None
                else {"to": repeat.to, "probability": repeat.probability, "rounds": repeat.rounds},
                "inherits": stage.inherits,
                "priority": stage.priority,
            }
        )
    arrivals = {"arrivals": job.arrivals.kind, "rate_per_s": job.rate_per_s}
    return {"name": job.name, **arrivals, "stages": stages}


def graph_text(scenario: Scenario) -> str:
    """The graph as plain text of up to 80 columns: a table of the engines, then one for each job type."""
    data = graph_data(scenario)
    parts = [data["name"]]
    if data["description"]:
        parts.append(textwrap.fill(data["description"], TEXT_WIDTH))
    engines = tuple(tuple(e[column.name] for column in ENGINE_COLUMNS) for e in data["engines"])
    parts.append(Table(ENGINE_COLUMNS, engines).to_text(TEXT_WIDTH))
    if data["router"]:
        parts.append(f"Router among replicas: {data['router']}")
    for job in data["job_types"]:
        title = f"{job['name']}: {job['rate_per_s']:g} per second, {job['arrivals']}"
        table = Table(STAGE_COLUMNS, tuple(_row(stage) for stage in job["stages"]))
        parts += [title, table.to_text(TEXT_WIDTH)]
    return "\n\n".join(parts)


def _row(stage: dict[str, Any]) -> tuple[Any, ...]:
    if stage["delay_ms"] is None:
        served = (stage["engine"], stage["prefill_tokens"], stage["decode_tokens"])
    else:
        served = ("delay", f"{stage['delay_ms']:.0f} ms", None)
    return (stage["name"], *served, stage["visits"], _when(stage))


def _when(stage: dict[str, Any]) -> str:
    """When a stage runs, and what its end leads to."""
    notes = [f"after {', '.join(stage['after'])}" if stage["after"] else "starts the job"]
    if stage["probability"] is not None:
        notes.append(f"with probability {stage['probability']:g}")
    if stage["inherits"]:
        notes.append("inherits the context")
    if stage["priority"]:
        notes.append(f"priority {stage['priority']}")
    repeat = stage["repeat"]
    if repeat and repeat["rounds"]:
        notes.append(f"{repeat['rounds']} rounds from {repeat['to']}")
    elif repeat:
        notes.append(f"back to {repeat['to']} with probability {repeat['probability']:g}")
    return "; ".join(notes)
