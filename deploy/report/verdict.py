"""What a run comes to, in a sentence or two that do not call noise a finding."""

from __future__ import annotations

import math

from deploy.evaluate import is_difference
from deploy.goals import delta, delta_bounds, gain, metric_of, score, spare, spare_words
from deploy.record import Goal
from deploy.report.quantities import file_size, times, times_bounds
from deploy.report.results import Results, Variant

_TOLERANCE = 0.01  # a size within 1 % of another is the same size
_ALIKE = 0.01  # losses apart by less than 1 % of what may be spared are the same loss
_ABOUT = 0.1  # an interval of the speed-up within 10 % of 1 says "about as fast"


def rule(goal: Goal) -> str:
    """Say how ``best_variant`` chooses, for the reader of a report."""
    what, least = metric_of(goal).title, spare_words(goal)
    if metric_of(goal).form == "share":
        close = f"the whole 95\u202f% interval of the difference lies above −{least}"
    else:
        close = f"the whole 95\u202f% interval of the difference lies on the near side of {least}"
    return (
        "The verdict names the smallest gzipped variant among those that pay (smaller by more than "
        f"1\u202f%, gzipped or as a file, or detectably faster) and whose {what} is shown to be less "
        f"than {least} worse than the baseline’s: {close}. Where any such is left, variants that are "
        "detectably slower are passed over; of those within 1\u202f% of the smallest, one that is "
        "detectably faster than it is named instead. It describes the test samples and tuned nothing, but the "
        "best of several variants on the same samples looks a little better than it is: confirm it "
        "on new samples before relying on the last tenths."
    )


def best_variant(results: Results) -> Variant | None:
    """Return the variant to ship, or None if none pays at a cost shown to be small enough.

    The rule: of the variants after the first, keep those that pay: smaller than the baseline by
    more than 1 %, as a file or gzipped, or detectably faster (the interval of the speed-up lies
    above 1); of these, those whose score is shown to be worse than the baseline's by less than may
    be spared, as 1 point of accuracy (non-inferiority: the worse end of the interval of the
    difference is above -1; a small test set shows nothing and proves nothing); of these, if any remains, those that are not detectably
    slower (the interval of the speed-up reaches above 1); of these, the smallest when gzipped, or
    the fastest of those that are as small within 1 % and detectably faster than it (the intervals of
    the speed-ups lie apart). Ties: the better score, then the earlier.
    """
    goal = results.goal
    affordable = [v for v in _paying(results) if _worst_gain(v, goal) > -_spare(results)]
    return _smallest(affordable, goal) if affordable else None


def _smallest(variants: list[Variant], goal: Goal) -> Variant:
    no_slower = [v for v in variants if v.speedup_high is None or v.speedup_high >= 1]
    smallest = min(no_slower or variants, key=lambda v: (v.gzip_bytes, -gain(goal, v.score)))
    as_small = [
        v
        for v in no_slower or variants
        if v.gzip_bytes <= (1 + _TOLERANCE) * smallest.gzip_bytes
        and (v.speedup_low or 0.0) > (smallest.speedup_high or math.inf)
    ]
    return max(as_small, key=lambda v: v.speedup or 0.0, default=smallest)


def verdict(results: Results) -> str:
    """Say in one sentence what the best variant gains and what it costs, or why there is none."""
    baseline, goal = results.baseline, results.goal

    def worst_gain(variant: Variant) -> float:
        return _worst_gain(variant, goal)

    if len(results.variants) == 1:
        title = "" if goal.metric == "accuracy" else f"{metric_of(goal).title} "
        return (
            f"{baseline.name} reaches {title}{score(goal, baseline.score)} in "
            f"{file_size(baseline.size_bytes)}; there is no variant to compare it with."
        )
    best = best_variant(results)
    if best is not None:
        return f"{_finding(best, baseline, goal)}."
    paying = _paying(results)
    if not paying:
        least = max(results.variants[1:], key=worst_gain)
        return (
            f"None of the variants pays: keep {baseline.name}. "
            f"{_finding(least, baseline, goal, ', the least bad,')}."
        )
    within = f"within {spare_words(goal)} of {baseline.name}"
    open_ = [v for v in paying if _best_gain(v, goal) > -_spare(results)]
    nearest = max(worst_gain(v) for v in open_ or paying)
    alike = [v for v in open_ or paying if worst_gain(v) >= nearest - _ALIKE * _spare(results)]
    closest = _finding(_smallest(alike, goal), baseline, goal, ", the closest,")
    if open_:
        return (
            f"No variant is shown to stay {within}: that cannot be told on "
            f"{results.data.test_samples:,} test samples. {closest}."
        )
    return f"No variant that is smaller or faster stays {within}: {closest}."


def lost_or_gained(variant: Variant) -> bool:
    """Say whether the score differs detectably from the baseline's; False for the baseline."""
    low, high, p = (
        variant.baseline_delta_low,
        variant.baseline_delta_high,
        variant.baseline_mcnemar_p,
    )
    if low is None or high is None:
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


def _spare(results: Results) -> float:
    return spare(results.goal, results.baseline.score)


def _worst_gain(variant: Variant, goal: Goal) -> float:
    """Return the worse end of the interval of the difference; above 0 is better."""
    return min(_gains(variant, goal), default=-math.inf)


def _best_gain(variant: Variant, goal: Goal) -> float:
    """Return the better end of the interval of the difference; above 0 is better."""
    return max(_gains(variant, goal), default=math.inf)


def _gains(variant: Variant, goal: Goal) -> list[float]:
    ends = variant.baseline_delta_low, variant.baseline_delta_high
    return [gain(goal, end) for end in ends if end is not None]


def _finding(variant: Variant, baseline: Variant, goal: Goal, apposition: str = "") -> str:
    """Say what a variant gains and what it costs."""
    gains = [_sizes(variant, baseline), *_speed(variant, baseline)]
    if len(gains) == 1 or not gains[1].startswith("about"):
        gains[-1] += f" than {baseline.name}"
    return f"{variant.name}{apposition} is {' and '.join(gains)}, at {_cost(variant, goal)}"


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


def _cost(variant: Variant, goal: Goal) -> str:
    value, low, high = (
        variant.baseline_delta,
        variant.baseline_delta_low,
        variant.baseline_delta_high,
    )
    title = metric_of(goal).title
    if value is None or low is None or high is None:
        return f"{score(goal, variant.score)} {title}"
    ends = (value, low, high)
    cost = f"{delta(goal, *ends)} {delta_bounds(goal, *ends)} of {title}"
    if lost_or_gained(variant):
        return cost
    return f"{cost} (no detectable difference)"
