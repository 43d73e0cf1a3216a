"""What a gate may ask of a bundle, and what an interval says to a limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from deploy.bench import SYSTEMATIC
from deploy.intervals import CONFIDENCE, student_interval
from deploy.record import BundleId, Environment, Interval, Record, SessionOptions

Outcome = Literal["passed", "failed", "undecided"]


class Limits(Record, frozen=True):
    """What is asked; None is not asked."""

    max_drop_points: Annotated[float, Meta(ge=-100, le=100)] | None = None
    """Percentage points of accuracy that the bundle may lose to the baseline."""
    min_accuracy: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Fraction of samples that has to be right."""
    max_size_bytes: Annotated[int, Meta(ge=1)] | None = None
    """Of the file or folder that ships."""
    max_p50_ratio: Annotated[float, Meta(gt=0)] | None = None
    """Median time of one sample over that of the baseline."""
    max_p50_ms: Annotated[float, Meta(gt=0)] | None = None
    """Median time of one sample on this machine."""
    max_peak_memory_bytes: Annotated[int, Meta(ge=1)] | None = None
    """Resident, of a new process that opens it and answers once."""
    require_int8: bool = False
    """Whether a layer has to run as an int8 kernel."""


class Finding(Record, frozen=True):
    """One limit, what was seen of it, and what follows."""

    rule: str
    """The option of the command, without its dashes."""
    outcome: Outcome
    limit: float
    seen: Interval
    """In the unit of the limit; without width where there is nothing to err about."""
    unit: str
    repeats: int
    """Independent values behind ``seen``: processes, or samples."""
    sentence: str


class Checked(Record, frozen=True):
    """What ``lightship check`` found."""

    outcome: Outcome
    path: str
    sha256: str
    """Of the ONNX model."""
    bundle: BundleId | None
    baseline: str | None
    findings: tuple[Finding, ...]
    session: SessionOptions
    environment: Environment
    elapsed_s: float
    checked_at: str
    """ISO 8601."""


def overall(findings: Sequence[Finding]) -> Outcome:
    """Return the outcome of all: one failure fails, else one doubt leaves it undecided."""
    outcomes = {finding.outcome for finding in findings}
    if "failed" in outcomes:
        return "failed"
    return "undecided" if "undecided" in outcomes else "passed"


def at_most(seen: Interval, limit: float) -> Outcome:
    """Say whether what was seen lies at or below a limit, for all that the interval leaves open.

    >>> [at_most(Interval(value=v, low=v - 1, high=v + 1), 5.0) for v in (4.0, 5.0, 7.0)]
    ['passed', 'undecided', 'failed']
    """
    if seen.high <= limit:
        return "passed"
    return "failed" if seen.low > limit else "undecided"


def at_least(seen: Interval, limit: float) -> Outcome:
    """Say whether what was seen lies at or above a limit.

    >>> at_least(Interval(value=2.0, low=1.0, high=3.0), 1.0)
    'passed'
    """
    return at_most(Interval(value=-seen.value, low=-seen.high, high=-seen.low), -limit)


def look(
    log_values: npt.NDArray[np.float64], number: int, *, systematic: float = SYSTEMATIC
) -> Interval:
    """Return what is known of a positive quantity when the gate looks at it for the n-th time.

    Who looks again until the interval suits him finds luck sooner or later. So the error that is
    allowed in all, 5 %, is spent in halves: 2.5 % at the first look, 1.25 % at the second, and so
    on (the union bound; Lan and DeMets 1983, "Discrete sequential boundaries for clinical trials",
    Biometrika 70(3), spend it in other portions). What repetition cannot average away is added to
    both ends, as the bench does.

    Args:
        log_values: the logarithm of the quantity, one value per process, ``(n,)``, n >= 2.
        number: which look it is, counted from 1.
        systematic: the share that is added to both ends.
    """
    error = (1 - CONFIDENCE) / 2**number
    seen = student_interval(log_values, error=error)
    return Interval(
        value=math.exp(seen.value),
        low=math.exp(seen.low) / (1 + systematic),
        high=math.exp(seen.high) * (1 + systematic),
    )


def samples_needed(seen: Interval, limit: float, samples: int) -> int | None:
    """Return about how many samples would tell on which side of a limit a value lies.

    An interval's end on the side of the limit comes nearer with the root of their number, that of a
    share near 1 faster. None if the value lies so near that no number would do that anyone has.

    >>> samples_needed(Interval(value=-0.2, low=-0.8, high=0.4), -0.5, 1000)
    4000
    >>> samples_needed(Interval(value=1.0, low=0.981, high=1.0), 0.99, 200)
    722
    """
    distance = abs(seen.value - limit)
    reach = seen.high - seen.value if limit > seen.value else seen.value - seen.low
    if distance <= reach / 1000:
        return None
    return math.ceil(round(samples * (reach / distance) ** 2, 6))
