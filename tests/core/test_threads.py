"""Threads that compute, draw and name policies together find what they find one after the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

import llmgym
from llmgym.agents.threads import in_threads
from llmgym.core.pictures import bytes_of
from llmgym.evaluation.policies import resolve

OWN = """
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Rule:
    kind: "ClassVar[str]" = "{name}"
    number: int = {number}

    def __call__(self, key, view):
        raise NotImplementedError

rule = Rule()
"""


def together(calls: list[Callable[[], Any]]) -> list[Any]:
    """What the calls return that begin at the same moment, each in a thread of its own."""
    begin = threading.Barrier(len(calls))

    def call(one: Callable[[], Any]) -> Any:
        begin.wait()
        return one()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


def simulated(policy: str, seed: int) -> dict[str, np.ndarray]:
    """Every array of a small run."""
    scenario = llmgym.scenario("geometric", slots=32)
    return llmgym.simulate(scenario, policy, load=0.7, duration_s=1.0, seed=seed).raw


@pytest.mark.parametrize("wide", [False, True])
def test_simulations_are_the_same_side_by_side(wide: bool) -> None:
    policies = ("sarathi", "random") if wide else ("sarathi",)
    calls = [partial(simulated, policy, seed) for policy in policies for seed in (0, 1)]
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", wide)  # of all threads
    try:
        found = together(calls)
        assert jnp.ones(3).dtype == (jnp.float64 if wide else jnp.float32)
    finally:
        jax.config.update("jax_enable_x64", before)
    for one, call in zip(found, calls, strict=True):
        alone = call()
        assert one.keys() == alone.keys()
        for name, x in alone.items():
            np.testing.assert_array_equal(one[name], x)
            assert one[name].dtype == x.dtype


def test_a_file_of_policies_is_run_once_for_all_threads(tmp_path: Path) -> None:
    paths = [tmp_path / name / "mine.py" for name in ("a", "b")]
    for number, path in enumerate(paths):
        path.parent.mkdir()
        slow = "import time\ntime.sleep(0.05)\n"
        path.write_text(slow + OWN.format(name=path.parent.name, number=number))
    found = together([partial(resolve, f"{path}:rule") for path in paths * 3])
    for number, path in enumerate(paths):
        rules = found[number::2]
        assert all(rule is rules[0] for rule in rules)
        assert (rules[0].kind, rules[0].number) == (path.parent.name, number)
        # Each is the module of its own file, though both files have one name.
        assert sys.modules[type(rules[0]).__module__].rule is rules[0]


def test_pictures_drawn_side_by_side_keep_their_ids() -> None:
    def drawn(salt: str) -> bytes:
        figure = Figure()
        axis = figure.subplots()
        axis.plot(range(9), marker="o")
        return bytes_of(figure, "svg", salt)

    before = dict(mpl.rcParams)
    calls = [partial(drawn, salt) for salt in "abab"]
    found = together(calls)
    assert found == [call() for call in calls] and found[0] != found[1]
    assert dict(mpl.rcParams) == before


def test_threads_stop_with_their_caller() -> None:
    ended = []

    def work(part: int, stop: threading.Event) -> None:
        if part == 0:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        ended.append((part, stop.wait(30)))

    began = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # test workers ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            in_threads(work, range(5), 2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 10
    assert sorted(ended) == [(0, True), (1, True)]  # the others never began


def test_where_one_thread_fails_the_others_end_their_work() -> None:
    ended = []

    def work(part: int, stop: threading.Event) -> int:
        if part == 0:
            raise ValueError("the first")
        ended.append(part)
        return part

    with pytest.raises(ValueError, match="the first"):
        in_threads(work, range(4), 1)
    assert ended == [1, 2, 3]
    assert in_threads(work, [3, 1], 2) == [3, 1]


def test_threads_compute_in_32_bits_too() -> None:
    with jax.enable_x64(True):
        found = in_threads(lambda part, stop: jnp.ones(part).dtype, [2], 1)
    assert found == [jnp.float32]
    jax.config.update("jax_enable_x64", True)
    try:
        assert in_threads(lambda part, stop: jnp.ones(part).dtype, [2], 1) == [jnp.float32]
    finally:
        jax.config.update("jax_enable_x64", False)


def test_no_module_asks_for_the_time_of_day() -> None:
    """A clock that is set back in the middle of a run changes nothing."""
    root = Path(llmgym.__file__).parent
    for folder in (root, root / "agents", root / "baselines"):
        for path in folder.resolve().rglob("*.py"):
            text = path.read_text()
            for asked in ("time.time(", "datetime.now", "utcnow", "st_mtime", "getmtime"):
                assert asked not in text, path


TRAINING = """
import llmgym
from llmgym.agents.ppo import PPO
from llmgym.agents.training import Training, train

base = llmgym.scenario("latency", slots=48)
settings = PPO(num_envs=4, steps=16, epochs=1, minibatches=2, hidden=4, warm_up=0.0)
training = Training((base.at_rate(9.0), base.at_rate(12.0)), settings, steps=1280, seeds=(0, 1))
print([policy.digest for policy in train(training)])
"""


@pytest.mark.slow
def test_seeds_that_train_side_by_side_do_not_wait_for_each_other() -> None:
    """Their linear equations once took all threads of XLA, each waiting for one more.

    The second run is as if JAX were set to 64 bits, which threads see that the caller has switched off.
    """
    found = [
        subprocess.run(
            [sys.executable, "-c", TRAINING],
            env=os.environ | {"JAX_ENABLE_X64": switch},
            capture_output=True, text=True, check=False, timeout=240,
        )
        for switch in ("0", "1")
    ]  # fmt: skip
    assert found[0].returncode == found[1].returncode == 0, found[1].stderr[-2000:]
    assert found[0].stdout == found[1].stdout
