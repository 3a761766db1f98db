"""The observation vector: its layout, its meaning against NumPy, and bounds that hold in overload."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from env_samples import SCENARIO, random_queues, single_env

from llmgym import JobType, LLMGymError, Poisson, Stage
from llmgym.engine import simulator
from llmgym.envs.interface.observations import Observation
from llmgym.theory.capacity import at_load

TWO_CLASSES = SCENARIO.override(
    max_num_seqs=12,
    seq_limit="resident",
    workload=tuple(JobType(Poisson(5.0), (Stage(50, 20),), name=name) for name in ("chat", "bulk")),
)


def described(view: Any, rate: float, requests: int) -> dict[str, float]:
    """What the docstring says of one queue (arrays (slots,)), computed in NumPy."""
    prefill, decoding, live = view.prefill, view.decoding, (view.prefill > 0) | view.decoding
    work = prefill.sum() + decoding.sum()
    sizes = np.arange(1, 257)
    batch_time = TWO_CLASSES.engine.batch_time
    best = (sizes / batch_time.ms(sizes)).max()
    waited, unserved = view.waited * 1e-5, view.unserved * 1e-5  # seconds

    def oldest(age: np.ndarray, mask: np.ndarray) -> float:
        return float(np.log1p(age[mask].max(initial=0)))

    out = {
        "prefill_tokens": np.log1p(prefill.sum() / 64),
        "decoding": np.log1p(decoding.sum()),
        "decode_sawtooth": decoding.sum() % 64 / 64,
        "work_sawtooth": work % 64 / 64,
        "oldest_prompt": oldest(waited, prefill > 0),
        "oldest_gap": oldest(unserved, decoding),
        "arrival_rate": np.log1p(rate),
        "seat_slack": 1 - view.started.sum() / 12,
        "slot_slack": 1 - live.sum() / TWO_CLASSES.slots,
    }
    for k in range(1, 5):
        tokens = min(work, 64 * k)
        out[f"rate_{k}"] = tokens / float(batch_time.ms(max(tokens, 1))) / best
    for k, name in enumerate(("chat", "bulk")):
        mine = view.job_class == k
        out[f"waiting_{name}"] = np.log1p((mine & (prefill > 0)).sum())
        out[f"decoding_{name}"] = np.log1p((mine & decoding).sum())
        out[f"prefill_{name}"] = np.log1p(prefill[mine].sum() / 64)
        out[f"age_{name}"] = oldest(waited, mine & (prefill > 0))
        out[f"gap_{name}"] = oldest(unserved, mine & decoding)
    for n in range(requests):
        row = np.flatnonzero(live)[n] if n < live.sum() else None
        columns = {
            "present": 1.0 if row is not None else 0.0,
            "prefill": 0.0 if row is None else np.log1p(prefill[row] / 64),
            "decoding": 0.0 if row is None else float(decoding[row]),
            "generated": 0.0 if row is None else np.log1p(view.generated[row]),
            "waited": 0.0 if row is None else np.log1p(waited[row]),
            "unserved": 0.0 if row is None else np.log1p(unserved[row]),
            "class": 0.0 if row is None else float(view.job_class[row]),
        }
        out |= {f"request_{n}_{name}": value for name, value in columns.items()}
    return out


def test_every_entry_is_what_the_docstring_says() -> None:
    observation, cases = Observation(TWO_CLASSES, requests=3), 60
    view = random_queues(TWO_CLASSES, 24, cases)
    rates = np.linspace(0, 50, cases).astype(np.float32)
    vectors = np.asarray(jax.jit(observation.of)(view, jnp.asarray(rates)))
    host = jax.device_get(view)
    for case in range(cases):
        one = jax.tree.map(lambda x, case=case: x[..., case], host)
        expected = described(one, float(rates[case]), 3)
        assert set(expected) == set(observation.names)
        found = dict(zip(observation.names, vectors[:, case], strict=True))
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert all(observation.space.contains(vector) for vector in vectors.T)


@pytest.mark.parametrize("requests", [0, 3])
def test_names_and_bounds_fit_the_vector(requests: int) -> None:
    observation = Observation(TWO_CLASSES, requests)
    assert len(set(observation.names)) == len(observation.names)
    assert observation.space.shape == (len(observation.names),)
    assert np.isfinite(observation.space.high).all() and (observation.space.low == 0).all()
    assert len(observation.names) == 13 + 2 * 5 + 7 * requests


def test_the_environment_shows_the_named_vector() -> None:
    env = single_env("tiles")
    observation, _ = env.reset(seed=0)
    assert observation.shape == (len(env.core.observation.names),) == env.observation_space.shape
    # An empty engine: all slots and seats free, nothing else.
    shown = dict(zip(env.core.observation.names, observation, strict=True))
    assert {name for name, value in shown.items() if value} == {"seat_slack", "slot_slack"}


def test_bounds_hold_in_overload_and_the_arrival_rate_is_found() -> None:
    env = single_env("tiles")
    scenario = at_load(SCENARIO, 1.5)
    params, space = simulator.lower(scenario), env.observation_space
    rate = env.core.observation.names.index("arrival_rate")
    state, estimates = env.core.init(jax.random.key(1, impl="threefry2x32"), params), []
    rng = np.random.default_rng(0)
    for _ in range(3000):
        state, result = env.core.step(state, rng.integers(4), params)
        observation = np.asarray(result.observation)
        assert space.contains(observation), observation
        estimates.append(np.expm1(observation[rate]))
    assert int(state.engine.totals.dropped) > 100  # overload it was
    # Rate over a memory of a minute: about 1200 arrivals, so a deviation of 3 % at one sigma.
    assert estimates[-1] == pytest.approx(scenario.arrival_rate_per_s, rel=0.15)


def test_bad_number_of_requests_raises() -> None:
    with pytest.raises(LLMGymError, match="requests"):
        Observation(SCENARIO, requests=-1)
