"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of data that tests read but the project does not ship; skips where it is missing."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LLMGYM_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no data in {folder}; set LLMGYM_SHARED_DATA to the folder that holds it")
    return folder
