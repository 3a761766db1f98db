"""Measuring batch times: what the file holds, that it resumes, and that the decoder computes attention."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from commands import run

from llmgym.calibration.batches import Settings
from llmgym.calibration.calibrate import calibrate
from llmgym.calibration.measure import Measured, measure
from llmgym.core.errors import LLMGymError

torch = pytest.importorskip("torch")

SMALL = Settings(
    layers=1, width=16, heads=4, kv_heads=2, vocabulary=20, repeats=1,
    decodes=(0, 1, 4), context=(3, 30), chunk=(0, 8, 16), prefix=(0, 5),
)  # fmt: skip


def test_it_measures_and_resumes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "times.csv"
    assert measure(SMALL, path) == Measured(0, 24, 0)
    frame = pd.read_csv(path)
    shapes = frame[["decodes", "context", "chunk", "prefix"]]
    assert len(frame) == 4 + 4 + 2 * 2 * 2 * 2
    assert not shapes.duplicated().any()
    assert (frame["tokens"] == frame["decodes"] + frame["chunk"]).all()
    assert (frame["decode_context"] == frame["decodes"] * frame["context"]).all()
    pairs = frame["chunk"] * (frame["prefix"] + frame["chunk"] / 2)
    assert (frame["prefill_pairs"] == pairs).all()
    assert {fit.form for fit in calibrate(path).fits} >= {"roofline", "table"}

    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join(rows[:-2]) + rows[-1][:9])  # stopped in the middle of a row
    assert measure(SMALL, path) == Measured(22, 2, 0)
    again = path.read_text().splitlines(keepends=True)
    assert again[:-2] == rows[:-2]
    assert pd.read_csv(path)[shapes.columns].equals(shapes)

    before = path.read_text()
    for other in (replace(SMALL, layers=2), replace(SMALL, dtype="bfloat16")):
        with pytest.raises(LLMGymError, match="another model"):
            measure(other, path)
    assert path.read_text() == before


def test_the_decoder_attends_as_it_should() -> None:
    """Against attention written out token by token, with the keys and values of the caches."""
    from llmgym.calibration.torch_models import Layer

    torch.manual_seed(0)
    layer = Layer(16, 4, 2, 32, {})
    decodes, context, chunk, prefix = 3, 5, 4, 6
    x = torch.randn(decodes + chunk, SMALL.width)
    caches = [torch.randn(2, decodes, 2, context + 1, 4), torch.randn(2, 1, 2, prefix + chunk, 4)]
    mask = torch.ones(chunk, prefix + chunk, dtype=torch.bool).tril(prefix)
    with torch.inference_mode():
        got = layer(x, decodes, caches, mask)
        q, k, v = layer.qkv(layer.norm_1(x)).view(len(x), -1, 4).split((4, 2, 2), dim=1)
        rows = []
        for t in range(len(x)):
            first = t if t < decodes else decodes
            cache, held = (caches[0][:, t], context) if t < decodes else (caches[1][:, 0], prefix)
            keys = torch.cat([cache[0][:, :held], k[first : t + 1].transpose(0, 1)], dim=1)
            values = torch.cat([cache[1][:, :held], v[first : t + 1].transpose(0, 1)], dim=1)
            for head in range(4):
                weight = torch.softmax(keys[head // 2] @ q[t, head] / 2, dim=0)
                rows.append(weight @ values[head // 2])
        y = x + layer.out(torch.cat(rows).view(len(x), -1))
        gate, up = layer.gate_up(layer.norm_2(y)).chunk(2, dim=-1)
        expected = y + layer.down(torch.nn.functional.silu(gate) * up)
    torch.testing.assert_close(got, expected)


ARGUMENTS = (
    "--device cpu --layers 1 --width 16 --heads 4 --kv-heads 2 --vocabulary 20 --repeats 1 --warmup 0 "
    "--decodes 0,2 --context 3 --chunk 0,8 --prefix 0"
)


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "times.csv"
    code, out, _ = run(capsys, "measure-batch-time", str(file), *ARGUMENTS.split())
    assert code == 0
    assert "0 batches were there, 3 were added." in out and f"llmgym calibrate {file}" in out
    code, out, _ = run(capsys, "measure-batch-time", str(file), *ARGUMENTS.split(), "--json")
    assert json.loads(out) == {"file": str(file), "before": 3, "added": 0, "left_out": 0}
    file.write_text("something else\n")
    code, out, err = run(capsys, "measure-batch-time", str(file), *ARGUMENTS.split())
    assert (code, out) == (2, "")
    assert "not a file of measured batches" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--heads 3 --width 16", "heads must divide width"),
        ("--repeats 0", "repeats must be at least 1"),
        ("--decodes -1", "decodes must be one number or more, each at least 0"),
        ("--decodes 1;2", "write whole numbers"),
        ("--layers 0", "layers must be at least 1"),
        ("--dtype int8", "Unknown dtype 'int8'"),
    ],
)
def test_bad_options_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: str, message: str, tmp_path: Path
) -> None:
    file = str(tmp_path / "x.csv")
    code, out, err = run(capsys, "measure-batch-time", file, "--device", "cpu", *arguments.split())
    assert (code, out) == (2, "")
    assert message in err
    assert not list(tmp_path.iterdir())
