"""The learner: its loss against Stable-Baselines3, its runs to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmgym
from llmgym import LLMGymError
from llmgym.agents import checkpoint, estimates, ppo
from llmgym.agents import training as trainings
from llmgym.agents.ppo import PPO, Experience
from llmgym.agents.tile_choice import TileChoice
from llmgym.agents.training import Training
from llmgym.baselines import make
from llmgym.core.blocks import compiled
from llmgym.engine import simulator
from llmgym.envs.rewards import ServiceLevels, Transition, holding_cost, tardiness
from llmgym.evaluation import rollout
from llmgym.scenario.kv_cache import KVCache


def test_arrivals_count_no_request_twice_and_late_ones_cost_more() -> None:
    """Two tenants on an engine whose memory is too small: requests are preempted and late."""
    memory = KVCache(blocks=500, block_size=16)
    scenario = llmgym.scenario("multi-tenant", slots=64, kv_cache=memory).at_rate(9.0)
    physics, envs = simulator.lower(scenario), 4
    levels = ServiceLevels.of(scenario)
    settings = PPO(late_weight=0.5, levels=levels, prefill_weight=1.0)

    def size(table: Any, those: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(those, table.prompt + table.output, 0), axis=0)

    def step(state: Any, _: Any) -> tuple[Any, tuple[jax.Array, ...]]:
        view = simulator.view(physics, state)
        after, info = simulator.step(physics, state, make("sarathi")(None, view))  # type: ignore[arg-type]
        seen = Transition(state, info, after, physics.tick_ms)
        late = tardiness(seen, levels)
        extra = ppo.cost_of(settings, seen) + holding_cost(seen) + 0.5 * late
        came = size(after.table, after.table.live) - size(state.table, state.table.live)
        wrong = estimates.arrivals(physics, seen)[..., 2] - came - size(info.table, info.finished)
        return after, (late, extra, wrong, info.preempted)

    state = rollout.start(physics, rollout.keys(0, envs))
    found = jax.jit(lambda s: jax.lax.scan(step, s, length=600))(state)[1]
    late, extra, wrong, preempted = map(np.asarray, found)
    assert late.min() < 0 and preempted.sum() > 0
    np.testing.assert_allclose(extra, 0, atol=1e-3)
    assert (wrong == 0).all()


class Blank(gym.Env):  # type: ignore[type-arg]
    """An environment that shows nothing: only its spaces matter."""

    def __init__(self, features: int, actions: int) -> None:
        self.observation_space = gym.spaces.Box(-10.0, 10.0, (features,), np.float32)
        self.action_space = gym.spaces.Discrete(actions)
        self.nothing = np.zeros(features, np.float32)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self.nothing, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.nothing, 0.0, False, False, {}


def layers_of(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The layers of a model of Stable-Baselines3, and their weights as llmgym has them."""
    extractor = model.policy.mlp_extractor
    nets = {
        "actor": [*extractor.policy_net[::2], model.policy.action_net],
        "critic": [*extractor.value_net[::2], model.policy.value_net],
    }
    layers = {
        name: [
            {"weight": x.weight.detach().numpy().T.copy(), "bias": x.bias.detach().numpy().copy()}
            for x in net
        ]
        for name, net in nets.items()
    }
    # The critic of llmgym also sees the number of the world; here it has no weight.
    first = layers["critic"][0]
    first["weight"] = np.concatenate([first["weight"], np.zeros((1, 8), np.float32)])
    *shared, last = layers["critic"]
    own = {
        "quadratic": np.zeros((1, 14), np.float32),
        "weight": last["weight"].T,
        "bias": last["bias"],
    }
    return nets, {"actor": layers["actor"], "critic": {"network": shared, "own": own}}


