"""What render shows: text against made-up facts, and images that move with the engine."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from env_samples import SCENARIO, settings, single_env

from llmgym.envs.rendering.picture import DECODE, PREFILL
from llmgym.envs.rendering.renderer import Renderer
from llmgym.envs.rendering.text import Frame, Ran, round_up, text_panel


def frame(**changes: Any) -> Frame:
    """Three requests: one that decodes, one with half its prompt left, one not begun."""
    facts: dict[str, Any] = {
        "scenario": SCENARIO,
        "load": 0.8,
        "time_s": 1.25,
        "arrival_rate": 10.04,
        "completed": 1234,
        "dropped": 0,
        "prompt": np.array([60, 128, 40]),
        "prompt_left": np.array([0, 64, 40]),
        "generated": np.array([7, 0, 0]),
        "waited_s": np.array([0.5, 0.3, 0.125]),
        "in_batch": np.array([True, True, False]),
        "history": [Ran(1.2, 0.03, 0, 16, 2), Ran(1.25, 0.045, 96, 32, 3)],
    }
    return Frame(**(facts | changes))


def test_text_tells_what_there_is() -> None:
    lines = text_panel(frame()).splitlines()
    assert lines[0] == "small | load 0.80 | t = 1.25 s"
    assert lines[1] == (
        "arrivals 10.0/s | in system 3 | prompt tokens left 104, oldest 0.3 s | completed 1,234"
    )
    # 32 + 96 tokens fill two of four tiles of 64; a tile is 20 columns wide.
    full, half = "p" * 20, "d" * 10 + "p" * 10
    assert lines[3] == f"batch   [{half}|{full}|{'.' * 20}|{'.' * 20}]"
    assert lines[4].strip() == "45.00 ms: decode 32 + prefill 96 = 128 of 256 tokens, 2 of 4 tiles"
    assert lines[5] == "recent  ▁▄"
    assert lines[7].startswith("queue   3 requests in order of arrival")
    assert lines[8].strip() == "d█▅"
    assert lines[9] == "        ^^"
    assert lines[10] == "prompts 2 to go, the first:"
    assert lines[11].split() == [
        "#2", "[pppppppppp..........]", "64", "of", "128", "tokens", "left,", "waited", "0.30", "s", "^",
    ]  # fmt: skip
    assert "dropped" not in text_panel(frame()) and "dropped 5" in text_panel(frame(dropped=5))


def test_text_of_an_empty_an_idle_and_a_crowded_engine() -> None:
    none = np.zeros(0, int)
    empty = {"prompt": none, "prompt_left": none, "generated": none, "waited_s": none / 1.0,
             "in_batch": none.astype(bool), "history": []}  # fmt: skip
    assert "no batch yet" in text_panel(frame(**empty))
    assert "idle for 30.00 ms" in text_panel(frame(history=[Ran(1.25, 0.03, 0, 0, 0)]))
    many = np.full(1000, 10)
    crowd = text_panel(frame(prompt=many, prompt_left=many, generated=0 * many,
                             waited_s=many / 10, in_batch=many < 0))  # fmt: skip
    assert max(map(len, crowd.splitlines())) <= 100 and len(crowd.splitlines()) < 30
    assert "and 656 more" in crowd
    assert "all at once" in text_panel(frame(load=np.inf))


def count(image: np.ndarray, color: str) -> int:
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(image.astype(int) - rgb).sum(axis=-1) < 12).sum())


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(single_env("tiles").core, "rgb_array")


def test_images_show_the_phases_in_their_colours(renderer: Renderer) -> None:
    prompt = np.array([60, 60])
    quiet = {"prompt": prompt, "waited_s": prompt / 60.0, "in_batch": np.array([True, True])}
    waiting = frame(prompt_left=prompt, generated=0 * prompt, history=[Ran(1.25, 0.02, 64, 0, 2)],
                    **quiet)  # fmt: skip
    decoding = frame(prompt_left=0 * prompt, generated=prompt, history=[Ran(1.25, 0.02, 0, 64, 2)],
                     **quiet)  # fmt: skip
    first, second = renderer._draw(waiting), renderer._draw(decoding)
    assert first.shape == (480, 800, 3) and first.dtype == np.uint8
    # All that differs is the phase; each legend keeps a few pixels of its colour.
    assert count(first, PREFILL) > 10 * count(first, DECODE) > 0
    assert count(second, DECODE) > 10 * count(second, PREFILL) > 0
    np.testing.assert_array_equal(renderer._draw(waiting), first)  # nothing of the last frame stays


def test_an_image_is_of_the_engine_now(renderer: Renderer) -> None:
    env = single_env("tiles")
    env.reset(seed=0)
    renderer.reset()
    images = [renderer.render(env.state)]
    for _ in range(12):
        renderer.record(env.step(3)[4])
        images.append(renderer.render(env.state))
        shown = renderer.frame(env.state)
        engine = env.state.engine
        assert shown.prompt.size == int(engine.present)
        assert shown.completed == int(engine.totals.completed)
        assert shown.prompt_left.sum() + shown.in_batch.sum() <= int(engine.backlog.to_numpy())
        ran = shown.batch
        assert ran is not None and ran.end_s == pytest.approx(shown.time_s)
    assert all((one != two).any() for one, two in itertools.pairwise(images))
    renderer.reset()
    assert renderer.frame(env.state).batch is None


def test_limits_of_axes_seldom_jump() -> None:
    assert [round_up(v) for v in (0, 1, 1.2, 101, 150, 151, 999)] == [
        1,
        1,
        1.5,
        150,
        150,
        200,
        1000,
    ]
    assert len({round_up(v) for v in range(100, 1001)}) == 7


def test_without_a_mode_nothing_is_drawn_or_kept() -> None:
    env = single_env("tiles")
    env.reset(seed=0)
    env.step(0)
    assert env._renderer is None and env.render() is None


def test_a_video_of_twenty_frames(tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    env = gym.make("llmgym/Engine-v0", render_mode="rgb_array", **settings("tiles"))
    env = gym.wrappers.RecordVideo(
        env, str(tmp_path / "video"), video_length=20, disable_logger=True
    )
    env.reset(seed=0)
    for _ in range(25):
        env.step(3)
    env.close()
    (video,) = (tmp_path / "video").glob("*.mp4")
    assert video.stat().st_size > 5000


def test_ansi_through_gym_make() -> None:
    env = gym.make("llmgym/Engine-v0", render_mode="ansi", **settings("tiles"))
    env.reset(seed=0)
    assert "no batch yet" in env.render()
    for _ in range(10):
        _, _, _, _, info = env.step(3)
    text = env.render()
    assert f"decode {info['decode_tokens']} + prefill {info['prefill_tokens']}" in text
    assert "load 0.80" in text and "small" in text
