"""What the theory says about a scenario without simulating it: capacity, bounds, flow control, networks."""

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
from llmgym.theory.capacity import Capacity, EngineLoad, TimeShare, capacity
from llmgym.theory.flow_control import FlowControl, flow_control, mean_waiting
from llmgym.theory.queueing_networks import (
    CyclicRoutingWarning,
    VirtualStation,
    check_routing,
    is_cyclic,
    traffic_equations,
    virtual_station,
    visit_rates,
)
from llmgym.theory.region import Polygon, stability_polygon, staircase_corners

__all__ = [
    "Capacity",
    "CyclicRoutingWarning",
    "EngineLoad",
    "FlowControl",
    "Polygon",
    "SarathiRate",
    "TimeShare",
    "VirtualStation",
    "best_sarathi_under_cap",
    "capacity",
    "check_routing",
    "faster_transformer_capacity",
    "flow_control",
    "fluid_growth",
    "is_cyclic",
    "mean_waiting",
    "pollaczek_khinchine",
    "rate_bound",
    "relaxation_time_s",
    "resident_cap_rate",
    "stability_polygon",
    "staircase_corners",
    "theorem2_capacity",
    "traffic_equations",
    "virtual_station",
    "visit_rates",
]
