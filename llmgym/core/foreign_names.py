"""Names of settings in vLLM, SGLang and other servers, and what they are called here."""

from __future__ import annotations

BUDGET = "token_budget, the most tokens in one batch"
SEATS = 'max_num_seqs, with seq_limit = "resident" to count as a server does'
MEMORY = "kv_cache of the engine: its number of blocks (KVCache.left_over finds it)"
LONGEST = "set by the lengths of the requests (prefill and decode)"
HARDWARE = "part of batch_time: take or calibrate one of that set-up"
RATE = "arrival_rate_per_s, or a load"
INPUT, OUTPUT = "prefill_tokens", "decode_tokens"
CHUNKED = "up to the policy: sarathi and vllm_v1 split prompts, vllm and orca do not"
ROUTER = "router, how calls choose among replicas"

ELSEWHERE = {
    "max_num_batched_tokens": BUDGET,
    "max_batched_tokens": BUDGET,
    "max_num_tokens": BUDGET,
    "max_batch_prefill_tokens": BUDGET,
    "max_batch_total_tokens": BUDGET,
    "chunked_prefill_size": BUDGET,
    "max_prefill_tokens": BUDGET,
    "chunk_size": BUDGET,
    "max_num_seqs": "max_num_seqs of the engine, which counts the requests of each batch unless"
    ' seq_limit is "resident"',
    "max_running_requests": SEATS,
    "max_batch_size": SEATS,
    "max_num_requests": SEATS,
    "max_concurrency": 'max_num_seqs with seq_limit = "resident" where the others wait; slots where they'
    " are turned away",
    "max_concurrent_requests": "slots, the most requests in the system; more are turned away",
    "max_queued_requests": "slots, the most requests in the system; more are turned away",
    "max_queue_size": "slots, the most requests in the system; more are turned away",
    "gpu_memory_utilization": MEMORY,
    "mem_fraction_static": MEMORY,
    "kv_cache_memory_bytes": MEMORY,
    "num_gpu_blocks": MEMORY,
    "num_gpu_blocks_override": MEMORY,
    "max_total_tokens": MEMORY,
    "block_size": "block_size of kv_cache",
    "page_size": "block_size of kv_cache",
    "enable_prefix_caching": "prefix_caching of kv_cache",
    "disable_radix_cache": "prefix_caching of kv_cache",
    "swap_space": "swap_tokens_per_ms of kv_cache",
    "preemption_mode": "swap_tokens_per_ms of kv_cache; None recomputes",
    "enable_chunked_prefill": CHUNKED,
    "enable_mixed_chunk": CHUNKED,
    "long_prefill_token_threshold": "long_prefill_cap of the policy vllm_v1",
    "scheduling_policy": "the policy: vllm_v1, vllm_v1_priority and others of `llmgym list`",
    "schedule_policy": "the policy: vllm_v1, vllm_v1_priority and others of `llmgym list`",
    "max_model_len": LONGEST,
    "context_length": LONGEST,
    "max_seq_len": LONGEST,
    "tensor_parallel_size": HARDWARE,
    "tp_size": HARDWARE,
    "pipeline_parallel_size": HARDWARE,
    "pp_size": HARDWARE,
    "quantization": HARDWARE,
    "model": HARDWARE,
    "data_parallel_size": "replicas",
    "dp_size": "replicas",
    "load_balance_method": ROUTER,
    "routing_logic": ROUTER,
    "request_rate": RATE,
    "qps": RATE,
    "burstiness": 'arrivals of kind "gamma", which have a cv',
    "num_prompts": "duration_s, or arrivals of a benchmark",
    "num_requests": "duration_s, or arrivals of a benchmark",
    "input_len": INPUT,
    "random_input_len": INPUT,
    "prompt_tokens": INPUT,
    "output_len": OUTPUT,
    "random_output_len": OUTPUT,
    "max_tokens": OUTPUT,
    "max_new_tokens": OUTPUT,
    "ttft": "ttft_ms",
    "tpot": "tpot_ms",
    "itl": "tpot_ms",
    "e2el": "e2e_ms",
    "dataset_path": "trace",
}
"""By the name elsewhere, in lower case with underscores: what to use here."""


def here(name: object) -> str:
    """What a name from another server is called here; empty where it is none."""
    return ELSEWHERE.get(str(name).strip().lstrip("-").lower().replace("-", "_"), "")
