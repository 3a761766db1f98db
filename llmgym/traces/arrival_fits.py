"""Arrival processes fitted to the arrivals of a trace, and how well each of them does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from llmgym.core.checks import as_list, check_name
from llmgym.core.errors import LLMGymError
from llmgym.scenario.arrivals import FAR, MMPP, Arrivals, GammaRenewal, Poisson, RateCurve
from llmgym.scenario.replay import Replay
from llmgym.traces.burstiness import (
    Burstiness,
    burstiness,
    mmpp_shape,
    sample_times,
    spread,
    time_step,
)

DAY_S, SHORTEST_BIN_S, FEWEST_PER_BIN = 86_400.0, 60.0, 25
"""Period of the rate curve of a trace longer than a day; least seconds and fewest requests of its bins."""

RUNS, DRAWN = 20, 2**19
"""Replications of a fitted process that are compared with the trace; most gaps drawn for all of them."""

SIMPLER = 0.1
"""How far the error of a process with fewer constants may exceed the least error for it to be preferred."""


@dataclass(frozen=True)
class ArrivalFit:
    """A fitted process beside the trace.

    Attributes:
        kind: its name in FITS.
        arrivals: the process.
        constants: how many numbers were fitted.
        mean, low, high: of replications with as many requests as the trace: the mean, and the 5 % and
            95 % quantiles.
        error: root mean square of log(mean/trace) over CV and dispersions.
    """

    kind: str
    arrivals: Arrivals
    constants: int
    mean: Burstiness
    low: Burstiness
    high: Burstiness
    error: float


@dataclass(frozen=True)
class ArrivalFits:
    """All fits to one trace, first the one to use; ``step_s``: see ``time_step``."""

    trace: Burstiness
    step_s: float
    fits: tuple[ArrivalFit, ...]

    def record(self) -> dict[str, Any]:
        """All of it as plain values."""
        fits = [
            asdict(fit) | {"arrivals": {"kind": fit.arrivals.kind, **vars(fit.arrivals)}}
            for fit in self.fits
        ]
        return {"trace": asdict(self.trace), "step_s": self.step_s, "fits": fits}


def _rate(times: np.ndarray) -> float:
    return _short((len(times) - 1) / times[-1])


def _short(number: float) -> float:
    """Four digits, more than such data can tell."""
    return float(f"{number:.4g}")


def _poisson(times: np.ndarray) -> Poisson:
    """Poisson arrivals."""
    return Poisson(_rate(times))


def _gamma(times: np.ndarray) -> GammaRenewal:
    """Independent Gamma gaps with the CV of the trace."""
    return GammaRenewal(_rate(times), _short(np.clip(burstiness(times).gap_cv, 0.01, 100)))


def _bursts(times: np.ndarray) -> MMPP:
    """Bursts and lulls (MMPP) whose CV and dispersions are nearest, in logarithms."""
    wanted, rate = burstiness(times), _rate(times)
    low, high = np.log(0.1 / rate), np.log(times[-1])  # of the sojourns

    def process(x: np.ndarray) -> MMPP:
        lull, burst, odds = np.exp(x)
        return MMPP(rate, (_short(odds / (1 + odds)), 1.0), (_short(lull), _short(burst)))

    def misfit(x: np.ndarray) -> np.ndarray:
        lull, burst, odds = np.exp(x)
        found = MMPP(rate, (odds / (1 + odds), 1.0), (lull, burst))
        return np.log(mmpp_shape(found, list(wanted.dispersion)) / np.maximum(wanted.shape, 1e-3))

    bounds = [low, low, -12.0], [high, high, 6.0]
    grid = np.linspace(low, high, 6)[1:-1]
    starts = [(lull, burst, odds) for lull in grid for burst in grid for odds in (-6.0, -1.0)]
    fits = [least_squares(misfit, start, bounds=bounds) for start in starts]
    return process(min(fits, key=lambda fit: fit.cost).x)


def _day(times: np.ndarray) -> RateCurve:
    """Poisson arrivals along a rate curve: over the day, or over a trace shorter than a day."""
    return _curve(times, bursty=False)


def _curve(times: np.ndarray, bursty: bool) -> RateCurve:
    """The rate curve, in as many bins as the data support; more of them if arrivals are not ``bursty``."""
    count, span = len(times), times[-1]
    period = DAY_S if span > DAY_S else float(np.ceil(10 * span * count / (count - 1)) / 10)
    most = max(int(min(period / SHORTEST_BIN_S, count / FEWEST_PER_BIN, 1440)), 1)
    phase, periods = times % period, max(span / period, 1.0)

    def counts(bins: int) -> np.ndarray:
        return np.bincount(
            np.minimum((phase / period * bins).astype(int), bins - 1), minlength=bins
        )

    # How much more counts differ between neighbouring bins, where the curve hardly does, than Poisson counts.
    steps = np.diff(counts(most)) ** 2 / 2
    noise = max(float(steps.mean() / counts(most).mean()), 1.0) if bursty and steps.size else 1.0

    def cost(bins: int) -> float:
        # Of Shimazaki and Shinomoto (Neural Computation 19, 2007), who have noise = 1: up to a
        # constant, it estimates the squared error of a rate that is read from a histogram.
        mean, variance = counts(bins).mean(), counts(bins).var()
        return float((2 * noise * mean - variance) / (periods * period / bins) ** 2)

    bins = min(range(1, most + 1), key=cost)
    width = period / bins
    rest = np.clip(span % period - width * np.arange(bins), 0, width)
    rates = counts(bins) / (np.floor(periods) * width + (rest if periods > 1 else 0))
    weights = tuple(_short(rate / rates.mean()) for rate in rates)
    return RateCurve(_short(rates.mean()), weights, period)


def _bursty_day(times: np.ndarray) -> RateCurve:
    """The rate curve with bursts and lulls on top."""
    curve = _curve(times, bursty=True)
    # In time that runs as fast as the curve is high, the rate is constant; what is left are the bursts.
    passed = np.concatenate([[0], np.cumsum(curve.weights)]) / np.sum(curve.weights)
    edges = np.linspace(0, 1, len(passed))
    whole, phase = np.divmod(times / curve.period_s, 1)
    bursts = _bursts((whole + np.interp(phase, edges, passed)) * curve.period_s)
    pair = bursts.weights, bursts.sojourn_s
    return RateCurve(curve.rate_per_s, curve.weights, curve.period_s, *pair)


FITS: dict[str, Callable[[np.ndarray], Any]] = {
    "poisson": _poisson,
    "gamma": _gamma,
    "bursts": _bursts,
    "day": _day,
    "bursty-day": _bursty_day,
}
"""The kinds of processes that can be fitted."""


def fit_arrivals(trace: Replay | Sequence[float] | np.ndarray, kind: str = "bursts") -> Arrivals:
    """An arrival process fitted to a trace.

    Args:
        trace: a replay, or arrival times in seconds.
        kind: ``"poisson"``: the rate; ``"gamma"``: also the CV of independent gaps; ``"bursts"``: a
            two-state MMPP, nearest in CV and in the dispersion of counts at 1, 10 and 60 s; ``"day"``:
            a rate curve, over the day or over a trace shorter than one, with as many bins as the data
            support; ``"bursty-day"``: both of them.

    Raises:
        LLMGymError: an unknown kind, or too few requests to fit.
    """
    _check_kind(kind)
    fitted: Arrivals = FITS[kind](spread(_times(trace)))
    return fitted


def _times(trace: Any) -> Any:
    """The arrival times of a replay, or those that were given."""
    return getattr(trace, "arrival_s", trace)


def _check_kind(kind: str) -> None:
    check_name("kind of arrivals", kind, FITS)


def compare_fits(
    trace: Replay | Sequence[float] | np.ndarray, kinds: Sequence[str] = tuple(FITS), seed: int = 0
) -> ArrivalFits:
    """Fits of several kinds, each with its error found by replications.

    First comes the one with the fewest constants among those nearly as good as the best (SIMPLER),
    then the others by their error.

    Args:
        trace: a replay, or arrival times in seconds.
        kinds: those of FITS that are tried.
        seed: of the replications.

    Raises LLMGymError as ``fit_arrivals`` does.
    """
    kinds = as_list("kinds", kinds, str, "names of fits")
    if not kinds:
        raise LLMGymError(f"kinds must name one fit or more; there are {', '.join(FITS)}.")
    for kind in kinds:
        _check_kind(kind)
    arrival_s = _times(trace)
    times = spread(arrival_s)
    wanted = burstiness(times)
    fits = [_judged(kind, fit_arrivals(times, kind), times, wanted, seed) for kind in kinds]
    fits.sort(key=lambda fit: fit.error)
    near = [fit for fit in fits if fit.error <= fits[0].error + SIMPLER]
    chosen = min(near, key=lambda fit: fit.constants)
    rest = (fit for fit in fits if fit is not chosen)
    return ArrivalFits(wanted, time_step(arrival_s), (chosen, *rest))


def _judged(
    kind: str, arrivals: Arrivals, times: np.ndarray, wanted: Burstiness, seed: int
) -> ArrivalFit:
    runs = int(np.clip(DRAWN // len(times), 4, RUNS))
    # No gap of a replication can be longer than twice the trace.
    drawn = sample_times(arrivals, len(times), runs, seed, min(1e5, FAR / (2 * times[-1])))
    found = [burstiness(run) for run in drawn]
    scales = [s for s in wanted.dispersion if all(s in f.dispersion for f in found)]

    def combined(of: Callable[[list[float]], Any]) -> Burstiness:
        counts = {s: float(of([f.dispersion[s] for f in found])) for s in scales}
        rate, cv = (float(of([getattr(f, x) for f in found])) for x in ("rate_per_s", "gap_cv"))
        return Burstiness(rate, cv, counts)

    mean = combined(np.mean)
    shape = np.array([wanted.gap_cv, *(wanted.dispersion[s] for s in scales)])
    error = float(np.sqrt(np.mean(np.log(mean.shape / np.maximum(shape, 1e-3)) ** 2)))
    constants = {"gamma": 2, "bursts": 4}.get(kind, 1)
    if isinstance(arrivals, RateCurve):
        constants = len(arrivals.weights) + (0 if arrivals.burst_weights is None else 3)
    low, high = (combined(partial(np.quantile, q=q)) for q in (0.05, 0.95))
    return ArrivalFit(kind, arrivals, constants, mean, low, high, error)
