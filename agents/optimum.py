"""The solution of a decode-first problem: its policy, its bounds, and the file that keeps both."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.agents.decode_first import DecodeFirst
from llmgym.baselines.tiles import TilePolicy, tokens_waiting
from llmgym.core.checks import check_path, keep_number
from llmgym.core.errors import LLMGymError
from llmgym.core.files import to_json, write
from llmgym.core.npz import read_npz
from llmgym.core.reading import parse_json
from llmgym.engine.view import View


@dataclass(frozen=True)
class DynamicProgram(TilePolicy):
    """Opens the tiles that a table of ``solve`` gives for the prompt tokens and decodes that wait.

    Beyond the prompts of the table all tiles open: there the policy is work-conserving, so it carries
    any load below the limit. More decodes than the table has count as its largest number.

    ``table`` holds the tiles as bytes, one row for each p, of ``columns`` values of D each; a prompt of
    ``prompt_tokens`` takes ``residues`` rows.
    """

    name: ClassVar[str] = "dynamic_program"
    saturates: ClassVar[bool] = True
    table: bytes = field(default=b"\x01", repr=False)
    columns: int = 1
    prompt_tokens: int = 1
    residues: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("columns", "prompt_tokens", "residues"):
            keep_number(self, name, low=1, integer=True)
        if not self.table or len(self.table) % self.columns:
            raise LLMGymError(
                f"A table of {len(self.table)} bytes has no whole rows of {self.columns} columns."
            )

    def tiles(self, view: View, tile: jax.Array, most: jax.Array) -> jax.Array:
        decodes, prefill = tokens_waiting(view)
        rows = len(self.table) // self.columns
        p = -(-jnp.minimum(prefill, 1 << 20) * self.residues // self.prompt_tokens)
        cell = jnp.minimum(p, rows - 1) * self.columns + jnp.minimum(decodes, self.columns - 1)
        tiles = jnp.asarray(np.frombuffer(self.table, np.uint8)).astype(jnp.int32)[cell]
        return jnp.where(p >= rows, most, jnp.minimum(tiles, most))


@dataclass(frozen=True)
class Optimum:
    """The solution of a decode-first problem.

    Attributes:
        policy: the best policy.
        low, high: bounds on the least mean E2E latency in seconds (MacQueen's, of the problem that
            was solved).
        exact: whether that problem is the scenario itself but for the truncation: prompts fixed,
            outputs geometric, prompt tokens counted one by one.
        truncation: share of the latency that is the cost of arrivals turned away.
        problem: the one that was solved; it holds the arrival rate and the size of the table.
    """

    policy: DynamicProgram
    low: float
    high: float
    exact: bool
    truncation: float
    problem: DecodeFirst


def policy_of(problem: DecodeFirst, tiles: np.ndarray) -> DynamicProgram:
    """The policy that opens ``tiles``, one number for each state of a problem."""
    table = np.asarray(tiles, np.uint8).tobytes()
    columns = problem.shape[1]
    return DynamicProgram(None, None, table, columns, problem.prompt_tokens, problem.residues)


def save(optimum: Optimum, path: str | Path) -> None:
    """Write an optimum to an npz file: the table, and a header in JSON with everything else."""
    policy = optimum.policy
    header = asdict(optimum) | {"policy": {"name": policy.name}, "format": 1}
    table = np.frombuffer(policy.table, np.uint8).reshape(-1, policy.columns)
    file = io.BytesIO()
    np.savez_compressed(file, table=table, header=np.array(to_json(header)))
    write(Path(path), file.getvalue())


def load(path: str | Path) -> Optimum:
    """Read what ``save`` wrote. Raises LLMGymError for any other file."""
    path = check_path("path", path)
    try:
        arrays = read_npz(path)
        table, header = arrays["table"], parse_json(str(arrays["header"]))
        given: Any = {
            k: tuple(v) if isinstance(v, list) else v for k, v in header["problem"].items()
        }
        problem = DecodeFirst(**given)
        if table.dtype != np.uint8 or table.shape != problem.shape:
            raise ValueError(f"its table has the shape {table.shape}, its problem {problem.shape}")
        policy = policy_of(problem, table)
        bounds = {name: header[name] for name in ("low", "high", "exact", "truncation")}
        return Optimum(policy, problem=problem, **bounds)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
        raise LLMGymError(f"{path} holds no optimum that llmgym wrote: {error}.") from error
