"""The published corners of the stability polygon of the batch-size limit."""

from __future__ import annotations

import numpy as np

import llmgym
from llmgym.theory.region import stability_polygon


def test_the_published_corners() -> None:
    engine = llmgym.Engine(llmgym.CODELLAMA_34B_A100, 1024, max_num_seqs=100)
    expected = [(3.4707, 0), (3.1352, 0.3355), (0.6203, 2.1176), (0, 2.1390)]
    assert np.allclose(stability_polygon(engine).vertices, expected, atol=5e-5)
