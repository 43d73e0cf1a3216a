"""What a run comes to, in one sentence that does not call noise a finding."""

from __future__ import annotations

from deploy.report.quantities import (
    accuracy,
    file_size,
    points,
    points_bounds,
    times,
    times_bounds,
)
from deploy.report.results import Results, Variant

_ALPHA = 0.05
_POINTS_TO_SPARE = 1.0

RULE = (
    "The verdict names the smallest gzipped variant among those whose accuracy is not detectably "
    "more than 1 point below the baseline's and, where any such is left, that are not "
    "detectably slower than the baseline. Detectably: the 95\u202f% interval lies wholly beyond."
)
"""How ``best_variant`` chooses, for the reader of a report."""


def best_variant(results: Results) -> Variant | None:
    """Return the variant to ship, or None if every one costs too much or there is only a baseline.

    The rule: of the variants after the first, keep those whose accuracy is not detectably more
    than 1 point below the baseline's (the interval of the difference reaches above -1); of these,
    if any remains, those that are not detectably slower (the interval of the speed-up reaches
    above 1); of these, the smallest when gzipped. Ties: the more accurate, then the earlier.
    """
    affordable = [
        variant
        for variant in results.variants[1:]
        if variant.baseline_delta_high is not None
        and variant.baseline_delta_high >= -_POINTS_TO_SPARE
    ]
    no_slower = [v for v in affordable if v.speedup_high is None or v.speedup_high >= 1]
    return min(no_slower or affordable, key=lambda v: (v.gzip_bytes, -v.accuracy), default=None)


def verdict(results: Results) -> str:
    """Say in one sentence what the best variant gains and what it costs."""
    baseline = results.baseline
    if len(results.variants) == 1:
        return (
            f"{baseline.name} reaches {accuracy(baseline.accuracy)} in "
            f"{file_size(baseline.size_bytes)}; there is no variant to compare it with."
        )
    best = best_variant(results)
    if best is None:
        least = max(results.variants[1:], key=lambda v: v.accuracy)
        return (
            f"No variant stays within {_POINTS_TO_SPARE:g} point of {baseline.name}: "
            f"{least.name}, the closest, is {_sizes(least, baseline)} at {_cost(least)}."
        )
    size, speed = _sizes(best, baseline), _speed(best)
    gains = f"{size} and {speed}" if speed else size
    return f"{best.name} is {gains} than {baseline.name}, at {_cost(best)}."


def lost_or_gained(variant: Variant) -> bool:
    """Say whether the accuracy differs detectably from the baseline's.

    As in ``deploy.evaluate``: the interval excludes 0 and the exact test agrees.
    """
    low, high, p = (
        variant.baseline_delta_low,
        variant.baseline_delta_high,
        variant.baseline_mcnemar_p,
    )
    if low is None or high is None or p is None:
        return False
    return (low > 0 or high < 0) and p < _ALPHA


def _sizes(variant: Variant, baseline: Variant) -> str:
    plain = _size(baseline.size_bytes / variant.size_bytes)
    zipped = _size(baseline.gzip_bytes / variant.gzip_bytes)
    return plain if plain == zipped else f"{zipped} gzipped ({plain} as a file)"


def _size(ratio: float) -> str:
    if times(ratio) == times(1.0):
        return "no smaller"
    return f"{times(ratio)} smaller" if ratio > 1 else f"{times(1 / ratio)} larger"


def _speed(variant: Variant) -> str:
    """Say how much faster, slower or neither, or nothing where nothing was timed."""
    value, low, high = variant.speedup, variant.speedup_low, variant.speedup_high
    if value is None or low is None or high is None:
        return ""
    if low > 1:
        return f"{times(value)} {times_bounds(value, low, high)} faster"
    if high < 1:
        return f"{times(1 / value)} {times_bounds(1 / value, 1 / high, 1 / low)} slower"
    return (
        f"no faster or slower that could be told ({times(value)} {times_bounds(value, low, high)})"
    )


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
