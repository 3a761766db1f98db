"""Draw docs/graphs again: a picture of every shipped network of engines.

python tools/draw_graphs.py
"""

from __future__ import annotations

from pathlib import Path

from llmgym.reporting.graph import save_graph
from llmgym.scenario import library

if __name__ == "__main__":
    folder = Path(__file__).parents[1] / "docs" / "graphs"
    folder.mkdir(parents=True, exist_ok=True)
    for name in library.names():
        scenario = library.scenario(name)
        if scenario.is_network:
            save_graph(scenario, folder / f"{name}.svg")
