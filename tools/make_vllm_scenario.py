"""Write the scenario rtx4090-llama-3.1-8b from the run of vLLM that it summarises.

    python tools/make_vllm_scenario.py FOLDER_OF_THE_RUN

The run, 300 ShareGPT requests on one RTX 4090, is one of the examples of LLMServingSim (MIT,
https://github.com/casys-kaist/LLMServingSim): its requests.jsonl and meta.json.
"""

from __future__ import annotations

from scenario_tool import arguments
from scipy.stats import spearmanr

from llmgym.calibration.validate import VLLMRun, read_vllm_run
from llmgym.scenario.arrivals import Poisson
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.toml_writer import save
from llmgym.scenario.workload import Workload
from llmgym.traces.fits import fit_quantiles

NAME = "rtx4090-llama-3.1-8b"
POINTS = 65
SLOTS = 512
SHARE = 0.75
"""Arrival rate as a share of the requests per second that the overloaded engine finished."""


def make_scenario(run: VLLMRun) -> Scenario:
    """The engine of the run, with Poisson arrivals and the lengths of its requests."""
    replay = run.replay
    lengths = (replay.prefill_tokens, replay.decode_tokens)
    prefill, decode = (fit_quantiles(tokens, POINTS) for tokens in lengths)
    end_s = (replay.arrival_s + run.measured.e2e_ms / 1000).max()
    finished = len(replay) / float(end_s)
    arrivals = Poisson(round(SHARE * finished, 2))
    return run.scenario(NAME).override(
        workload=(Workload(arrivals, prefill, decode),),
        slots=SLOTS,
        name=NAME,
        description=(
            f"Llama-3.1-8B under vLLM on one RTX 4090, whose KV memory holds {run.kv_cache.tokens:,} "
            f"tokens: for use with the policy {run.policy.name}. Prompts and outputs come from "
            f"quantile tables of {len(replay)} ShareGPT requests that keep their means; they are "
            "drawn independently (rank correlation among the requests: "
            f"{spearmanr(*lengths).statistic:.2f}). Arrivals are Poisson at {SHARE:.0%} of the "
            f"{finished:.2f} requests that the recorded run, overloaded and with preemptions, "
            "finished in a second."
        ),
        source=(
            "Lengths and engine: examples of LLMServingSim (MIT), summarised. Batch time: fitted to "
            "profiles of LLMServingSim (MIT)."
        ),
    )


def main(given: list[str] | None = None) -> None:
    """Read the run and write the file."""
    folder, out = arguments(__doc__, "requests.jsonl and meta.json", given)
    save(make_scenario(read_vllm_run(folder)), out / f"{NAME}.toml")


if __name__ == "__main__":
    main()
