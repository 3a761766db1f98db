"""The model card of ``llmgym train``: what it says is so, names stay names, and results go into it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import opened_files
import pytest
from commands import run
from hostile_names import NAMES

import llmgym
from llmgym import LLMGymError
from llmgym.reporting.model_card import END, MEASURED, ModelCard, page, with_results

Capture = pytest.CaptureFixture[str]
SMALL = ("--set", "slots=48", "--rate", "9", "--rate", "12", "--steps", "1280")
LEARNER = ("--option", "num_envs=4", "--option", "hidden=4", "--option", "steps=8")


def card(**changes: Any) -> ModelCard:
    usual: dict[str, Any] = {
        "algorithm": "ppo",
        "files": [("agent-0.npz", 0, 1280, "abc")],
        "scenarios": [llmgym.scenario("latency", slots=48)],
        "observation": ("decoding",),
        "action": {"kind": "tiles", "tiles": 4},
        "parts": (4,),
        "settings": {"learning_rate": 0.002},
        "versions": {"llmgym": "0.1.0"},
        "judge": "llmgym evaluate",
    }
    return ModelCard(**usual | changes)


def test_a_training_run_says_what_it_made(capsys: Capture, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    code, told, err = run(
        capsys,
        "train",
        *SMALL,
        *LEARNER,
        "--seeds",
        "2",
        "--seed",
        "3",
        "--json",
        "--out",
        str(out),
    )
    assert code == 0, err
    text = (out / "README.md").read_text()
    for record in json.loads(told):
        steps = record["iterations"] * 2 * 4 * 8  # worlds, environments, steps
        assert f"| agent-{record['seed']}.npz | {record['seed']} | {steps:,} |" in text
        assert record["digest"] in text
    policy: Any = llmgym.agents.load(out / "agent-3.npz")
    assert f"It sees {len(policy.choice.features)} numbers" in text
    assert all(f"`{name}`" in text for name in policy.choice.features)
    assert "It makes one choice out of 4 for every batch" in text
    assert "| hidden | 4 |" in text and "| num_envs | 4 |" in text and "| prior | 9.0 |" in text
    assert f"| jax | {policy.header['versions']['jax']} |" in text
    loads = [llmgym.capacity("latency").requests_per_s] * 2
    for rate, most in zip((9.0, 12.0), loads, strict=True):
        assert f"| latency | {rate / most:.3f} | {rate:.3f} | 48 |" in text
    assert "Apache-2.0" in text and "llmgym.agents.load('agent-3.npz')" in text
    shown_rules(text)


def shown_rules(text: str) -> None:
    """Rows of tables have the cells of their header, and code blocks end."""
    assert text.count("```") % 2 == 0
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for table in re.findall(r"(?:^\|.*\n)+", prose, re.MULTILINE):
        marks = [len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()]
        assert len(set(marks)) == 1, table


def test_results_go_into_the_card_by_the_command_that_it_names(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mine"
    assert run(capsys, "train", *SMALL, *LEARNER, "--json", "--out", str(out))[0] == 0
    text = (out / "README.md").read_text()
    monkeypatch.chdir(out)
    judge = shlex.split(re.findall(r"```sh\n(llmgym .*)\n```", text)[0])[1:]
    short = ("--arrivals", "40", "--seeds", "2", "--budget", "256", "--rate", "8", "--json")
    code, _, err = run(capsys, *judge, *short, "--out", str(tmp_path / "judged"))
    assert code == 0, err
    found = (out / "README.md").read_text()
    measured = found.partition(MEASURED)[2].partition(END)[0]
    assert "sarathi" in measured and "agent-0" in measured and "| 8 |" in measured
    rest = text.partition(MEASURED)[0], text.partition(END)[2]
    assert (found.partition(MEASURED)[0], found.partition(END)[2]) == rest
    shown_rules(found)
    # The same training again makes the same policies: what was measured, and written by hand, stays.
    mine = found.replace("The weights belong to whoever trained them", "CC0")
    (out / "README.md").write_text(mine)
    assert run(capsys, "train", *SMALL, *LEARNER, "--json", "--out", str(out))[0] == 0
    assert (out / "README.md").read_text() == mine
    (out / "README.md").write_text(
        mine.replace(llmgym.agents.load(out / "agent-0.npz").digest, "other")
    )
    assert run(capsys, "train", *SMALL, *LEARNER, "--json", "--out", str(out))[0] == 0
    assert (out / "README.md").read_text() == text


def test_training_leaves_another_readme_alone(capsys: Capture, tmp_path: Path) -> None:
    other = tmp_path / "README.md"
    for content in (b"mine", b"\xff\xfe", b""):
        other.write_bytes(content)
        for agent in ("ppo", "sb3-ppo"):
            words = ("train", "--agent", agent, *SMALL, "--out", str(tmp_path))
            code, _, err = run(capsys, *words)
            assert code == 2 and "is no model card" in err and err.count("\n") == 1, err
        assert other.read_bytes() == content and list(tmp_path.iterdir()) == [other]


def test_a_card_that_is_none_is_refused_before_anything_runs(
    capsys: Capture, tmp_path: Path
) -> None:
    other = tmp_path / "README.md"
    other.write_text("mine")
    for path, message in [(other, "is no model card"), (tmp_path / "no.md", "There is no model")]:
        code, _, err = run(capsys, "evaluate", "--card", str(path), "--out", str(tmp_path / "out"))
        assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists() and other.read_text() == "mine"
    with pytest.raises(LLMGymError, match="is no model card"):
        with_results(other, "")


@pytest.mark.parametrize("key", NAMES)
def test_any_name_stays_a_name(key: str) -> None:
    name = NAMES[key]
    scenario = llmgym.scenario("latency", slots=48, name=name)
    text = page(
        card(
            scenarios=[scenario, scenario],
            observation=(name,),
            action={"kind": name, "base": name},
            settings={name: name},
            judge=shlex.join(["llmgym", "evaluate", "-s", name]),
            curve=(1.0, 2.0),
        )
    )
    opened_files.no_hidden(text)
    shown_rules(text)
    plain = re.sub(r"```.*?```|<code>.*?</code>", "", text, flags=re.DOTALL)
    plain = re.sub(r"\\.", "", plain)  # what is escaped
    plain = re.sub(r"``.*?``|`[^`\n]*`", "", plain)
    assert "<script" not in plain and "<b>" not in plain
    assert not re.search(r"\[[^\]]*\]\(", plain)
