"""Print the lowest versions that pyproject.toml allows, as constraints for pip.

Packages without a lower bound are left to pip, which takes the newest.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

EXTRAS = ("sb3", "pettingzoo")
"""Optional packages whose lowest versions are tried too."""


def lowest(pyproject: Path) -> list[str]:
    """``name==version`` for each package that has a lower bound."""
    project = tomllib.loads(pyproject.read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in EXTRAS:
        wanted += project["optional-dependencies"][extra]
    found = (re.fullmatch(r"([\w.-]+)(?:\[.*\])?>=([\d.]+)", line) for line in wanted)
    return [f"{match[1]}=={match[2]}" for match in found if match]


if __name__ == "__main__":
    print("\n".join(lowest(Path(__file__).parents[1] / "pyproject.toml")))