def test_loss_and_gradient_equal_those_of_stable_baselines3() -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    torch = pytest.importorskip("torch")
    from stable_baselines3.common.logger import configure

    settings = PPO(choice=TileChoice(), entropy=0.01, value_weight=0.5, clip=0.1, hidden=8)
    features, count = len(settings.choice.features), 64
    random = np.random.default_rng(2)
    model = sb3.PPO(
        "MlpPolicy", Blank(features, settings.choice.tiles),
        n_steps=count, batch_size=count, n_epochs=1, clip_range=0.1, ent_coef=0.01,
        vf_coef=0.5, normalize_advantage=False, max_grad_norm=1e9, seed=0,
        policy_kwargs={"net_arch": {"pi": [8, 8], "vf": [8, 8]}, "activation_fn": torch.nn.Tanh},
    )  # fmt: skip
    model.set_logger(configure(None, []))
    seen = random.normal(size=(count, features)).astype(np.float32)
    chosen = random.integers(settings.choice.tiles, size=count)
    old, advantage, target = random.normal(size=(3, count)).astype(np.float32)
    old = (old / 4 - 1.4).astype(np.float32)
    buffer = model.rollout_buffer
    buffer.observations[:, 0], buffer.actions[:, 0, 0] = seen, chosen
    buffer.log_probs[:, 0], buffer.advantages[:, 0], buffer.returns[:, 0] = old, advantage, target
    buffer.full = True
    nets, params = layers_of(model)
    model.train()

    def batch(x: Any) -> jax.Array:
        return jnp.asarray(x)[None, :, None]

    mask = np.ones((count, settings.choice.tiles), bool)
    nothing = batch(np.zeros(count, np.float32))
    data = Experience(
        batch(seen), batch(mask), batch(0.0 * mask), batch(chosen[:, None]), batch(old),
        batch(seen), nothing, nothing, nothing,
    )  # fmt: skip
    (_, told), gradient = jax.jit(
        jax.value_and_grad(lambda p: ppo._loss(
            settings, p, data, batch(target), batch(advantage), jnp.array([0]), 1.0, 0.01
        ), has_aux=True)
    )(params)  # fmt: skip
    logged = model.logger.name_to_value
    assert float(told["value_loss"]) == pytest.approx(logged["train/value_loss"], rel=1e-4)
    assert -float(told["entropy"]) == pytest.approx(logged["train/entropy_loss"], rel=1e-4)
    assert float(told["kl"]) == pytest.approx(logged["train/approx_kl"], rel=1e-3)
    assert float(told["clipped"]) == pytest.approx(logged["train/clip_fraction"], abs=1e-6)
    assert 0.2 < float(told["clipped"]) < 0.95
    own = gradient["critic"]["own"]
    last = {"weight": own["weight"].T, "bias": own["bias"]}
    gradient["critic"] = [*gradient["critic"]["network"], last]
    gradient["critic"][0]["weight"] = gradient["critic"][0]["weight"][:-1]
    for name, net in nets.items():
        for mine, theirs in zip(gradient[name], net, strict=True):
            np.testing.assert_allclose(mine["weight"].T, theirs.weight.grad, rtol=2e-3, atol=2e-6)
            np.testing.assert_allclose(mine["bias"], theirs.bias.grad, rtol=2e-3, atol=2e-6)


SMALL = PPO(num_envs=4, steps=16, epochs=1, minibatches=2, hidden=4, warm_up=0.0)


def small(**changes: Any) -> Training:
    base = llmgym.scenario("latency", slots=48)
    return Training((base.at_rate(9.0), base.at_rate(12.0)), SMALL, steps=1280, **changes)


@pytest.fixture(scope="module")
def program() -> Any:
    run = trainings.Run.start(small(), (0,))
    return compiled(
        trainings._chunk.lower(SMALL, run.training.iterations, run.physics, run.learners)
    )


def through(program: Any, run: trainings.Run) -> trainings.Run:
    while not run.over:
        run.advance(program)
    return run


