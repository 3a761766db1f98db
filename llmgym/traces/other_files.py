"""Files that are taken for traces and are something else: what they are, and which command takes them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from llmgym.core.errors import LLMGymError
from llmgym.core.reading import opened

LOOKED_AT = 2**16
"""Bytes of the beginning of a file that are looked at."""

REQUESTS = "a trace has a line for each request, with its arrival and its tokens"

RESULTS = (
    "num_prompts", "request_throughput", "output_throughput", "total_input_tokens", "mean_ttft_ms",
    "ttfts", "max_concurrency", "requests_per_second", "total_num_tokens", "avg_latency", "percentiles",
)  # fmt: skip
"""Keys of what the benchmarks of vLLM and SGLang write."""

PACKED = {
    b"\x1f\x8b": "compressed with gzip: unpack it",
    b"BZh": "compressed with bzip2: unpack it",
    b"\xfd7zXZ": "compressed with xz: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it",
    b"PAR1": "a Parquet file: save it as CSV",
    b"SQLite": "a database: export its requests as CSV",
}
"""First bytes of files that are no text."""


def what_else(path: Path) -> str:
    """What a file is that is no trace, as a message; empty where it is nothing that we know."""
    if os.path.isdir(path):
        return _folder(path)
    try:
        with opened(path, "file", None) as file:
            start = file.read(LOOKED_AT)
    except LLMGymError:
        return ""
    found = _packed(start) or _text(path, start.decode("utf-8", errors="ignore"))
    return f"{path} is {found}." if found else ""


def _folder(path: Path) -> str:
    if (path / "requests.jsonl").is_file():
        file = os.path.join(path, "requests.jsonl")
        return (
            f"{path} is the folder of a recorded run: `llmgym validate {path} --batch-time NAME` takes "
            f"it. Its requests as a trace: {file}."
        )
    return f"{path} is a directory; name a trace file."


def _packed(start: bytes) -> str:
    if start.startswith(b"PK"):
        return "a zip archive: unpack it; a checkpoint (.npz) is a policy, -p FILE"
    return next((told for mark, told in PACKED.items() if start.startswith(mark)), "")


def _text(path: Path, start: str) -> str:
    keys = set(re.findall(r'"(\w+)"\s*:', start))
    if len(keys.intersection(RESULTS)) >= 2:
        return (
            "the result of a benchmark of vLLM or SGLang: it has latencies, but no arrival of each "
            f"request, and no command replays it; {REQUESTS}. To compare measured latencies give "
            "`llmgym validate` the folder of a recorded run, with requests.jsonl and meta.json"
        )
    if keys & {"engine_kwargs", "resolved_config"}:
        return (
            "the settings of a recorded run: `llmgym validate "
            f"{path.parent} --batch-time NAME` takes its folder"
        )
    if {"policies", "versions", "scenario"} <= keys:
        return "the configuration of a benchmark or an evaluation: repeat it with --repeat"
    if "conversations" in keys:
        return f"a set of conversations, which has no arrivals; {REQUESTS}"
    if re.search(r"^\s*\[\[?(engines?|job_types|replay)\]", start, re.MULTILINE):
        return "a scenario: name it with --scenario"
    header = {cell.strip().strip('"') for cell in start.partition("\n")[0].split(",")}
    if {"tokens", "ms"} <= header:
        return f"a file of measured batches: `llmgym calibrate {path}` takes it"
    if {"arrival_ms", "prefill_tokens", "decode_tokens"} <= header:
        return (
            "a table of simulated requests: with a column arrival_s, which is arrival_ms / 1000, it is "
            "a trace"
        )
    return ""
