"""What a run comes to, in a sentence or two that do not call noise a finding."""

from __future__ import annotations

import math

from deploy.evaluate import is_difference
from deploy.report.quantities import (
    accuracy,
    file_size,
    points,
    points_bounds,
    times,
    times_bounds,
)
from deploy.report.results import Results, Variant

_POINTS_TO_SPARE = 1.0
_TOLERANCE = 0.01  # a size within 1 % of another is the same size
_ABOUT = 0.1  # an interval of the speed-up within 10 % of 1 says "about as fast"

RULE = (
    "The verdict names the smallest gzipped variant among those that pay (smaller by more than "
    "1\u202f%, gzipped or as a file, or detectably faster) and whose accuracy is shown to be less "
    "than 1 point below the baseline’s: the whole 95\u202f% interval of the difference lies "
    "above −1 point. Where any such is left, variants that are detectably slower are passed over. "
    "It describes the test samples and tuned nothing, but the best of several variants on the same "
    "samples looks a little better than it is: confirm it on new samples before relying on the "
    "last tenths of a point."
)
"""How ``best_variant`` chooses, for the reader of a report."""


def best_variant(results: Results) -> Variant | None:
    """Return the variant to ship, or None if none pays at a cost shown to be small enough.

    The rule: of the variants after the first, keep those that pay: smaller than the baseline by
    more than 1 %, as a file or gzipped, or detectably faster (the interval of the speed-up lies
    above 1); of these, those whose accuracy is shown to be less than 1 point below the baseline's
    (non-inferiority: the low end of the interval of the difference is above -1; a small test set
    shows nothing and proves nothing); of these, if any remains, those that are not detectably
    slower (the interval of the speed-up reaches above 1); of these, the smallest when gzipped.
    Ties: the more accurate, then the earlier.
    """
    affordable = [v for v in _paying(results) if _is_close(v)]
    no_slower = [v for v in affordable if v.speedup_high is None or v.speedup_high >= 1]
    return min(no_slower or affordable, key=lambda v: (v.gzip_bytes, -v.accuracy), default=None)


def verdict(results: Results) -> str:
    """Say in one sentence what the best variant gains and what it costs, or why there is none."""
    baseline = results.baseline
    if len(results.variants) == 1:
        return (
            f"{baseline.name} reaches {accuracy(baseline.accuracy)} in "
            f"{file_size(baseline.size_bytes)}; there is no variant to compare it with."
        )
    best = best_variant(results)
    if best is not None:
        return f"{_finding(best, baseline)}."
    paying = _paying(results)
    if not paying:
        least = max(results.variants[1:], key=_least_delta)
        return (
            f"None of the variants pays: keep {baseline.name}. "
            f"{_finding(least, baseline, ', the least bad,')}."
        )
    within = f"within {_POINTS_TO_SPARE:g} point of {baseline.name}"
    open_ = [v for v in paying if not _is_far(v)]
    closest = _finding(max(open_ or paying, key=_least_delta), baseline, ", the closest,")
    if open_:
        return (
            f"No variant is shown to stay {within}: that cannot be told on "
            f"{results.data.test_samples:,} test samples. {closest}."
        )
    return f"No variant that is smaller or faster stays {within}: {closest}."


def lost_or_gained(variant: Variant) -> bool:
    """Say whether the accuracy differs detectably from the baseline's; False for the baseline."""
    low, high, p = (
        variant.baseline_delta_low,
        variant.baseline_delta_high,
        variant.baseline_mcnemar_p,
    )
    if low is None or high is None or p is None:
        return False
    return is_difference(low, high, p)


def _paying(results: Results) -> list[Variant]:
    """Return the variants that are smaller or detectably faster than the baseline."""
    baseline = results.baseline

    def pays(variant: Variant) -> bool:
        return (
            variant.size_bytes < (1 - _TOLERANCE) * baseline.size_bytes
            or variant.gzip_bytes < (1 - _TOLERANCE) * baseline.gzip_bytes
            or (variant.speedup_low is not None and variant.speedup_low > 1)
        )

    return [variant for variant in results.variants[1:] if pays(variant)]


def _is_close(variant: Variant) -> bool:
    """Say whether the accuracy is shown to be less than a point below the baseline's."""
    low = variant.baseline_delta_low
    return low is not None and low > -_POINTS_TO_SPARE


def _is_far(variant: Variant) -> bool:
    """Say whether the accuracy is shown to be a point or more below the baseline's."""
    high = variant.baseline_delta_high
    return high is not None and high <= -_POINTS_TO_SPARE


def _least_delta(variant: Variant) -> float:
    low = variant.baseline_delta_low
    return -math.inf if low is None else low


def _finding(variant: Variant, baseline: Variant, apposition: str = "") -> str:
    """Say what a variant gains and what it costs."""
    gains = [_sizes(variant, baseline), *_speed(variant, baseline)]
    if len(gains) == 1 or not gains[1].startswith("about"):
        gains[-1] += f" than {baseline.name}"
    return f"{variant.name}{apposition} is {' and '.join(gains)}, at {_cost(variant)}"


def _sizes(variant: Variant, baseline: Variant) -> str:
    plain = _size(baseline.size_bytes / variant.size_bytes)
    zipped = _size(baseline.gzip_bytes / variant.gzip_bytes)
    return plain if plain == zipped else f"{zipped} gzipped ({plain} as a file)"


def _size(ratio: float) -> str:
    if times(ratio) == times(1.0):
        return "no smaller"
    return f"{times(ratio)} smaller" if ratio > 1 else f"{times(1 / ratio)} larger"


def _speed(variant: Variant, baseline: Variant) -> list[str]:
    """Say how much faster, slower or neither, or nothing where nothing was timed."""
    value, low, high = variant.speedup, variant.speedup_low, variant.speedup_high
    if value is None or low is None or high is None:
        return []
    measured = f"{times(value)} {times_bounds(value, low, high)}"
    if low > 1:
        return [f"{measured} faster"]
    if high < 1:
        return [f"{times(1 / value)} {times_bounds(1 / value, 1 / high, 1 / low)} slower"]
    if low >= 1 - _ABOUT and high <= 1 + _ABOUT:
        return [f"about as fast as {baseline.name} ({measured})"]
    return [f"not detectably faster or slower ({measured})"]


def _cost(variant: Variant) -> str:
    delta, low, high = (
        variant.baseline_delta_points,
        variant.baseline_delta_low,
        variant.baseline_delta_high,
    )
    if delta is None or low is None or high is None:
        return f"{accuracy(variant.accuracy)} accuracy"
    cost = f"{points(delta)} points {points_bounds(low, high)} of accuracy"
    if lost_or_gained(variant):
        return cost
    return f"{cost} (no detectable difference)"
