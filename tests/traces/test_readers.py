"""Trace readers: the published files, every fault a file can have, summaries and windows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgym.core.errors import LLMGymError
from llmgym.scenario.replay import Replay
from llmgym.traces.readers import read_trace, summary

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:15:46.6805900,374,44\r\n"
    "2023-11-16 18:15:46.6805901,396,0\r\n"
    "2023-11-16 18:16:50.1805900,879,55"
)
CSV = "arrival,prefill,decode\n2.5,10,3\n2.5,0,4\n4,7,0\n"
MOONCAKE = "".join(
    json.dumps({"timestamp": t, "input_length": p, "output_length": d, "hash_ids": [1, 2]}) + "\n"
    for t, p, d in [(3000, 10, 3), (3000, 5, 4), (5999, 7, 1)]
)
VLLM = "".join(
    json.dumps({"request_id": "a", "queued_ts": t, "input_toks": p, "output_toks": d}) + "\n"
    for t, p, d in [(7.5, 20, 3), (7.0, 10, 3), (9.0, 10, 1)]
)


@pytest.fixture
def trace_file(tmp_path):
    """Write a trace and give its path."""

    def write(content: str | bytes, name: str = "trace.csv") -> Path:
        data = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("file", "requests", "prefill", "decode", "rate", "cv"),
    [
        ("AzureLLMInferenceTrace_code.csv", 8819, 2048, 28, 2.57, 13),
        ("AzureLLMInferenceTrace_conv.csv", 19366, 1155, 211, 5.53, 1.09),
        ("mooncake_conversation_trace.jsonl", 12031, 12035, 343, 3.40, 3.03),
    ],
)
def test_published_traces(shared_data, file, requests, prefill, decode, rate, cv):
    facts = summary(read_trace(shared_data / "traces" / file))
    assert facts["requests"] == requests
    assert facts["mean_prefill_tokens"] == pytest.approx(prefill, abs=0.5)
    assert facts["mean_decode_tokens"] == pytest.approx(decode, abs=0.5)
    assert facts["rate_per_s"] == pytest.approx(rate, abs=0.005)
    assert facts["gap_cv"] == pytest.approx(cv, rel=0.02)


def test_published_traces_first_requests(shared_data):
    code = read_trace(shared_data / "traces" / "AzureLLMInferenceTrace_code.csv", limit=3)
    assert code.arrival_s.tolist() == [0, 0.052, 0.098189]
    assert code.prefill_tokens.tolist() == [4808, 3180, 110]
    assert code.decode_tokens.tolist() == [10, 8, 27]


def test_azure_keeps_seven_digits_and_requests_without_output(trace_file):
    trace = read_trace(trace_file(AZURE))
    assert trace.arrival_s.tolist() == [0, 1e-7, 63.5]
    assert trace.prefill_tokens.tolist() == [374, 396, 879]
    assert trace.decode_tokens.tolist() == [44, 0, 55]


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.txt"])
def test_mooncake_counts_milliseconds_from_the_first_request(trace_file, name):
    trace = read_trace(trace_file(MOONCAKE, name))
    assert trace.arrival_s.tolist() == [0, 0, 2.999]
    assert trace.prefill_tokens.tolist() == [10, 5, 7]
    assert trace.decode_tokens.tolist() == [3, 4, 1]


@pytest.mark.parametrize(
    "content",
    [
        CSV,
        CSV.replace("arrival,prefill,decode", "arrival_s,prefill_tokens,decode_tokens"),
        "\ufeff" + CSV.replace("\n", "\r\n"),
        CSV.replace("\n", "\n\n"),
        '"decode","user","arrival","prefill"\n3,"a,b",2.5,10\n4,c,2.5,0\n0,,4,7\n',
    ],
    ids=["plain", "long names", "byte order mark", "blank lines", "quoted and reordered"],
)
def test_plain_csv(trace_file, content):
    trace = read_trace(trace_file(content))
    assert trace.arrival_s.tolist() == [0, 0, 1.5]
    assert trace.prefill_tokens.tolist() == [10, 0, 7]
    assert trace.decode_tokens.tolist() == [3, 4, 0]


def test_limit_reads_no_further(trace_file):
    path = trace_file(CSV + "junk\n")
    assert len(read_trace(path, limit=3)) == 3
    with pytest.raises(LLMGymError, match="line 5"):
        read_trace(path, limit=4)
    assert len(read_trace(trace_file(MOONCAKE + "{", "trace.jsonl"), limit=3)) == 3


H = "arrival,prefill,decode\n"
J = '{"timestamp": 0, "input_length": 1, "output_length": 1}\n'


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "is empty"),
        ("\n" + CSV, "starts with an empty line"),
        (H, "header but no request"),
        (H + "0,1,1\n1,x,1\n", r"line 3: prefill is 'x', not a number"),
        (H + "0,1,1\n1,1,\n", r"line 3: decode is '', not a number"),
        (H + "0,1,nan\n", r"line 2: decode is 'nan', not a number"),
        (H + "inf,1,1\n", r"line 2: arrival is 'inf', not a number"),
        (H + "-1,1,1\n", r"line 2: arrival is '-1', not a number of 0 or more"),
        (H + "0,-1,1\n", r"line 2: prefill is '-1', not a number of 0 or more"),
        (H + "0,1.5,1\n", r"line 2: prefill is '1.5', not a whole number"),
        (H + "0,1e9,1\n", r"line 2: prefill is '1e9', not a whole number of at most"),
        (H + "0,1,1\n0,0,0\n", r"line 3: prefill is '0' and decode too; drop"),
        (H + "5,1,1\n\n4,1,1\n", r"line 4: arrival is '4', earlier than .* sort"),
        (H + "0,1,1\n1,1\n", r"line 3: 2 columns where the header has 3; the row is cut"),
        (H + "0,1,1,1\n", r"line 2: 4 columns"),
        (H + '0,1,"1\n', r"line 2: .*cut or damaged"),
        ("arrival,prefill\n0,1\n", r"line 1: column decode or decode_tokens is missing.*found: "),
        ("a,b,c\n1,2,3\n", r"line 1: 'a,b,c' has no known column.*azure: TIMESTAMP, Context"),
        (AZURE.replace("ContextTokens", "Tokens"), "column ContextTokens is missing"),
        (AZURE.replace("2023-11-16 18:16", "2023-13-16 18:16"), "line 4: TIMESTAMP.*not a date"),
        (AZURE.replace("2023-11-16 18:16:50.1805900", "now"), "line 4: TIMESTAMP is 'now', not a"),
        (AZURE.replace("2023-11-16 18:16", "2023-11-16 18:14"), "line 4: TIMESTAMP.*earlier than"),
        (MOONCAKE[:-30], "line 3: not one whole JSON object; the line is cut"),
        (J + "[1]\n", "line 2: not one whole JSON object"),
        (J + '{"timestamp": 1, "input_length": 1}\n', "line 2: output_length is missing"),
        (J.replace(": 1,", ": null,"), "line 1: input_length is None, not a number"),
        (J.replace(": 1,", ": true,"), "line 1: input_length is True, not a number"),
        (J.replace(": 1,", ": NaN,"), "line 1: input_length is nan, not a number"),
        (b"\x1f\x8b\x08\x00\xff\xfe\x00\x01", "is compressed with gzip: unpack it"),
        (b"\x00\x01\x02\x03\n\x00\x01", "no known column"),
        (CSV.encode() + b"\xff\xff", "not UTF-8 text"),
    ],
)
def test_faults_are_named(trace_file, content, fault):
    path = trace_file(content)
    with pytest.raises(LLMGymError, match=f"(?s)trace.csv.*{fault}"):
        read_trace(path)


def test_bad_arguments(trace_file, tmp_path):
    path = trace_file(CSV)
    with pytest.raises(LLMGymError, match=r"Unknown trace format 'azur'. Did you mean 'azure'\?"):
        read_trace(path, "azur")
    with pytest.raises(LLMGymError, match="column TIMESTAMP is missing"):
        read_trace(path, "azure")
    with pytest.raises(LLMGymError, match="line 1: not one whole JSON object"):
        read_trace(path, "mooncake")
    with pytest.raises(LLMGymError, match="limit must be at least 1"):
        read_trace(path, limit=0)
    with pytest.raises(LLMGymError, match=r"no\.csv: No such file"):
        read_trace(tmp_path / "no.csv")
    with pytest.raises(LLMGymError, match=r"[Dd]irectory"):
        read_trace(tmp_path)
    with pytest.raises(LLMGymError, match="must name a trace file"):
        read_trace(3)
    with pytest.raises(LLMGymError, match="null byte"):
        read_trace("a\0b")


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([AZURE, CSV, MOONCAKE, VLLM]),
    st.integers(0, 300),
    st.binary(max_size=3),
    st.integers(0, 3),
)
def test_a_damaged_file_is_read_or_refused(tmp_path_factory, content, at, junk, removed):
    """Whatever bytes are put in and taken out, nothing but LLMGymError comes out."""
    data = content.encode()
    path = tmp_path_factory.mktemp("damaged") / "trace"
    path.write_bytes(data[:at] + junk + data[at + removed :])
    try:
        trace = read_trace(path)
    except LLMGymError:
        with pytest.raises(LLMGymError, match=re.escape(str(path))):
            read_trace(path)
    else:
        assert 0 < len(trace) <= 5


@pytest.mark.parametrize("content", [AZURE, CSV, MOONCAKE])
def test_a_cut_file_never_gives_a_wrong_row_before_the_last(trace_file, content):
    whole = read_trace(trace_file(content))
    for end in range(len(content)):
        try:
            cut = read_trace(trace_file(content[:end]))
        except LLMGymError:
            continue
        sure = len(cut) - 1  # only the last number of a CSV can be cut without a trace
        assert cut.arrival_s[:sure].tolist() == whole.arrival_s[:sure].tolist()
        assert cut.decode_tokens[:sure].tolist() == whole.decode_tokens[:sure].tolist()


def test_summary_of_known_gaps():
    facts = summary(Replay([1.0, 2.0, 5.0], [10, 20, 30], [1, 2, 3]))
    assert facts == {
        "requests": 3,
        "span_s": 4.0,
        "rate_per_s": 0.5,
        "gap_cv": 0.5,
        "mean_prefill_tokens": 20.0,
        "mean_decode_tokens": 2.0,
    }


def test_summary_without_gaps():
    facts = summary(Replay([1.0, 1.0], [10, 20], [1, 2]))
    assert facts["span_s"] == 0
    assert facts["rate_per_s"] is None
    assert facts["gap_cv"] is None


def test_window():
    replay = Replay([0.0, 1.0, 2.0, 3.0], [1, 2, 3, 4], [5, 6, 7, 8], name="x", ttft_ms=9.0)
    part = replay.window(0.5, 3.0)
    assert part.arrival_s.tolist() == [0.5, 1.5]
    assert part.prefill_tokens.tolist() == [2, 3]
    assert part.decode_tokens.tolist() == [6, 7]
    assert (part.name, part.ttft_ms) == ("x", 9.0)
    assert len(replay.window(0, 3.1)) == 4


@pytest.mark.parametrize(
    ("bounds", "fault"),
    [
        ((1.1, 1.9), "No request arrives between 1.1 and 1.9 s; the replay runs from 0 to 3 s"),
        ((2, 2), "end_s must be greater than 2"),
        ((-1, 2), "start_s must be at least 0"),
        ((np.nan, 2), "start_s must be finite"),
        ((0, "1"), "end_s must be a number"),
    ],
)
def test_bad_windows(bounds, fault):
    with pytest.raises(LLMGymError, match=fault):
        Replay([0.0, 3.0], [1, 2], [5, 6]).window(*bounds)
