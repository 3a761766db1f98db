"""What the theory says about a scenario without simulating it: capacity, region, bounds."""

from llmgym.theory.bounds import (
    SarathiRate,
    best_sarathi_under_cap,
    faster_transformer_capacity,
    fluid_growth,
    pollaczek_khinchine,
    rate_bound,
    relaxation_time_s,
    resident_cap_rate,
    theorem2_capacity,
)
from llmgym.theory.capacity import Capacity, TimeShare, capacity
from llmgym.theory.region import Polygon, stability_polygon, staircase_corners

__all__ = [
    "Capacity",
    "Polygon",
    "SarathiRate",
    "TimeShare",
    "best_sarathi_under_cap",
    "capacity",
    "faster_transformer_capacity",
    "fluid_growth",
    "pollaczek_khinchine",
    "rate_bound",
    "relaxation_time_s",
    "resident_cap_rate",
    "stability_polygon",
    "staircase_corners",
    "theorem2_capacity",
]
