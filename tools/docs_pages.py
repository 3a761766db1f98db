"""Pages of the documentation that are made from the code and the results, when MkDocs builds it.

The front page is README; CONTRIBUTING and CHANGELOG have pages too, as has each module of the public
surface, each baseline and each scenario. SUMMARY.md is the navigation.
"""

from __future__ import annotations

import csv
import inspect
import re
from pathlib import Path

import mkdocs_gen_files

import llmgym
from llmgym import baselines
from llmgym.reporting.table import Cell, Column, Table
from llmgym.scenario import library, toml_writer
from llmgym.theory.capacity import capacity

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"

API = {
    "The model": (
        "scenario.engine",
        "scenario.scenario",
        "scenario.batch_time",
        "scenario.batch_time_library",
        "scenario.stage",
        "scenario.workload",
        "scenario.replay",
        "scenario.arrivals",
        "scenario.lengths",
        "scenario.workflow",
        "scenario.kv_cache",
        "scenario.prefixes",
        "scenario.library",
        "scenario.toml_reader",
        "traces.readers",
        "traces.arrival_fits",
        "calibration.calibrate",
    ),
    "Environments": (
        "envs.registration",
        "envs.functional",
        "envs.gym_env",
        "envs.vector_env",
        "envs.problems",
        "envs.conditions",
        "envs.interface.interface",
        "envs.interface.encoding",
        "envs.interface.actions",
        "envs.interface.features",
        "envs.interface.chosen",
        "envs.interface.network",
        "envs.interface.observations",
        "envs.rewards",
        "envs.checker",
    ),
    "Policies": (
        "engine.view",
        "engine.fill",
        "evaluation.policies",
        "baselines",
        "baselines.policy",
        "baselines.tiles",
    ),
    "Evaluation": (
        "evaluation.simulate",
        "evaluation.stability",
        "evaluation.capacity",
        "evaluation.benchmark",
        "evaluation.evaluate",
        "evaluation.comparison",
        "evaluation.traffic",
        "evaluation.statistics",
    ),
    "Theory": (
        "theory.capacity",
        "theory.region",
        "theory.bounds",
        "theory.kv_memory",
        "theory.flow_control",
        "theory.queueing_networks",
    ),
    "Learning": (
        "agents",
        "agents.ppo",
        "agents.tile_choice",
        "agents.budgets",
        "agents.scores",
        "agents.training",
        "agents.checkpoint",
        "agents.index_search",
        "agents.dynamic_programming",
        "agents.optimality",
    ),
    "Integrations": (
        "integrations.sb3",
        "integrations.pettingzoo",
        "integrations.gymnax",
        "integrations.minari",
        "integrations.vllm",
    ),
}
"""Modules of the reference, by part."""


def page(path: str, *parts: str) -> None:
    """Write a page."""
    with mkdocs_gen_files.open(path, "w") as file:
        file.write("\n\n".join(parts) + "\n")


FRONT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""Pages that lie at the top of the repository, and their names here."""


def top_pages() -> None:
    """The pages of the top folder, with their links as they are from docs/."""
    for file, name in FRONT.items():
        text = (ROOT / file).read_text()
        text = re.sub(r"\]\(docs/([^)]*)\)", r"](\1)", text)
        for target, here in (FRONT | {"CITATION.cff": "cite.md"}).items():
            text = text.replace(f"]({target})", f"]({here})")
        text = text.replace("[Notebooks](notebooks)", "Notebooks, in `notebooks/`")
        page(name, text)


def api_pages() -> list[str]:
    """One page for each module; lines of the navigation."""
    lines = ["* API reference"]
    for part, modules in API.items():
        lines.append(f"    * {part}")
        for module in modules:
            name = f"llmgym.{module}"
            page(
                f"api/{name}.md",
                f"# {name}",
                f"::: {name}\n    options:\n      show_root_heading: false",
            )
            lines.append(f"        * [{name}](api/{name}.md)")
    return lines


def measured() -> dict[str, dict[str, dict[str, str]]]:
    """What was measured of each policy: rows of published results, by policy and by experiment."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    sources = {
        "paper-figure-1": RESULTS / "paper-figure-1" / "results.csv",
        "an hour of the Azure conversation trace": RESULTS / "azure-hour/conversation/results.csv",
        "an hour of the Azure code trace": RESULTS / "azure-hour/code/results.csv",
    }
    for title, path in sources.items():
        if path.exists():
            with path.open() as file:
                for record in csv.DictReader(file):
                    name = record["policy"].partition(":")[0]
                    found.setdefault(name, {}).setdefault(title, record)
    return found


SHOWN = {
    "capacity_requests_per_s": ("capacity, requests/s", 1.0),
    "goodput_per_s": ("goodput, requests/s", 1.0),
    "attainment": ("share within targets", 1.0),
    "slo_attainment": ("share within targets", 1.0),
    "ttft_ms_mean": ("mean TTFT, s", 1000.0),
    "ttft_ms_p99": ("p99 TTFT, s", 1000.0),
    "tpot_ms_mean": ("mean TPOT, ms", 1.0),
    "preemptions": ("preemptions", 1.0),
}


