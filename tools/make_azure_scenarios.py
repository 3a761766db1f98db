"""Write the scenarios azure-conversation and azure-code from the traces that they summarise.

    python tools/make_azure_scenarios.py FOLDER_WITH_THE_TRACES

The traces are AzureLLMInferenceTrace_conv.csv and AzureLLMInferenceTrace_code.csv of the Azure
Public Dataset (2023, CC-BY-4.0, https://github.com/Azure/AzurePublicDataset).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import nnls
from scipy.stats import spearmanr

from llmgym.arrivals import GammaRenewal
from llmgym.batch_time import CODELLAMA_34B_A100
from llmgym.lengths import Empirical
from llmgym.scenario import Scenario
from llmgym.scenario_files import save
from llmgym.traces import read_trace, summary
from llmgym.workload import Replay, Workload

POINTS = 129
TOKEN_BUDGET = 2048

# Trace file, what it holds, and slots: bursts of the code trace (CV 13) hold thousands of requests.
TRACES = {
    "azure-conversation": ("AzureLLMInferenceTrace_conv.csv", "Conversation", 1024),
    "azure-code": ("AzureLLMInferenceTrace_code.csv", "Code completion", 4096),
}


def fit_quantiles(tokens: Sequence[int] | np.ndarray, points: int = POINTS) -> Empirical:
    """The quantile table nearest to the sorted sample (least squares, not decreasing).

    It keeps the sample's mean. A table of plain quantiles does not: its last piece, straight up to
    the maximum, lifts the mean output of the code trace from 27.9 to 32.4 tokens at 129 points.
    """
    sample = np.sort(np.asarray(tokens, float))
    position = (np.arange(sample.size) + 0.5) / sample.size * (points - 1)
    hats = np.maximum(1 - np.abs(position[:, None] - np.arange(points)), 0)
    # Unknowns are the first value above the minimum and the rises from there: none is negative.
    rises, _ = nnls(hats @ np.tril(np.ones((points, points))), sample - sample[0])
    return Empirical((sample[0] + np.cumsum(rises)).round(1).tolist())


def make_scenario(name: str, trace: Replay, what: str, slots: int) -> Scenario:
    """The scenario whose lengths and arrivals summarise the trace."""
    facts = summary(trace)
    arrivals = GammaRenewal(round(trace.rate_per_s, 3), cv=round(float(facts["gap_cv"] or 1), 3))
    prefill, decode = fit_quantiles(trace.prefill_tokens), fit_quantiles(trace.decode_tokens)
    rank = spearmanr(trace.prefill_tokens, trace.decode_tokens).statistic
    capacity = TOKEN_BUDGET / CODELLAMA_34B_A100.ms(TOKEN_BUDGET) * 1000
    asked = arrivals.rate_per_s * (prefill.mean + decode.mean)
    return Scenario.single_engine(
        CODELLAMA_34B_A100,
        TOKEN_BUDGET,
        Workload(arrivals, prefill, decode),
        slots=slots,
        name=name,
        description=(
            f"{what}: {len(trace)} requests of one hour. Prompts and outputs come from quantile "
            "tables that keep the trace's means and shorten its few longest requests; they are "
            f"drawn independently (rank correlation in the trace: {rank:.2f}). Arrivals are a "
            "Gamma renewal process with its rate and CV of gaps; replay the trace for its true "
            f"pattern. It asks for {asked:.0f} tokens/s, this engine serves {capacity:.0f}: choose "
            "a load below 1."
        ),
        source=(
            "Lengths and arrivals: Azure Public Dataset 2023 (CC-BY-4.0), summarised. "
            "Batch time: arXiv:2504.07347v3, section 3."
        ),
    )


def main(arguments: list[str] | None = None) -> None:
    """Read both traces and write both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("traces", type=Path, help="folder that holds the two CSV files")
    parser.add_argument(
        "--out", type=Path, help="folder to write to (default: the shipped scenarios)"
    )
    options = parser.parse_args(arguments)
    out = options.out or Path(__file__).parents[1] / "llmgym" / "scenarios"
    for name, (file, what, slots) in TRACES.items():
        trace = read_trace(options.traces / file, "azure")
        save(make_scenario(name, trace, what, slots), out / f"{name}.toml")


if __name__ == "__main__":
    main()
