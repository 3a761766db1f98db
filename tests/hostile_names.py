"""Names with marks of every format that a name is written to, and inputs that bear one wherever they can."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

NAMES: dict[str, str] = {
    "rich": "[/red] [bold]a[/] [link=x]b",
    "maths": "a$\\foo$b ^{x} $$",
    "html": "<script>alert(1)</script><b>&amp;\"'-->",
    "formula": "=cmd|' /C calc'!A0",
    "at": "@SUM(A1)",
    "plus": " +1+cmd",
    "path": "../../../../evil",
    "separators": "a/b\\c",
    "dots": "..",
    "markdown": "x|y *_#~ `code` ``two`` [a](b) ![c](d) \\| <br>",
    "direction": "\u202eright\u200fto\u2066left\ufeff",
    "emoji": "👩\u200d🚀 中文 e\u0301",
    "long": "n" * 300,
    "lines": "one\ntwo\r\nthree\rfour\u2028five",
    "terminal": "\x1b[2J\x1b]0;a\x07b\tc",
    "shell": "$(touch evil); `touch evil` 'a",
    "templates": "${title} {0} %s %(a)s {name}",
    "number": "-1_000",
    "nul": "a\0b\0",
}
"""By what they try."""

EVERYTHING = "= [/red]$\\foo$<script>a|b`*_~../..\\\n\u202e👩\u200d🚀\x1b[2J${title}\"';"
"""Much of it at once."""


def file_name(name: str, most: int = 180) -> str:
    """The nearest name that a file can have."""
    name = name.replace("/", "\u2215").replace("\0", "0")
    while len(name.encode()) > most:
        name = name[:-1]
    return name if name not in ("..", ".") else f"{name}."


@dataclass(frozen=True)
class Inputs:
    """Files whose names, and the names in them, are all made of one text.

    Attributes:
        name: the text.
        single, network: scenarios, TOML files.
        trace: requests of two tenants, CSV.
        policy: FILE:FUNCTION.
        recorded: folder of a run of vLLM.
        measured: batch times, CSV.
    """

    name: str
    single: Path
    network: Path
    trace: Path
    policy: str
    recorded: Path
    measured: Path


POLICY = """
from dataclasses import dataclass
from llmgym.baselines import SarathiServe

@dataclass(frozen=True)
class Named(SarathiServe):
    label: str = ""
    name: str = ""

rule = Named(label={name!r}, name={name!r})
"""


def inputs(name: str, folder: Path) -> Inputs:
    """All inputs with that name, as files of a folder."""
    folder.mkdir(parents=True)
    stem = file_name(name)
    found = Inputs(
        name=name,
        single=folder / f"{stem}.single.toml",
        network=folder / f"{stem}.network.toml",
        trace=folder / f"{stem}.csv",
        policy=str(folder / f"{stem}.py:rule"),
        recorded=folder / stem,
        measured=folder / f"{stem}.times.csv",
    )
    found.single.write_text(tomli_w.dumps(single(name)))
    found.network.write_text(tomli_w.dumps(network(name)))
    (folder / f"{stem}.py").write_text(POLICY.format(name=name))
    _trace(name, found.trace)
    _recorded(found.recorded)
    found.measured.write_text(
        "tokens,ms\n" + "".join(f"{n},{20 + 0.5 * n:g}\n" for n in range(1, 30))
    )
    return found


BATCH_TIME = {"kind": "staircase", "c_ms": 10.0, "a_ms": 20.0, "tile": 16}


def _job(name: str, rate: float, **more: Any) -> dict[str, Any]:
    targets = {"ttft_ms": 500.0, "tpot_ms": 100.0, "weight": 2.0}
    return {"name": name, "arrivals": {"kind": "poisson", "rate_per_s": rate}, **targets, **more}


def _call(prefill: int, decode: int) -> dict[str, Any]:
    return {
        "prefill": {"kind": "fixed", "tokens": prefill},
        "decode": {"kind": "fixed", "tokens": decode},
    }


def single(name: str) -> dict[str, Any]:
    """One engine with two job types, targets and counters of service."""
    return {
        "name": name,
        "description": f"{name} described",
        "source": name,
        "slots": 32,
        "service_weights": [1, 2],
        "engine": {"name": name, "token_budget": 32, "batch_time": BATCH_TIME},
        "job_types": [
            _job(name, 8.0) | _call(9, 3),
            _job(f"{name}2", 8.0) | _call(5, 2),
        ],
    }


def network(name: str) -> dict[str, Any]:
    """Two engines, one of them twice, and workflows of two calls and a delay."""
    engine = {"token_budget": 32, "batch_time": BATCH_TIME}
    stages = [
        {"name": name, "engine": name} | _call(9, 3),
        {"name": f"{name}2", "after": [name], "delay_ms": {"kind": "fixed", "tokens": 5}},
        {"name": f"{name}3", "after": [f"{name}2"], "engine": f"{name}2"} | _call(4, 2),
    ]
    return {
        "name": name,
        "description": name,
        "source": name,
        "slots": 32,
        "router": "round_robin",
        "engines": [engine | {"name": name, "replicas": 2}, engine | {"name": f"{name}2"}],
        "job_types": [_job(name, 8.0, e2e_ms=900.0) | {"stages": stages}],
    }


def _trace(name: str, path: Path) -> None:
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(("arrival", "prefill", "decode", "tenant"))
    rows.writerows((n * n / 400, 5 + n % 7, 1 + n % 3, name + "2" * (n % 2)) for n in range(60))
    path.write_text(text.getvalue(), newline="")


def _recorded(folder: Path) -> None:
    """A run of vLLM of six requests."""
    folder.mkdir()
    engine = {"max_num_seqs": 4, "max_num_batched_tokens": 64}
    cache = {"num_gpu_blocks": 21, "block_size": 4}
    (folder / "meta.json").write_text(json.dumps({"engine_kwargs": engine, "kv_cache": cache}))
    rows = [
        {"request_id": n, "input_toks": 10 + n, "output_toks": 3, "queued_ts": n / 50}
        | {"first_token_ts": n / 50 + 0.02, "last_token_ts": n / 50 + 0.06}
        for n in range(6)
    ]
    (folder / "requests.jsonl").write_text("\n".join(map(json.dumps, rows)))