def figures_of(name: str, records: dict[str, dict[str, str]]) -> str:
    """A table of what was measured of a policy."""
    if not records:
        return ""
    rows = []
    for title, record in records.items():
        for key, (label, unit) in SHOWN.items():
            value = record.get(key, "")
            if value not in ("", "nan"):
                rows.append((title, label, float(value) / unit))
    columns = (
        Column("experiment", text=True), Column("figure", text=True), Column("", ".4g", key="value"),
    )  # fmt: skip
    return f"## Measured\n\n{Table(columns, tuple(rows)).to_markdown()}" if rows else ""


def baseline_pages() -> list[str]:
    """One page for each baseline, and their index."""
    results, rows, lines = measured(), [], ["* [Baselines](baselines/index.md)"]
    for name, policy in baselines.POLICIES.items():
        module = inspect.getmodule(policy)
        assert module is not None
        source = (module.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
        first = (policy.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
        path = Path(inspect.getfile(policy)).resolve().relative_to(ROOT)
        facts = [
            "| | |", "|---|---|",
            f"| source | {source} |",
            f"| file | `{path.as_posix()}` |",
            f"| work-conserving (Eqs. 8-9) | {'yes' if policy.work_conserving else 'no'} |",
            f"| used as | `llmgym.baselines.make({name!r})`, `--policy {name}` |",
        ]  # fmt: skip
        page(
            f"baselines/{name}.md",
            f"# {name}",
            "\n".join(facts),
            "## Rule",
            f"::: {policy.__module__}.{policy.__name__}\n    options:\n      members: []",
            figures_of(name, results.get(name, {})),
            f"## Code\n\n```python\n{inspect.getsource(policy)}```",
        )
        rows.append(f"| [`{name}`]({name}.md) | {first} |")
        lines.append(f"    * [{name}](baselines/{name}.md)")
    page("baselines/index.md", "# Baselines", "\n".join(["| name | rule |", "|---|---|", *rows]))
    return lines


def scenario_pages() -> list[str]:
    """One page for each shipped scenario, and their index."""
    rows, lines = [], ["* [Scenarios](scenarios/index.md)"]
    for name in library.names():
        scenario = llmgym.scenario(name)
        parts = [f"# {name}", scenario.description, f"Source: {scenario.source}"]
        graph = ROOT / "docs" / "graphs" / f"{name}.svg"
        if graph.exists():
            parts.append(f"![{name}](../graphs/{name}.svg)")
        limit = None
        if scenario.demand.end_s is None:
            plan = capacity(scenario)
            limit = plan.requests_per_s
            parts.append(
                f"No policy serves more than {limit:.4g} jobs per second "
                f"(`llmgym capacity --scenario {name}`); its own arrivals are {plan.load_factor:.3g} of that."
            )
        text = toml_writer.dumps(scenario)
        page(f"scenarios/{name}.md", *parts, f"```toml\n{text}```")
        first = scenario.description.partition(". ")[0].rstrip(".")
        rows.append((Cell(name, link=f"{name}.md"), len(scenario.engines), limit, first))
        lines.append(f"    * [{name}](scenarios/{name}.md)")
    columns = (
        Column("scenario", text=True), Column("engines"), Column("jobs/s", ".4g"),
        Column("", text=True, key="description"),
    )  # fmt: skip
    page("scenarios/index.md", "# Scenarios", Table(columns, tuple(rows)).to_markdown())
    return lines


TOPICS = (
    "model", "policies", "real-engines", "traffic", "service-levels", "networks", "learned-policies",
    "train", "optimum", "how-it-works",
)  # fmt: skip
"""Pages written by hand, in the order of the navigation."""


def entries(*patterns: str) -> list[str]:
    """Lines of the navigation for pages under docs/, each with its heading."""
    docs = ROOT / "docs"
    paths = [path for pattern in patterns for path in sorted(docs.glob(pattern))]
    headings = [path.read_text().splitlines()[0].lstrip("# ") for path in paths]
    links = [path.relative_to(docs).as_posix() for path in paths]
    return [f"    * [{text}]({link})" for text, link in zip(headings, links, strict=True)]


def main() -> None:
    """All pages, and the navigation."""
    top_pages()
    lines = ["* [llmgym](index.md)"]
    lines += ["* Topics", *entries(*(f"{name}.md" for name in TOPICS))]
    lines += ["* Environments", *entries("environments/*.md")]
    lines += [*scenario_pages(), *baseline_pages(), "* Guides", *entries("guides/*.md")]
    results = entries("reproduction.md", "results/*/README.md", "speed.md")
    lines += ["* [Results](results/README.md)", *results]
    lines += [*api_pages(), "* [Contributing](contributing.md)", "* [Changes](changelog.md)"]
    lines += ["* [Security](security.md)"]
    lines += ["* [How to cite](cite.md)"]
    page("SUMMARY.md", "\n".join(lines))


main()
