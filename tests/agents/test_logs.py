"""Learning curves in TensorBoard and Weights & Biases; a missing package is named with its extra."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import llmgym
from llmgym import LLMGymError
from llmgym.agents.logs import Logged, scalars
from llmgym.agents.ppo import PPO
from llmgym.agents.training import Training, train

LOADS = tuple(llmgym.scenario("latency", slots=48).at_rate(rate) for rate in (9.0, 12.0))
TINY = Training(LOADS, PPO(num_envs=4, steps=8, minibatches=2, hidden=4), steps=640, seeds=(3, 4))


def test_numbers_of_worlds_have_numbers() -> None:
    row = {"entropy": np.float32(0.5), "cost": np.array([1.0, 2.0])}
    assert scalars(row) == {"entropy": 0.5, "cost/0": 1.0, "cost/1": 2.0}


@pytest.mark.parametrize("log", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_before_training(
    log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == log]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, log, None)  # as if it were not installed
    with pytest.raises(LLMGymError) as refused:
        train(TINY, tmp_path / "out", log=log)
    assert str(refused.value) == f"log='{log}' needs {log}: pip install 'llmgym[{log}]'."
    assert not (tmp_path / "out").exists()


def test_what_is_refused() -> None:
    with pytest.raises(LLMGymError, match=r"Unknown log 'tensorbord'\. Did you mean 'tensorboard'"):
        train(TINY, log="tensorbord")
    pytest.importorskip("tensorboard")
    with pytest.raises(LLMGymError, match="give out="):
        train(TINY, log="tensorboard")


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of every curve in the event files of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    tags = events.Tags()["tensors"]
    return {
        tag: [(e.step, float(make_ndarray(e.tensor_proto))) for e in events.Tensors(tag)]
        for tag in tags
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_the_learning_curve(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(TINY, tmp_path, log="tensorboard")
    for seed in TINY.seeds:
        curve = pd.read_csv(tmp_path / f"curve-{seed}.csv")
        found = points(tmp_path / "tensorboard" / f"seed-{seed}")
        told = curve.iloc[4::5]  # a row for each chunk of iterations
        for tag, column in [("entropy", "entropy"), ("cost/0", "cost_0"), ("cost/1", "cost_1")]:
            assert [step for step, _ in found[tag]] == told["steps"].tolist()
            np.testing.assert_allclose([x for _, x in found[tag]], told[column], rtol=1e-5)


def test_wandb_has_the_learning_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(TINY, tmp_path, log="wandb")
    files = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2  # a run for each seed
    found = sorted((history(file) for file in files), key=lambda rows: -rows[0]["cost/0"])
    expected = sorted(
        (pd.read_csv(tmp_path / f"curve-{s}.csv").iloc[4::5] for s in TINY.seeds),
        key=lambda rows: -rows["cost_0"].iloc[0],
    )
    for rows, told in zip(found, expected, strict=True):
        assert [row["_step"] for row in rows] == told["steps"].tolist()
        np.testing.assert_allclose([row["cost/0"] for row in rows], told["cost_0"], rtol=1e-5)


def history(file: Path) -> list[dict[str, Any]]:
    """The rows of an offline run."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            names = [item.key or ".".join(item.nested_key) for item in items]
            rows.append(
                {n: json.loads(item.value_json) for n, item in zip(names, items, strict=True)}
            )
    return rows


def records(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format: parts of at most a block, 7 bytes before each."""
    at, block, whole = 7, 1 << 15, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def test_a_log_that_cannot_begin_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stub:
        @staticmethod
        def init(**_: Any) -> Any:
            raise RuntimeError("api_key not configured")

    monkeypatch.setitem(sys.modules, "wandb", Stub)
    with pytest.raises(LLMGymError, match=r"api_key not configured. Log in with 'wandb login'"):
        Logged("wandb", None, TINY.header, 10).row(3, 5, {"cost": 1.0})
