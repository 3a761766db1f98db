"""Draw two policies side by side on the same arrivals, as a GIF.

python tools/animate.py [--policy vllm --policy sarathi] [--load 0.85] [--out docs/side-by-side.gif]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.colors import ListedColormap

import llmgym
from llmgym.reporting import charts
from llmgym.reporting.palette import style
from llmgym.theory.capacity import at_load

ROOT = Path(__file__).parents[1]
COLUMNS, ROWS = 60, 32
"""Size of the crowd; one square is one request."""


def present(scenario: llmgym.Scenario, policy: str, seconds: np.ndarray, seed: int) -> np.ndarray:
    """Requests in the system at each of these times."""
    run = llmgym.simulate(scenario, policy, duration_s=seconds[-1] + 1, seed=seed, record=False)
    at = np.searchsorted(run.trajectory.time_ms, 1000 * seconds, side="right") - 1
    return run.trajectory.in_system.to_numpy()[at]


def crowd(count: int) -> np.ndarray:
    """The squares of ``count`` requests, filled from the bottom row by row."""
    return (np.arange(COLUMNS * ROWS) < count).reshape(ROWS, COLUMNS).astype(float)


def animate(
    scenario: llmgym.Scenario,
    policies: tuple[str, ...],
    seconds: np.ndarray,
    seed: int,
    out: Path,
) -> None:
    """Write the GIF: a crowd for each policy above, and the number present over time below."""
    plt = charts.plt
    counts = {name: present(scenario, name, seconds, seed) for name in policies}
    figure = plt.figure(figsize=(7.2, 4.6), dpi=100, layout="constrained")
    grid = figure.add_gridspec(2, len(policies), height_ratios=(1.15, 1))
    images, titles, lines = [], [], []
    below = figure.add_subplot(grid[1, :])
    for column, name in enumerate(policies):
        axis = figure.add_subplot(grid[0, column])
        tints = ListedColormap(["#F2F2F2", style(name).colour])
        mesh = axis.pcolormesh(crowd(0), cmap=tints, vmin=0, vmax=1, edgecolors="white", lw=0.4)
        axis.set_axis_off()
        images.append(mesh)
        titles.append(axis.set_title("", fontsize=11))
        (line,) = below.plot(
            [], [], color=style(name).colour, ls=style(name).line, lw=2, label=name
        )
        lines.append(line)
    below.set_xlim(0, seconds[-1] / 60)
    below.set_ylim(0, 1.08 * max(c.max() for c in counts.values()))
    below.set_xlabel("minutes")
    below.set_ylabel("requests present")
    below.legend(frameon=False, loc="upper left")
    below.grid(alpha=0.3)

    def show(frame: int) -> None:
        parts = zip(policies, images, titles, lines, strict=True)
        for name, image, title, line in parts:
            image.set_array(crowd(int(counts[name][frame])))
            title.set_text(f"{name}: {counts[name][frame]:.0f} requests")
            line.set_data(seconds[: frame + 1] / 60, counts[name][: frame + 1])

    show(len(seconds) - 1)
    figure.canvas.draw()  # the layout of the widest titles holds for all frames
    figure.set_layout_engine("none")
    hold = [*range(len(seconds)), *[len(seconds) - 1] * 12]
    out.parent.mkdir(parents=True, exist_ok=True)
    FuncAnimation(figure, show, frames=hold).save(out, PillowWriter(fps=10))


def main() -> None:
    """Read the options and write the GIF."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scenario", default="paper-figure-1")
    parser.add_argument("--policy", action="append", help="two of them")
    parser.add_argument("--load", type=float, default=0.85)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--frames", type=int, default=72)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "side-by-side.gif")
    chosen = parser.parse_args()
    scenario = at_load(llmgym.scenario(chosen.scenario, slots=2048), chosen.load)
    seconds = np.linspace(0, 60 * chosen.minutes, chosen.frames)
    policies = tuple(chosen.policy or ("vllm", "sarathi"))
    animate(scenario, policies, seconds, chosen.seed, chosen.out)
    print(f"Wrote {chosen.out}, {chosen.out.stat().st_size / 1e6:.2f} MB.")


if __name__ == "__main__":
    main()
