"""Learned policies: ``load(name)`` gives a trained one, ``names()`` lists those that ship."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from llmgym.agents.checkpoint import load_agent
from llmgym.baselines.policy import Policy
from llmgym.core.checks import check_name
from llmgym.core.errors import LLMGymError, shown
from llmgym.evaluation.policies import register_trained

CHECKPOINTS = Path(__file__).parent / "checkpoints"


def names() -> tuple[str, ...]:
    """Names of the trained policies that ship with llmgym."""
    return tuple(sorted(path.stem for path in CHECKPOINTS.glob("*.npz")))


def load(name: str | Path) -> Policy:
    """The trained policy ``name``, or that of a checkpoint file (a path that ends in .npz).

    Raises LLMGymError for an unknown name, with the nearest match, or a file that holds no policy.
    """
    if is_path(name):
        return _read_now(Path(name), None)
    check_name("trained policy", name, names())
    return _read_now(CHECKPOINTS / f"{name}.npz", str(name))


def is_path(name: str | Path) -> bool:
    """Whether this names the file of a checkpoint."""
    return isinstance(name, Path) or str(name).endswith(".npz")


def _read_now(path: Path, label: str | None) -> Policy:
    """The policy that the file holds now; the same object while the file stays as it is."""
    try:
        path = path.resolve()
        seen = path.stat()
    except FileNotFoundError:
        return load_agent(path, label)  # which says so
    except (OSError, ValueError, RuntimeError) as error:
        raise LLMGymError(f"Cannot read {shown(str(path))}: {error}.") from None
    return _read(path, label, (seen.st_mtime_ns, seen.st_size, seen.st_ino, seen.st_ctime_ns))


@cache
def _read(path: Path, label: str | None, version: tuple[int, ...]) -> Policy:
    return load_agent(path, label)


register_trained(names, load)
