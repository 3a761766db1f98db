"""Batch times by name: published ones, and ones fitted to published profiles of GPUs.

Where a batch time is asked for by name, in a scenario file or in ``llmgym.scenario(name,
batch_time="rtx4090-llama-3.1-8b")``, it is looked up here. The rooflines are least-squares fits to
mixed batches of up to 2,048 tokens, composed from profiled kernels. Each says what its attention
terms come from: a profiled attention kernel, or a computation from bytes and operations. TP is the
number of GPUs that share the model.
"""

from __future__ import annotations

from llmgym.scenario.batch_time import CODELLAMA_34B_A100, LLAMA_3_70B, BatchTime, Roofline

PRESETS: dict[str, BatchTime] = {
    # arXiv:2504.07347v3, section 3: A100-80GB, TP 1. A function of the tokens alone, no attention.
    "a100-codellama-34b": CODELLAMA_34B_A100,
    # arXiv:2504.07347v1. A function of the tokens alone, no attention.
    "llama-3-70b": LLAMA_3_70B,
    # Profiles of LLMServingSim (MIT), TP 1; attention measured, mixed batches included. R^2 0.998.
    "rtx4090-llama-3.1-8b": Roofline(16.6, 0.0909, 96, 0.221, 4.19),
    # Profiles of LLMServingSim (MIT), TP 1; attention measured, mixed batches included. R^2 0.956.
    "rtxpro6000-llama-3.1-8b": Roofline(7.2, 0.0409, 96, 0.144, 1.69),
    # Profiles of Vidur (MIT), A100-80GB; attention measured. R^2 0.999.
    "a100-codellama-34b-tp2": Roofline(30.9, 0.1721, 96, 0.064, 4.03),
    # Profiles of Vidur (MIT), A100-80GB; attention measured. R^2 0.999.
    "a100-llama-2-70b-tp2": Roofline(56.7, 0.3389, 64, 0.145, 7.1),
    # Profiles of Vidur (MIT), TP 1; attention computed with the bandwidth and rate of the A100's
    # profiled kernel (1.64 TB/s, 167 TFLOP/s), not measured. R^2 0.999.
    "a100-llama-3-8b": Roofline(11.0, 0.0676, 64, 0.080, 3.25),
    # As the one before: attention computed, not measured. R^2 0.999.
    "a100-llama-2-7b": Roofline(9.8, 0.0619, 64, 0.321, 3.29),
    # Profiles of Vidur (MIT); attention computed from assumed shares of the H100's peak bandwidth
    # (80 %) and rate (53 %), not measured. The least certain of them. R^2 0.996.
    "h100-llama-2-70b-tp4": Roofline(23.3, 0.0616, 96, 0.030, 1.16),
}
