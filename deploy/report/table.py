"""The columns of the tables of variants: a new column of the report goes here.

``results.csv`` needs no entry: it has every plain field of ``Variant``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from deploy.goals import bounds, delta_bounds, delta_number, delta_unit, metric_of, score, title
from deploy.record import Goal
from deploy.report.quantities import (
    count,
    duration,
    duration_bounds,
    file_size,
    memory_size,
    p_value,
    percent,
    times,
    times_bounds,
)
from deploy.report.results import Results, Variant


@dataclass(frozen=True, slots=True)
class Cell:
    """One entry: what is read, what is read on a second look, and what it is sorted by."""

    text: str
    details: tuple[str, ...] = ()
    order: float | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """One column; ``cell`` gives None where a variant has nothing to show."""

    title: str
    meaning: str
    cell: Callable[[Variant], Cell | None]


def _score(goal: Goal) -> Callable[[Variant], Cell]:
    def cell(variant: Variant) -> Cell:
        ends = bounds(goal, variant.score_low, variant.score_high)
        return Cell(score(goal, variant.score), (ends,), variant.score)

    return cell


def _against_parent(goal: Goal) -> Callable[[Variant], Cell | None]:
    """Return the difference from the parent, unless it is the one from the baseline once more."""

    def cell(variant: Variant) -> Cell | None:
        seen = (variant.delta, variant.delta_low, variant.delta_high, variant.mcnemar_p)
        return None if seen == _from_baseline(variant) else _difference(goal, *seen)

    return cell


def _against_baseline(goal: Goal) -> Callable[[Variant], Cell | None]:
    return lambda variant: _difference(goal, *_from_baseline(variant))


def _from_baseline(
    variant: Variant,
) -> tuple[float | None, float | None, float | None, float | None]:
    return (
        variant.baseline_delta,
        variant.baseline_delta_low,
        variant.baseline_delta_high,
        variant.baseline_mcnemar_p,
    )


def _difference(
    goal: Goal, value: float | None, low: float | None, high: float | None, p: float | None
) -> Cell | None:
    if value is None or low is None or high is None:
        return None
    details = [delta_bounds(goal, value, low, high), *([] if p is None else [p_value(p)])]
    return Cell(delta_number(goal, value, low, high), tuple(details), value)


def _median(variant: Variant) -> Cell | None:
    p50, low, high = variant.p50_ms, variant.p50_low_ms, variant.p50_high_ms
    if p50 is None or low is None or high is None:
        return None
    return Cell(duration(p50), (duration_bounds(p50, low, high),), p50)


def _speedup(variant: Variant) -> Cell | None:
    ratio, low, high = variant.speedup, variant.speedup_low, variant.speedup_high
    if ratio is None or low is None or high is None:
        return None
    # The baseline against itself has no interval to show.
    details = (times_bounds(ratio, low, high),) if low < high else ()
    return Cell(times(ratio), details, ratio)


def _plain(write: Callable[[float], str], field: str) -> Callable[[Variant], Cell | None]:
    """Return the column of one number without an interval."""

    def cell(variant: Variant) -> Cell | None:
        value: float | None = getattr(variant, field)
        return None if value is None else Cell(write(value), order=value)

    return cell


def _nonzero(variant: Variant) -> Cell:
    share = variant.nonzero_parameters / variant.parameters if variant.parameters else 0.0
    return Cell(percent(share), (f"of {count(variant.parameters)}",), variant.nonzero_parameters)


def _packed(variant: Variant) -> Cell | None:
    if variant.packed_bytes is None:
        return None
    bound = variant.entropy_bound_bytes
    details = () if bound is None else (f"bound {file_size(bound)}",)
    return Cell(file_size(variant.packed_bytes), details, variant.packed_bytes)


def _runtime(variant: Variant) -> Cell | None:
    """Return the runtime where it is not ONNX Runtime, which runs whatever nothing is said of."""
    return Cell("LiteRT") if variant.format == "tflite" else None


def _int8(variant: Variant) -> Cell | None:
    if variant.int8_layers is None:
        return None
    layers = f"{variant.int8_layers} of {variant.weighted_layers} layers"
    if variant.int8_macs_share is None:
        return Cell(layers, order=variant.int8_layers)
    return Cell(percent(variant.int8_macs_share), (layers,), variant.int8_macs_share)


_MEDIAN = Column("Median time", "Latency of one sample: median with its 95 % interval", _median)


def variant_columns(goal: Goal) -> tuple[Column, ...]:
    """Return the table of variants: what decides comes first, as a narrow screen shows no more."""
    unit = f", {delta_unit(goal)}" if delta_unit(goal) else ""
    change = "Percentage points" if delta_unit(goal) == "points" else f"Change of {title(goal)}"
    test = " and exact McNemar p-value" if goal.metric == "accuracy" else ""
    share = "Share of the test samples classed right" if goal == Goal() else _meaning(goal)
    wilson = "Wilson " if goal.metric == "accuracy" else ""
    return (
        Column(title(goal), f"{share}, with its {wilson}95 % interval", _score(goal)),
        Column(
            "Speed-up",
            "Median time of the baseline over that of the variant, with its 95 % interval",
            _speedup,
        ),
        Column(
            f"Δ baseline{unit}",
            f"{change} against the baseline, with its 95 % interval{test}",
            _against_baseline(goal),
        ),
        Column("Size", "Bytes of the model file", _plain(file_size, "size_bytes")),
        Column("Gzipped", "Bytes of the file after gzip -9", _plain(file_size, "gzip_bytes")),
        Column(
            "Packed",
            "Bytes of the file that lightship pack makes, and the order-0 entropy of its weights with "
            "its text",
            _packed,
        ),
        _MEDIAN,
        Column(
            f"Δ parent{unit}",
            f"{change} against the variant it was made from, with its 95 % interval{test}; "
            "empty where the same as against the baseline",
            _against_parent(goal),
        ),
        Column(
            "Agreement",
            "Share of the test samples answered as the baseline does, right or wrong",
            _plain(percent, "baseline_agreement"),
        ),
        Column("Non-zero", "Share of the parameters that are not zero", _nonzero),
        Column(
            "MACs in int8",
            "Share of the multiply-accumulates that int8 kernels do, in the graph that runs",
            _int8,
        ),
        Column("Runtime", "What runs it, where not ONNX Runtime", _runtime),
    )


def _meaning(goal: Goal) -> str:
    better = "more" if metric_of(goal).higher_is_better else "less"
    return f"{title(goal)} on the test samples, {better} is better"


RESOURCES = (
    _MEDIAN,
    Column("p90", "Latency of one sample: 90th percentile", _plain(duration, "p90_ms")),
    Column("p99", "Latency of one sample: 99th percentile", _plain(duration, "p99_ms")),
    Column("Samples/s", "Throughput in batches", _plain(count, "throughput_per_s")),
    Column("Load", "Time to open the model in a new process", _plain(duration, "load_ms")),
    Column(
        "Memory",
        "Peak resident memory of a process that opened and ran it",
        _plain(memory_size, "peak_rss_bytes"),
    ),
)
"""The second table, of times and memory."""

_NOT_PLAIN = (
    "layers",
    "metrics",
    "per_label",
    "per_label_delta",
    "baseline_per_label_delta",
    "answers",
)


def columns_of(results: Results, columns: Sequence[Column] | None = None) -> Sequence[Column]:
    """Return the columns in which at least one variant has something to show."""
    every = variant_columns(results.goal) if columns is None else columns
    return [c for c in every if any(c.cell(variant) for variant in results.variants)]


def to_csv(results: Results) -> str:
    """Return ``results.csv``: one line a variant, one column a plain field, numbers in full.

    ``step`` is its kind alone; layers, labels and further metrics are left to ``results.json``.
    """
    rows = []
    for variant in results.variants:
        row = msgspec.to_builtins(variant)
        for field in _NOT_PLAIN:
            del row[field]
        row["step"] = variant.step.get("kind", "")
        rows.append(row)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