def test_a_seed_fixes_the_policy_and_a_run_resumes_to_the_bit(program: Any, tmp_path: Path) -> None:
    whole = through(program, trainings.Run.start(small(), (0,)))
    assert whole.done == whole.training.iterations == 10
    halted = trainings.Run.start(small(), (0,))
    halted.advance(program)
    halted.save(tmp_path / "training-0.npz")
    resumed = trainings.Run.start(small(), (0,))
    resumed.resume(tmp_path / "training-0.npz")
    assert resumed.done == 5
    through(program, resumed)
    folders = [tmp_path / name for name in ("whole", "resumed")]
    for run, folder in zip((whole, resumed), folders, strict=True):
        run.finish(folder)
    for name in ("agent-0.npz", "curve-0.csv"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    for a, b in zip(*(jax.tree.leaves(r.learners) for r in (whole, resumed)), strict=True):
        assert np.array_equal(a, b)
    other = through(program, trainings.Run.start(small(seeds=(1,)), (1,)))
    digests = [run.finish(None)[0].digest for run in (whole, resumed, other)]
    assert digests[0] == digests[1] != digests[2]


def test_a_run_that_diverges_says_so_and_leaves_its_file(program: Any, tmp_path: Path) -> None:
    run = trainings.Run.start(small(), (0,))
    run.save(tmp_path / "training-0.npz")
    before = (tmp_path / "training-0.npz").read_bytes()
    broken = jax.tree.map(lambda x: x * np.nan, run.learners.params)
    run.learners = replace(run.learners, params=broken)
    with pytest.raises(LLMGymError, match="Seed 0 diverged by iteration 5"):
        run.advance(program)
    assert (tmp_path / "training-0.npz").read_bytes() == before


def test_weights_that_are_not_finite_are_not_kept(program: Any, tmp_path: Path) -> None:
    """A policy of NaN takes its first choice and leaves the loss of the critic finite."""
    run = trainings.Run.start(small(), (0,))
    actor = jax.tree.map(lambda x: x * np.nan, run.learners.params["actor"])
    run.learners = replace(run.learners, params=run.learners.params | {"actor": actor})
    with pytest.raises(LLMGymError, match="Seed 0 diverged by iteration 5"):
        run.advance(program)
    assert np.isfinite(run.curve["value_loss"]).all()
    with pytest.raises(LLMGymError, match="no longer finite"):
        run.finish(tmp_path)
    assert not list(tmp_path.iterdir())


def test_environments_whose_table_was_full_start_again(program: Any) -> None:
    run = trainings.Run.start(small(), (0,))
    (world,) = run.learners.worlds
    dropped = np.array(world.engine.totals.dropped)
    dropped[..., 0] = 10**6  # of the first environment of each world
    full = replace(world.engine, totals=replace(world.engine.totals, dropped=jnp.asarray(dropped)))
    run.learners = replace(run.learners, worlds=(replace(world, engine=full),))
    run.advance(program)
    assert (np.asarray(run.learners.worlds[0].engine.totals.dropped) < 10**6).all()


def test_progress_is_told_of_every_seed() -> None:
    class Halved:
        """A run of two seeds that is over after one chunk."""

        seeds, done, over = (3, 5), 5, False
        curve = {"cost": np.array([[[1.0]], [[2.0]]])}  # noqa: RUF012

        def advance(self, program: Any) -> None:
            self.over = True

        def finish(self, out: Any) -> list[Any]:
            return []

    told = []
    run: Any = Halved()
    trainings._train(run, None, None, lambda *told_of: told.append(told_of), Event())
    assert [(seed, done, float(row["cost"][0])) for seed, done, row in told] == [
        (3, 5, 1.0),
        (5, 5, 2.0),
    ]


def test_a_checkpoint_holds_the_policy_and_where_it_comes_from(
    program: Any, tmp_path: Path
) -> None:
    (policy,) = through(program, trainings.Run.start(small(), (0,))).finish(tmp_path)
    loaded = llmgym.agents.load(tmp_path / "agent-0.npz")
    assert loaded == policy and hash(loaded) == hash(policy)
    assert loaded.choice == SMALL.choice and loaded.label == "agent-0"
    assert loaded.header["seed"] == 0 and loaded.header["iterations"] == 10
    assert llmgym.evaluation.policies.resolve(str(tmp_path / "agent-0.npz")) is loaded
    with np.load(tmp_path / "agent-0.npz", allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)
    curve = np.genfromtxt(tmp_path / "curve-0.csv", delimiter=",", names=True)
    assert curve["steps"][-1] == 1280 and (curve["cost_1"] > 0).all()


def test_a_folder_of_another_run_is_refused(program: Any, tmp_path: Path) -> None:
    run = trainings.Run.start(small(), (0,))
    run.advance(program)
    run.save(tmp_path / "training-0.npz")
    for other in (small(seeds=(1,)), small(patience=3)):
        with pytest.raises(LLMGymError, match="other settings, scenarios or versions"):
            trainings.Run.start(other, other.seeds).resume(tmp_path / "training-0.npz")
    with pytest.raises(LLMGymError, match="holds no trained policy"):
        llmgym.agents.load(tmp_path / "training-0.npz")


def test_files_that_hold_no_policy_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LLMGymError, match="There is no checkpoint"):
        llmgym.agents.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no zip file")
    with pytest.raises(LLMGymError, match="is not a checkpoint of llmgym, or is damaged"):
        llmgym.agents.load(tmp_path / "text.npz")
    np.savez(tmp_path / "pickled.npz", header=np.array([{"format": 1}], object))
    with pytest.raises(LLMGymError, match="is not a checkpoint of llmgym, or is damaged"):
        llmgym.agents.load(tmp_path / "pickled.npz")
    checkpoint.write_arrays(tmp_path / "old.npz", {}, {"format": 0})
    with pytest.raises(LLMGymError, match="format 1"):
        llmgym.agents.load(tmp_path / "old.npz")
    with pytest.raises(LLMGymError, match="Unknown trained policy 'ppo-latensy'"):
        llmgym.agents.load("ppo-latensy")


