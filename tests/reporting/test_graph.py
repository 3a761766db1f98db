"""Pictures and text of scenarios: nothing overlaps, nothing is left out."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from commands import run
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, FancyBboxPatch
from matplotlib.text import Text

from llmgym.core.errors import LLMGymError
from llmgym.reporting.graph import draw_graph, graph_data, graph_text, nominal_loads, save_graph
from llmgym.reporting.graph_layout import lay_out
from llmgym.scenario.arrivals import Poisson
from llmgym.scenario.batch_time import CODELLAMA_34B_A100
from llmgym.scenario.engine import Engine
from llmgym.scenario.lengths import Fixed, Geometric
from llmgym.scenario.library import names, scenario
from llmgym.scenario.replay import Replay
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.stage import Repeat, Stage
from llmgym.scenario.workload import JobType


def call(name: str, engine: str = "engine", **fields: Any) -> Stage:
    return Stage(Fixed(30), Fixed(10), name=name, engine=engine, **fields)


def complex_scenario() -> Scenario:
    """A choice, arrows over several columns, nested loops, a delay, and names that are too long."""
    long_engine = "an engine whose name does not fit its box"
    stages = (
        call("plan", "a"),
        call("easy", "b", after=("plan",), probability=0.3),
        call("hard", "c", after=("plan",), probability=0.7),
        call("again", "c", after=("hard",), repeat=Repeat("hard", rounds=3)),
        Stage(
            name="review",
            delay_ms=Geometric(900),
            after=("again",),
            repeat=Repeat("hard", 0.2),
        ),
        call("merge", "d", after=("easy", "review", "plan"), priority=3),
        call(
            "a stage whose name does not fit its box",
            long_engine,
            after=("merge", "plan"),
            inherits=True,
            repeat=Repeat("plan", 0.1),
        ),
    )
    engines = [
        Engine(CODELLAMA_34B_A100, 512, name=name, replicas=replicas)
        for name, replicas in (("a", 1), ("b", 4), ("c", 2), ("d", 1), (long_engine, 12))
    ]
    return Scenario(tuple(engines), JobType(Poisson(0.1), stages, "job $x$ [red]"), name="complex")


COMPLEX = complex_scenario()
REPLAY = replace(scenario("md1"), workload=Replay([0.0, 0.0], [10, 20], [3, 5], "at once"))
EVERY = [*names(), COMPLEX, REPLAY]


def found(which: str | Scenario) -> Scenario:
    return which if isinstance(which, Scenario) else scenario(which)


def shown(which: str | Scenario) -> tuple[Figure, list[Any], list[Text]]:
    """The figure drawn, its boxes and its texts."""
    figure = draw_graph(found(which))
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    boxes = [p for p in axes.patches if isinstance(p, (FancyBboxPatch, Ellipse))]
    return figure, boxes, [t for t in axes.texts if t.get_text()]


@pytest.mark.parametrize("which", EVERY, ids=lambda s: s if isinstance(s, str) else s.name)
def test_nothing_overlaps_and_all_is_inside(which):
    figure, boxes, texts = shown(which)
    page = figure.bbox
    extents = [t.get_window_extent() for t in texts]
    for extent, text in zip(extents, texts, strict=True):
        inside = page.x0 <= extent.x0 and extent.x1 <= page.x1
        assert inside and page.y0 <= extent.y0 and extent.y1 <= page.y1, text.get_text()
    for (a, one), (b, other) in itertools.combinations(zip(extents, texts, strict=True), 2):
        assert not a.overlaps(b), (one.get_text(), other.get_text())
    for box, (text, extent) in itertools.product(boxes, zip(texts, extents, strict=True)):
        around = box.get_window_extent()
        middle = (extent.y0 + extent.y1) / 2
        if around.y0 < middle < around.y1 and around.overlaps(extent):
            assert around.x0 <= extent.x0 and extent.x1 <= around.x1, text.get_text()
    assert figure.bbox.width == 900 or which is COMPLEX


@pytest.mark.parametrize("which", EVERY, ids=lambda s: s if isinstance(s, str) else s.name)
def test_picture_shows_every_engine_and_stage(which):
    chosen = found(which)
    _, boxes, texts = shown(chosen)
    piles = sum(min(engine.replicas, 3) for engine in chosen.engines)
    stages = sum(len(job.stages) for job in chosen.job_types) or 1
    assert len(boxes) == piles + stages
    written = "\n".join(text.get_text() for text in texts)
    for job in chosen.job_types:
        for stage in job.stages:
            assert stage.name[:14] in written


@pytest.mark.parametrize("which", EVERY, ids=lambda s: s if isinstance(s, str) else s.name)
def test_text_fits_the_terminal_and_names_all(which):
    chosen = found(which)
    text = graph_text(chosen)
    assert max(map(len, text.splitlines())) <= 80
    assert text.isascii() or chosen is COMPLEX
    for job in chosen.job_types:
        assert job.name in text
    stages = [stage for job in chosen.job_types for stage in job.stages]
    for thing in (*chosen.engines, *stages):
        assert all(word in text for word in thing.name.split())  # long names go over several lines
        assert thing.name in text or chosen is COMPLEX
    for job in chosen.job_types:
        for stage in job.stages:
            if stage.repeat is not None and chosen is not COMPLEX:
                assert f"back to {stage.repeat.to} with" in text


def test_text_of_a_complex_graph():
    words = " ".join(graph_text(COMPLEX).split())
    for part in ("probability 0.7", "3 rounds", "inherits the", "priority 3", "900 ms", "[red]"):
        assert part in words
    assert graph_text(REPLAY).count("replay") == 1


def test_layout():
    """Columns are longest paths, arrows over several columns pass between the nodes, loops nest."""
    layout = lay_out(graph_data(COMPLEX)["job_types"][0]["stages"])
    columns = {name: x for name, (x, _) in layout.places.items()}
    last = COMPLEX.workload[0].stages[-1].name
    assert columns == {
        "plan": 0, "easy": 1, "hard": 1, "again": 2, "review": 3, "merge": 4, last: 5,
    }  # fmt: skip
    passing = [point for *_, points in layout.edges for point in points[1:-1]]
    places = [*layout.places.values(), *passing]
    assert len(set(places)) == len(places)
    assert len(passing) == 2 + 3 + 4  # easy to merge, plan to merge, plan to the last
    assert layout.loops == (("again", "hard", 0), ("review", "hard", 1), (last, "plan", 2))


def test_nominal_load_by_hand():
    """mixed-tenants: 5 chats of 241 tokens and half a document of 2050 on 3.3429 tokens per ms."""
    loads = nominal_loads(scenario("mixed-tenants"))
    assert loads["shared"] == pytest.approx((5 * 241 + 0.5 * 2050) / 3342.9, rel=1e-4)
    assert loads["judge"] == pytest.approx(0.5 * 2030 / (512 / 0.1799), rel=1e-4)
    assert nominal_loads(scenario("load-balanced"))["engine"] == pytest.approx(30 / 33.43, rel=1e-4)
    assert nominal_loads(REPLAY)["engine"] == float("inf")


def test_visits_and_context():
    """The think step of react-loop: 250 own tokens, and (250 + 80) of each earlier round."""
    think, tool, answer = graph_data(scenario("react-loop"))["job_types"][0]["stages"]
    assert think["visits"] == pytest.approx(1 / 0.3)
    assert think["prefill_tokens"] == pytest.approx(250 + 330 * 0.7 / 0.3)
    assert answer["prefill_tokens"] == pytest.approx(40 + 330 / 0.3)
    assert (tool["engine"], tool["delay_ms"]) == (None, 800)
    assert tool["repeat"] == {"to": "think", "probability": 0.7, "rounds": None}


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_same_scenario_gives_the_same_file(tmp_path, kind):
    for name in ("a", "b"):
        save_graph(COMPLEX, tmp_path / f"{name}.{kind}")
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_show(capsys, tmp_path):
    out = tmp_path / "rag.png"
    code, text, _ = run(capsys, "show", "rag", "--out", str(out))
    assert code == 0
    assert text == graph_text(scenario("rag")) + "\n"
    image = matplotlib.image.imread(out)
    assert image.shape[1] == 900
    assert np.unique(image[..., :3].reshape(-1, 3), axis=0).shape[0] > 20
    code, text, _ = run(capsys, "show", "rag", "--set", "token_budget=256", "--json")
    assert json.loads(text)["engines"][1]["token_budget"] == 256


def test_bad_input(capsys, tmp_path):
    code, out, error = run(capsys, "show", "rug")
    assert (code, out) == (2, "")
    assert "Did you mean 'rag'" in error
    code, out, error = run(capsys, "show", "rag", "--out", str(tmp_path / "rag.gif"))
    assert (code, out) == (2, "")
    assert "end in .png, .svg, .pdf" in error
    (tmp_path / "file").write_text("")
    with pytest.raises(LLMGymError, match="Cannot write"):
        save_graph(COMPLEX, tmp_path / "file" / "rag.png")
