"""Write the scenarios that summarise public traces.

    python tools/make_trace_scenarios.py FOLDER_WITH_THE_TRACES

The traces are AzureLLMInferenceTrace_conv.csv and AzureLLMInferenceTrace_code.csv of the Azure Public
Dataset (2023, CC-BY-4.0, https://github.com/Azure/AzurePublicDataset), and
mooncake_conversation_trace.jsonl of Mooncake (Apache-2.0, https://github.com/kvcache-ai/Mooncake).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from scenario_tool import arguments

from llmgym.scenario.arrivals import Poisson
from llmgym.scenario.batch_time import CODELLAMA_34B_A100
from llmgym.scenario.batch_time_library import PRESETS
from llmgym.scenario.engine import Engine
from llmgym.scenario.kv_cache import KVCache
from llmgym.scenario.replay import Replay
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.toml_writer import save
from llmgym.scenario.workload import Workload
from llmgym.traces.arrival_fits import fit_arrivals
from llmgym.traces.fits import fit_scenario
from llmgym.traces.readers import read_trace

CONVERSATION = "AzureLLMInferenceTrace_conv.csv"
CODE = "AzureLLMInferenceTrace_code.csv"
MOONCAKE = "mooncake_conversation_trace.jsonl"
SOURCES = {
    CONVERSATION: "Azure Public Dataset 2023 (CC-BY-4.0)",
    CODE: "Azure Public Dataset 2023 (CC-BY-4.0)",
    MOONCAKE: "Mooncake conversation trace (Apache-2.0)",
}


@dataclass(frozen=True)
class GPUMemory:
    """How many blocks of KV memory a GPU holds beside the weights."""

    gpus: str
    memory_gb: float
    utilization: float
    parameters: float
    layers: int
    kv_heads: int = 8
    head_size: int = 128

    @property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of a token, 16 bits each."""
        return 2 * self.layers * self.kv_heads * self.head_size * 2

    @property
    def cache(self) -> KVCache:
        """The blocks that the weights, 16 bits each, leave."""
        weights_gb = 2 * self.parameters / 1e9
        return KVCache.left_over(self.memory_gb, weights_gb, self.token_bytes, self.utilization)

    def __str__(self) -> str:
        return (
            f"KV memory: {self.utilization:g} of the {self.memory_gb:g} GB of {self.gpus} less "
            f"{2 * self.parameters / 1e9:.2f} GB of weights, at 2 * {self.layers} layers * "
            f"{self.kv_heads} KV heads * {self.head_size} * 2 bytes = {self.token_bytes:,} bytes a "
            f"token: {self.cache.blocks:,} blocks of {self.cache.block_size}."
        )


LLAMA_3_8B = {"parameters": 8_030_261_248, "layers": 32}
LLAMA_2_70B = {"parameters": 68_976_648_192, "layers": 80}
CODELLAMA_34B = {"parameters": 33_743_970_304, "layers": 48}


@dataclass(frozen=True)
class Summary:
    """A scenario that summarises a trace on an engine with or without KV memory.

    ``kind`` is the kind of the arrivals; with ``rate_per_s`` they are rescaled to that rate.
    """

    trace: str
    what: str
    batch_time: str
    kind: str
    slots: int
    memory: GPUMemory | None = None
    note: str = ""
    rate_per_s: float | None = None


BATCH_TIMES = {
    "a100-codellama-34b": "arXiv:2504.07347v3, section 3",
    "a100-llama-3-8b": "fitted to profiles of Vidur (MIT), attention computed",
    "a100-llama-2-70b-tp2": "fitted to profiles of Vidur (MIT)",
    "rtxpro6000-llama-3.1-8b": "fitted to profiles of LLMServingSim (MIT)",
}
SUMMARIES = {
    "azure-conversation": Summary(CONVERSATION, "Conversation", "a100-codellama-34b", "day", 1024),
    # Bursts hold thousands of requests.
    "azure-code": Summary(CODE, "Code completion", "a100-codellama-34b", "bursts", 4096),
    "a100-llama-3-8b": Summary(
        CONVERSATION,
        "Conversation on Llama-3-8B and one A100-80GB",
        "a100-llama-3-8b",
        "day",
        1024,
        GPUMemory("an A100", 80, 0.9, **LLAMA_3_8B),
    ),
    "a100-llama-70b": Summary(
        CONVERSATION,
        "Conversation on Llama-2-70B and two A100-80GB (tensor parallel)",
        "a100-llama-2-70b-tp2",
        "poisson",
        1024,
        GPUMemory("two A100", 160, 0.95, **LLAMA_2_70B),
        rate_per_s=1.0,
    ),
    "long-context": Summary(
        MOONCAKE,
        "Conversation with long contexts on Llama-3.1-8B and one RTX PRO 6000",
        "rtxpro6000-llama-3.1-8b",
        "day",
        512,
        GPUMemory("an RTX PRO 6000", 96, 0.9, **LLAMA_3_8B),
        "The batch time was fitted to batches with shorter contexts. Prefixes are not shared.",
        0.6,
    ),
}


def make_scenario(name: str, summary: Summary, trace: Replay) -> Scenario:
    """The engine of a summary with arrivals and lengths of the trace."""
    limits = Engine(PRESETS[summary.batch_time], 2048)
    if summary.memory is not None:
        limits = replace(
            limits,
            max_num_seqs=256,
            seq_limit="resident",
            kv_cache=summary.memory.cache,
            first_token="prefill",
        )
    engine = Scenario((limits,), trace, slots=summary.slots)
    arrivals = fit_arrivals(trace, summary.kind)
    if summary.rate_per_s is not None:
        arrivals = arrivals.at_rate(summary.rate_per_s)
    source = (
        f"Lengths and arrivals: {SOURCES[summary.trace]}, summarised. "
        f"Batch time: {BATCH_TIMES[summary.batch_time]}."
    )
    found = fit_scenario(trace, arrivals, engine, name, summary.what, source)
    texts = (found.description, str(summary.memory or ""), summary.note)
    return replace(found, description=" ".join(text for text in texts if text))


def paper_gpu_memory() -> Scenario:
    """The engine of arXiv:2504.07347 with the KV memory that one GPU has for it."""
    memory = GPUMemory("an A100", 80, 0.9, **CODELLAMA_34B)
    return Scenario.single_engine(
        CODELLAMA_34B_A100,
        512,
        Workload(Poisson(10.4), 129, 112),
        kv_cache=memory.cache,
        slots=1024,
        name="paper-gpu-memory",
        description=(
            "The engine and the requests of paper-figure-1 with the KV memory that CodeLlama-34B "
            f"leaves on one A100-80GB, at 10.4 requests per second. {memory} They hold "
            f"{memory.cache.tokens:,} tokens, those of {memory.cache.blocks // 16} requests at their "
            "end: memory binds before time does."
        ),
        source="Batch time and lengths: arXiv:2504.07347v3, section 3 and Figure 1.",
    )


def main(given: list[str] | None = None) -> None:
    """Read the traces and write the files."""
    folder, out = arguments(__doc__, "the three traces", given)
    traces = {file: read_trace(folder / file) for file in SOURCES}
    for name, summary in SUMMARIES.items():
        save(make_scenario(name, summary, traces[summary.trace]), out / f"{name}.toml")
    save(paper_gpu_memory(), out / "paper-gpu-memory.toml")


if __name__ == "__main__":
    main()
