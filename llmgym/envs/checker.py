"""``check_vector_env``: does a Gymnasium vector environment keep the rules of the interface?

Gymnasium checks single environments (``gymnasium.utils.env_checker.check_env``); this is the same for
any ``gymnasium.vector.VectorEnv``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import (
    batch_space,
    concatenate,
    create_empty_array,
    is_space_dtype_shape_equiv,
    iterate,
)

from llmgym.envs.vector_actions import random_actions
from llmgym.errors import LLMGymError, check_number
