"""Published scheduling policies, one file each, readable beside the paper.

A policy is called as ``policy(key, view) -> Batch``. ``make("sarathi", token_budget=128)`` makes one by
name; ``names()`` lists them.
"""

from __future__ import annotations

from typing import Any

from llmgym.baselines.always_full import AlwaysFull
from llmgym.baselines.edf import EDF
from llmgym.baselines.exclusive_batching import ExclusiveBatching
from llmgym.baselines.exclusive_batching_plus import ExclusiveBatchingPlus
from llmgym.baselines.faster_transformer import FasterTransformer
from llmgym.baselines.flow_control import FlowControl
from llmgym.baselines.flow_control_eviction import FlowControlEviction
from llmgym.baselines.flush import Flush
from llmgym.baselines.global_fcfs import GlobalFCFS
from llmgym.baselines.greedy_rate import GreedyRate
from llmgym.baselines.idle import Idle
from llmgym.baselines.index import Index
from llmgym.baselines.k_fcfs import KFCFS
from llmgym.baselines.las import LAS
from llmgym.baselines.llf import LLF
from llmgym.baselines.max_pressure import MaxPressure, TokenPressure
from llmgym.baselines.mc_sf import MCSF
from llmgym.baselines.mlfq import SkipJoinMLFQ
from llmgym.baselines.nested_wait import NestedWAIT
from llmgym.baselines.orca import Orca
from llmgym.baselines.policy import Policy
from llmgym.baselines.priority import (
    ClassPriority,
    FirstBufferFirstServed,
    LastBufferFirstServed,
    LongestQueue,
    LongestWorkload,
    RoundRobin,
)
from llmgym.baselines.rad import RAD
from llmgym.baselines.random_feasible import RandomFeasible
from llmgym.baselines.registry import POLICIES, make, names
from llmgym.baselines.sarathi import SarathiServe
from llmgym.baselines.slai import SLAI
from llmgym.baselines.spf import ShortestPrefillFirst
from llmgym.baselines.srpt import SRPT
from llmgym.baselines.tile_align import TileAlign
from llmgym.baselines.vllm import VanillaVLLM
from llmgym.baselines.vllm_v1 import VLLMV1
from llmgym.baselines.vllm_v1_priority import VLLMV1Priority
from llmgym.baselines.vtc import VTC
from llmgym.baselines.wait import WAIT
from llmgym.core.errors import LLMGymError, unknown

POLICIES |= {
    policy.name: policy
    for policy in (
        FasterTransformer,
        VanillaVLLM,
        Orca,
        SarathiServe,
        AlwaysFull,
        GreedyRate,
        TileAlign,
        Flush,
        Index,
        KFCFS,
        VLLMV1,
        VLLMV1Priority,
        SLAI,
        RAD,
        ExclusiveBatching,
        ExclusiveBatchingPlus,
        WAIT,
        NestedWAIT,
        FlowControl,
        FlowControlEviction,
        MCSF,
        ShortestPrefillFirst,
        SRPT,
        LAS,
        EDF,
        LLF,
        SkipJoinMLFQ,
        VTC,
        GlobalFCFS,
        ClassPriority,
        FirstBufferFirstServed,
        LastBufferFirstServed,
        RoundRobin,
        LongestQueue,
        MaxPressure,
        LongestWorkload,
        TokenPressure,
        RandomFeasible,
        Idle,
    )
}

PAPER = ("faster_transformer", "vllm", "orca", "sarathi")
"""The four policies of arXiv:2504.07347, Table 1."""


__all__ = ["PAPER", "POLICIES", "Policy", "make", "names", *(p.__name__ for p in POLICIES.values())]