def test_a_run_stops_where_costs_no_longer_fall() -> None:
    falling = np.exp(-np.arange(100) / 10)[:, None] * np.array([1.0, 50.0])
    assert not trainings.stalled(falling, 5)
    flat = np.concatenate([falling[:40], np.repeat(falling[39:40], 99, axis=0)])
    assert trainings.stalled(flat, 10) and not trainings.stalled(flat[:45], 10)


def test_bad_runs_are_refused() -> None:
    latency = llmgym.scenario("latency")
    for scenarios, settings, message in [
        ((), PPO(), "at least one scenario"),
        ((llmgym.scenario("rybko-stolyar"),), PPO(), "is a network of engines"),
        ((llmgym.scenario("bursty"),), PPO(), "control=True is for Poisson arrivals"),
    ]:
        with pytest.raises(LLMGymError, match=message):
            Training(scenarios, settings)
    with pytest.raises(LLMGymError, match="give levels=ServiceLevels"):
        PPO(late_weight=1.0)
    with pytest.raises(LLMGymError, match="not those of 'latency'"):
        Training((latency,), PPO(levels=ServiceLevels.of(llmgym.scenario("multi-tenant"))))
    with pytest.raises(LLMGymError, match="multiple of minibatches"):
        PPO(steps=10, minibatches=3)
    with pytest.raises(LLMGymError, match="give a horizon_s"):
        PPO(average_cost=False, horizon_s=None)
    with pytest.raises(LLMGymError, match="seed must be at least 0"):
        Training((latency,), seeds=(-1,))
    with pytest.raises(LLMGymError, match="warm_up must be below 1"):
        PPO(warm_up=1)
    with pytest.raises(LLMGymError, match=r"Use at most 0\.8"):
        Training((latency,), PPO(warm_up=0.81), steps=1)
    assert Training((latency,), PPO(warm_up=0.8), steps=1).iterations == 5
