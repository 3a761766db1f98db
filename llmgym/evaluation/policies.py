"""From a name, a file or a function to the policy that it stands for; and requests it can never serve."""

from __future__ import annotations

import io
import os
import sys
import tokenize
import traceback
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import RLock
from typing import Any

import jax
import numpy as np

from llmgym import baselines
from llmgym.baselines.decisions import check_form, compose, decide, remembers
from llmgym.baselines.policy import RememberingPolicy
from llmgym.core.errors import LLMGymError, shown, unknown
from llmgym.core.files import slug
from llmgym.core.reading import digest as digest_of
from llmgym.core.reading import read_bytes
from llmgym.engine.view import Batch, View
from llmgym.scenario.library import as_scenario
from llmgym.scenario.request_size import held_tokens, likely_longest_call
from llmgym.scenario.scenario import Scenario

_DEFINING = RLock()
"""Two threads that name the same file get the same function, and it is run once."""

MOST_OF_A_POLICY = 2**20
"""Most bytes of a Python file that holds a policy."""

Policy = Callable[[jax.Array, View], Batch] | RememberingPolicy
PolicyLike = str | Policy


@dataclass(frozen=True)
class Trained:
    """Where trained policies come from: the names of those that ship, and a loader of name or path."""

    names: Callable[[], tuple[str, ...]]
    load: Callable[[str], Policy]


_TRAINED: list[Trained] = []


def register_trained(names: Callable[[], tuple[str, ...]], load: Callable[[str], Policy]) -> None:
    """Let texts name trained policies; ``llmgym.agents`` registers those that ship."""
    _TRAINED[:] = [Trained(names, load)]


def resolve(policy: PolicyLike) -> Policy:
    """The policy that a text stands for, or the policy object or function itself.

    A text is the name of a baseline or of a trained policy; ``sarathi:token_budget=128`` with settings
    (several with commas between them); ``path/agent.npz``, a checkpoint; or ``path/file.py:function``, a
    policy of one's own.

    Raises LLMGymError for an unknown name (with the nearest match), something that cannot be called, and a
    policy that takes a memory without a ``start`` or has a ``start`` without taking one.
    """
    if isinstance(policy, str):
        return _named(policy)
    if isinstance(policy, os.PathLike):
        return _named(os.fspath(policy))
    if not callable(policy):
        raise LLMGymError(
            f"A policy is a name or a function policy(key, view) -> Batch, got {shown(policy)}."
        )
    check_form(policy)
    return policy


def _named(text: str) -> Policy:
    trained = _TRAINED[0] if _TRAINED else Trained(tuple, baselines.make)
    if text.endswith(".npz"):
        return trained.load(text)
    file, is_python, function = text.partition(".py:")
    if is_python:
        return _from_file(Path(os.path.abspath(f"{file}.py")), function)
    name, _, settings = text.partition(":")
    if name not in baselines.POLICIES and name not in trained.names():
        raise unknown("policy", name, (*baselines.names(), *trained.names()))
    values: dict[str, Any] = {}
    for pair in filter(None, settings.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise LLMGymError(
                f"Policy {text!r}: write settings as name:setting=value,setting=value."
            )
        values[key.strip()] = value_of(value.strip())
    if name in baselines.POLICIES:
        return baselines.make(name, **values)
    if values:
        raise LLMGymError(f"Policy {text!r}: a trained policy has no settings.")
    return trained.load(name)


def value_of(text: str) -> Any:
    """What a text stands for: none, true, false, a number, or else the text itself."""
    if text.lower() in ("none", "true", "false"):
        return {"none": None, "true": True, "false": False}[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _from_file(path: Path, function: str) -> Policy:
    """The policy ``function`` of a Python file."""
    data = read_bytes(
        path, "policy", MOST_OF_A_POLICY, hint="Name a policy of yours as path/file.py:function."
    )
    with _DEFINING:
        found = _defined(str(path), _decoded(path, data))
    if function not in found:
        own = [n for n, x in found.items() if getattr(x, "__module__", "") == found["__name__"]]
        raise unknown(f"policy of {path.name}:", function, own)
    if isinstance(found[function], (str, os.PathLike)):  # a name could name itself
        raise LLMGymError(
            f"{function} of {path} is text, {shown(found[function])}: name a function policy(key, view)."
        )
    return resolve(found[function])


def _decoded(path: Path, data: bytes) -> str:
    """The text of a Python file, in the encoding that it declares."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
    except (UnicodeDecodeError, SyntaxError):
        raise LLMGymError(
            f"{path} is not UTF-8 text: save it as UTF-8, or say what it is on its first line, "
            "# -*- coding: latin-1 -*-."
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise LLMGymError(f"{path}, line {line}, holds a NUL byte: it is no Python text.")
    return text


@cache  # the same function for the same text, so that what is compiled for it is found again
def _defined(path: str, text: str) -> dict[str, Any]:
    """What a file of Python defines."""
    # A name of its own: files of the same name in two folders are two modules.
    module = types.ModuleType(f"_own_{slug(path)}")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        exec(compile(text, path, "exec"), module.__dict__)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit as well: a policy file must not end the program
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        where = f" in line {lines[-1]}" if lines else ""
        reason = f"{type(error).__name__}: {error}"
        raise LLMGymError(f"{path} cannot be imported: {reason}{where}.") from error
    return vars(module)


def digests(names: tuple[str, ...]) -> dict[str, str]:
    """SHA-256 of what is in the Python files and checkpoints that names stand for; others are left out."""
    found = {}
    for name in names:
        file, is_python, _ = name.partition(".py:")
        if is_python:
            found[name] = digest_of(f"{file}.py", "policy", MOST_OF_A_POLICY)
        elif digest := getattr(resolve(name), "digest", ""):
            found[name] = digest
    return found


def name_of(policy: PolicyLike) -> str:
    """A short label for tables and plots."""
    if isinstance(policy, str):
        return policy
    label = getattr(policy, "label", None) or getattr(policy, "name", None)
    return str(label or getattr(policy, "__name__", type(policy).__name__))


def check(policy: Any, scenario: Scenario) -> str | None:
    """Why some request of the scenario can never be served under the policy; None if all can."""
    scenario = as_scenario(scenario)
    problem = memory_problem(scenario)
    unservable = getattr(policy, "unservable", None)
    if problem or unservable is None:
        return problem
    problems = (unservable(scenario.longest_prompt(e), e.token_budget) for e in scenario.engines)
    return next((problem for problem in problems if problem), None)


def memory_problem(scenario: Scenario) -> str | None:
    """Which requests never fit into the KV memory of an engine; None if all do."""
    short = [
        (engine.kv_cache, likely_longest_call(scenario, engine))
        for engine in scenario.engines
        if engine.kv_cache is not None
        and likely_longest_call(scenario, engine) > engine.kv_cache.tokens
    ]
    if not short:
        return None
    cache, longest = short[0]
    who = f"Requests of up to {longest:g} tokens"
    held = held_tokens(scenario)
    if held is not None:
        number = np.flatnonzero(held > cache.tokens)
        more = f" and {number.size - 1} more" if number.size > 1 else ""
        who = f"Request {number[0]}, of {held[number[0]]} tokens,{more}"
    return (
        f"{who} never fit into KV memory, which holds {cache.tokens}: they are dropped and counted. "
        "Use more blocks or shorter requests."
    )


__all__ = [
    "Policy",
    "PolicyLike",
    "Trained",
    "check",
    "compose",
    "decide",
    "digests",
    "memory_problem",
    "name_of",
    "register_trained",
    "remembers",
    "resolve",
    "value_of",
]
