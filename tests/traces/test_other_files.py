"""Files that are no traces are called what they are, with the command that takes them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from llmgym import LLMGymError
from llmgym.traces.readers import read_trace

RESULT = {
    "date": "20250101-120000", "backend": "vllm", "model_id": "m", "num_prompts": 2, "request_rate": 4.0,
    "max_concurrency": None, "duration": 1.0, "completed": 2, "total_input_tokens": 40,
    "request_throughput": 2.0, "input_lens": [20, 20], "ttfts": [0.1, 0.2],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("result.json", json.dumps(RESULT), "the result of a benchmark of vLLM or SGLang.*llmgym validate"),
        ("result.json", json.dumps(RESULT, indent=2), "the result of a benchmark of vLLM or SGLang"),
        ("result.jsonl", json.dumps(RESULT), "the result of a benchmark of vLLM or SGLang"),
        ("meta.json", '{"engine_kwargs": {}, "kv_cache": {}}', "settings of a recorded run.*validate"),
        ("times.csv", "tokens,ms\n1,2\n", "measured batches: `llmgym calibrate"),
        ("a.toml", "name = 'a'\n[engine]\ntoken_budget = 8\n", "a scenario: name it with --scenario"),
        ("config.json", '{"policies": [], "scenario": "", "versions": {}}', "repeat it with --repeat"),
        ("chat.json", '[{"conversations": []}]', "a set of conversations"),
        ("t.csv.gz", gzip.compress(b"arrival,prefill\n", mtime=0), "compressed with gzip: unpack"),
        ("t.parquet", b"PAR1\xff\xfe", "Parquet file: save it as CSV"),
        ("requests.csv", "env,arrival_ms,prefill_tokens,decode_tokens\n0,0,1,1\n", "arrival_s"),
    ],
)  # fmt: skip
def test_other_files_are_called_by_their_names(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(LLMGymError, match=message) as refused:
        read_trace(path)
    assert "damaged" not in str(refused.value)


def test_folders_are_called_by_their_names(tmp_path: Path) -> None:
    with pytest.raises(LLMGymError, match="is a directory; name a trace file"):
        read_trace(tmp_path)
    (tmp_path / "requests.jsonl").write_text("")
    with pytest.raises(LLMGymError, match="folder of a recorded run: `llmgym validate"):
        read_trace(tmp_path)


def test_damaged_traces_are_still_called_so(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 1, "output_length": 1}\n{"timest')
    with pytest.raises(LLMGymError, match=r"line 2: not one whole JSON object.*fix or drop it"):
        read_trace(path)
