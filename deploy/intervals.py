"""How sure a measured number is: intervals and one exact test, without scipy."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from deploy.record import Interval

CONFIDENCE = 0.95
_TAIL = (1 - CONFIDENCE) / 2
_Z = NormalDist().inv_cdf(1 - _TAIL)
_RESAMPLES = 10_000


def wilson(successes: int, trials: int) -> Interval:
    """Return a proportion with its score interval.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference",
    J. Am. Stat. Assoc. 22, p. 209. Stays within [0, 1] and has a width even at 0 and 1.

    >>> interval = wilson(9, 10)
    >>> f"{interval.low:.3f} {interval.value:.1f} {interval.high:.3f}"
    '0.596 0.9 0.982'
    """
    share = successes / trials
    centre = (successes + _Z**2 / 2) / (trials + _Z**2)
    half = _Z / (trials + _Z**2) * math.sqrt(trials * share * (1 - share) + _Z**2 / 4)
    # At 0 and 1 one end equals the share itself, but for rounding.
    return Interval(
        value=share,
        low=max(0.0, min(share, centre - half)),
        high=min(1.0, max(share, centre + half)),
    )


def paired_difference(only_first: int, only_second: int, trials: int) -> Interval:
    """Return the difference of two proportions seen on the same trials.

    The adjusted Wald interval of Bonett and Price (2012), "Adjusted Wald confidence interval for a
    difference of binomial proportions based on paired data", J. Educ. Behav. Stat. 37(4): one
    success is added to each kind of discordant pair, so even two equal models get a width.

    Args:
        only_first: trials at which the first succeeded and the second failed.
        only_second: trials at which the second succeeded and the first failed.
        trials: all trials.

    >>> interval = paired_difference(2, 12, 100)
    >>> f"{interval.low:.3f} {interval.value:.2f} {interval.high:.3f}"
    '-0.173 -0.10 -0.024'
    """
    first, second = (only_first + 1) / (trials + 2), (only_second + 1) / (trials + 2)
    centre = first - second
    half = _Z * math.sqrt((first + second - centre**2) / (trials + 2))
    return Interval(
        value=(only_first - only_second) / trials,
        low=max(-1.0, centre - half),
        high=min(1.0, centre + half),
    )


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value that discordant pairs fall to either side alike.

    McNemar (1947) with the binomial in place of the χ² approximation: twice the smaller tail.

    >>> mcnemar_p(0, 5), mcnemar_p(3, 3)
    (0.0625, 1.0)
    """
    discordant = only_first + only_second
    term = tail = 1
    for k in range(min(only_first, only_second)):
        term = term * (discordant - k) // (k + 1)
        tail += term
    return min(1.0, tail / 2 ** (discordant - 1)) if discordant else 1.0


def bootstrap_mean(values: npt.NDArray[np.float64], rng: np.random.Generator) -> Interval:
    """Return the mean of a few independent values with its bootstrap interval.

    The percentile interval, expanded as in Hesterberg (2015), "What teachers should know about the
    bootstrap", Am. Stat. 69(4): the plain one is too narrow by √((n−1)/n) and by the normal in
    place of Student's t, which at n = 10 means 90 % instead of 95 %.

    Args:
        values: one value per independent unit, ``(n,)``, n >= 2. What varies inside a unit must
            be averaged before; resampling inside it as well would count that spread twice
            (Davison and Hinkley 1997, "Bootstrap methods and their application", section 3.8).
        rng: where the resamples come from.
    """
    n = len(values)
    means = values[rng.integers(0, n, size=(_RESAMPLES, n))].mean(axis=1)
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * student_quantile(1 - _TAIL, n - 1))
    low, high = np.quantile(means, (tail, 1 - tail))
    return Interval(value=float(values.mean()), low=float(low), high=float(high))


def student_interval(values: npt.NDArray[np.float64], *, error: float) -> Interval:
    """Return the mean of a few independent values with Student's interval.

    Args:
        values: one value per independent unit, ``(n,)``, n >= 2.
        error: the probability that the interval misses the truth, both sides together.

    >>> interval = student_interval(np.array([1.0, 2.0, 3.0]), error=0.05)
    >>> f"{interval.low:.3f} {interval.value:.1f} {interval.high:.3f}"
    '-0.484 2.0 4.484'
    """
    n = len(values)
    mean = float(values.mean())
    half = student_quantile(1 - error / 2, n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
    return Interval(value=mean, low=mean - half, high=mean + half)


def student_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t for 0.5 <= probability < 1, by bisection.

    >>> f"{student_quantile(0.975, 9):.4f} {student_quantile(0.975, 4):.4f}"
    '2.2622 2.7764'
    """
    low, high = 0.0, 1.0
    while _student_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        if _student_cdf(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return high


def _student_cdf(t: float, freedom: int) -> float:
    """The finite sums of Abramowitz and Stegun (1964), 26.7.3 and 26.7.4, for t >= 0."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (k - 1) / k
    within = math.sin(angle) * total
    return 0.5 + 0.5 * (2 / math.pi * (angle + within) if odd else within)
