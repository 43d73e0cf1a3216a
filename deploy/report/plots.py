"""The figures of a report, as SVG to be set into its HTML.

A trade-off comes in two layouts, since text that is scaled down with its figure cannot be read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deploy.goals import axis as axis_of
from deploy.goals import bounds, gain, metric_of, plotted, score, title
from deploy.record import Goal, Roc, Scatter
from deploy.report.canvas import (
    ACCENT,
    INK,
    MUTED,
    PAPER,
    bare_axes,
    name_axes,
    plain_matplotlib,
    printable,
    to_svg,
)
from deploy.report.labels import Box, place_labels
from deploy.report.quantities import (
    duration,
    duration_bounds,
    file_size,
)
from deploy.report.results import Results, Training, Variant
from deploy.report.verdict import best_variant

Layout = Literal["wide", "narrow"]
_SIZES: dict[Layout, tuple[int, int]] = {"wide": (540, 380), "narrow": (356, 340)}
_CURVE_SIZE = (356, 230)
_ANSWER_SIZE = (356, 300)
_MARKS = ("o", "s", "^", "D")
_LABEL = 12.5
_WIDTH_PER_CHARACTER = 0.56 * _LABEL  # of common sans-serif faces, on the generous side


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """What the score is drawn against."""

    key: str
    title: str
    caption: str
    value: Callable[[Variant], float]
    bounds: Callable[[Variant], tuple[float, float]]
    write: Callable[[float], str]


_SIZE = _Axis(
    key="size",
    title="file size",
    caption="← smaller · file size",
    value=lambda variant: variant.size_bytes,
    bounds=lambda variant: (variant.size_bytes, variant.size_bytes),
    write=file_size,
)
_TIME = _Axis(
    key="time",
    title="time",
    caption="← faster · median time of one sample",
    value=lambda variant: variant.p50_ms or 0.0,
    bounds=lambda variant: (variant.p50_low_ms or 0.0, variant.p50_high_ms or 0.0),
    write=duration,
)


def score_against_size(results: Results, layout: Layout) -> str:
    """Draw every variant by file size and score; a diamond marks the size when gzipped."""
    return _tradeoff(results, _SIZE, layout)


def score_against_time(results: Results, layout: Layout) -> str:
    """Draw every variant by median time and score.

    Raises:
        ValueError: if not every variant was timed.
    """
    if any(variant.p50_ms is None for variant in results.variants):
        raise ValueError("not every variant was timed")
    return _tradeoff(results, _TIME, layout)


def curves_of(training: Training) -> list[str]:
    """Return what was measured of the training samples: the loss first, then the rest."""
    names = [name for epoch in training.epochs for name in epoch if not name.startswith("val_")]
    return sorted(dict.fromkeys(names), key=lambda name: name != "loss")


def training_curve(name: str, training: Training, *, metric: str, index: int) -> str:
    """Draw what was measured after each epoch of training and, where it was, of validation.

    Args:
        name: the variant that was trained.
        training: its epochs.
        metric: which of its numbers: ``loss``, or what is shown beside it.
        index: a number of its own among the curves of a page.
    """
    share = metric.endswith("accuracy")
    unit = 100 if share else 1
    count = len(training.epochs)
    with plain_matplotlib():
        from matplotlib.ticker import MaxNLocator

        figure, axes = bare_axes(_CURVE_SIZE)
        for key, colour in ((metric, MUTED), (f"val_{metric}", ACCENT)):
            values = [epoch.get(key) for epoch in training.epochs]
            heights = [math.nan if value is None else value * unit for value in values]
            axes.plot(
                range(1, count + 1), heights, color=colour, linewidth=1.8, marker="o", markersize=4
            )
        axes.axvline(training.kept_epoch, color=INK, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.set_xlim(0.6, count + 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        name_axes(
            axes, "epoch", f"{metric.replace('_', ' ')}, %" if share else metric.replace("_", " ")
        )
        return to_svg(
            figure,
            prefix=f"curve{index}",
            title=f"Training of {name}: {metric}",
            description=f"{metric} of {count} epochs; the weights of epoch {training.kept_epoch} "
            "were kept.",
            tooltips={},
        )


def scatter(answers: Scatter, labels: Sequence[str], *, goal: Goal, index: int) -> str:
    """Draw predicted beside true values; the line is where both are the same.

    Args:
        answers: values of one target or more; each has a colour and a sign of its own.
        labels: names of the targets.
        goal: says the unit.
        index: a number of its own among the figures of a page.
    """
    unit = f", {goal.unit}" if goal.unit else ""
    with plain_matplotlib():
        figure, axes = bare_axes(_ANSWER_SIZE)
        ends = [min(map(min, (*answers.true, *answers.predicted)))]
        ends.append(max(map(max, (*answers.true, *answers.predicted))))
        axes.plot(ends, ends, color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
        for number, (true, given) in enumerate(zip(answers.true, answers.predicted, strict=True)):
            axes.plot(
                true,
                given,
                _MARKS[number % len(_MARKS)],
                color=ACCENT if number % 2 == 0 else INK,
                markersize=4,
                alpha=0.6,
                markeredgewidth=0,
            )
        name_axes(axes, f"true{unit}", f"predicted{unit}")
        return to_svg(
            figure,
            prefix=f"answers{index}",
            title="Predicted beside true values",
            description=f"{len(answers.true[0])} test samples; targets: {', '.join(labels)}.",
            tooltips={},
        )


def error_histogram(answers: Scatter, *, goal: Goal, index: int) -> str:
    """Draw how often errors of each size come, predicted minus true, of all targets together."""
    errors = [
        given - true
        for truths, predictions in zip(answers.true, answers.predicted, strict=True)
        for true, given in zip(truths, predictions, strict=True)
    ]
    unit = f", {goal.unit}" if goal.unit else ""
    with plain_matplotlib():
        figure, axes = bare_axes(_ANSWER_SIZE)
        axes.hist(errors, bins=min(30, max(5, round(math.sqrt(len(errors))))), color=ACCENT)
        axes.axvline(0, color=INK, linewidth=0.8, linestyle=(0, (2, 3)))
        name_axes(axes, f"predicted − true{unit}", "samples")
        return to_svg(
            figure,
            prefix=f"errors{index}",
            title="Errors",
            description=f"Predicted minus true values of {len(errors)} test samples.",
            tooltips={},
        )


def roc(curves: Sequence[tuple[str, Roc]], *, chosen: str, index: int) -> str:
    """Draw the ROC curve of every variant, that of the chosen one in colour.

    Args:
        curves: names and curves, the baseline first.
        chosen: the variant to make out.
        index: a number of its own among the figures of a page.
    """
    with plain_matplotlib():
        figure, axes = bare_axes(_ANSWER_SIZE)
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
        ordered = sorted(curves, key=lambda pair: pair[0] == chosen)
        for number, (name, curve) in enumerate(ordered):
            axes.plot(
                curve.false_positive_rate,
                curve.true_positive_rate,
                color=ACCENT if name == chosen else MUTED,
                linewidth=2 if name == chosen else 1,
                gid=f"roc{number}",
            )
        name_axes(axes, "false alarms, share of the normal", "found, share of the anomalies")
        return to_svg(
            figure,
            prefix=f"roc{index}",
            title="ROC curves",
            description=f"{', '.join(name for name, _ in curves)}; {chosen} in colour.",
            tooltips={f"roc{number}": name for number, (name, _) in enumerate(ordered)},
        )


def _tradeoff(results: Results, axis: _Axis, layout: Layout) -> str:
    variants, goal, best = results.variants, results.goal, best_variant(results)
    with plain_matplotlib():
        figure, axes = bare_axes(_SIZES[layout])
        _scale(axes, variants, axis, goal)
        _draw_front(axes, variants, axis, goal)
        for index, variant in enumerate(variants):
            _draw_point(axes, variant, axis, goal, index=index, is_best=variant is best)
        name_axes(axes, axis.caption, axis_of(goal))
        _draw_labels(axes, variants, axis, goal, best)
        return to_svg(
            figure,
            prefix=f"{axis.key}-{layout}",
            title=f"{title(goal)} against {axis.title}",
            description="; ".join(f"{v.name}: {_tooltip(v, goal)}" for v in variants),
            tooltips={
                f"point{i}": f"{v.name}: {_tooltip(v, goal)}" for i, v in enumerate(variants)
            },
        )


def _scale(axes: Any, variants: Sequence[Variant], axis: _Axis, goal: Goal) -> None:
    """Set the limits and ticks: sizes by ratio, times from zero unless they differ too much."""
    from matplotlib.ticker import MaxNLocator

    values = [value for variant in variants for value in axis.bounds(variant)]
    if axis is _SIZE:
        values += [variant.gzip_bytes for variant in variants]
    low, high = min(values), max(values)
    if axis is _SIZE or high > 12 * low:
        axes.set_xscale("log")
        span = max(high / low, 2.0)
        low, high = low / span**0.08, high * span**0.2  # names stand to the right of their points
        ticks = _ticks_by_ratio(low, high)
    else:
        low, high = 0.0, high * 1.18
        ticks = [tick for tick in MaxNLocator(5).tick_values(0, high) if tick <= high]
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [_short(axis.write(tick)) if tick else "0" for tick in ticks])
    axes.set_xticks([], minor=True)
    bottom = plotted(goal, min(variant.score_low for variant in variants))
    top = plotted(goal, max(variant.score_high for variant in variants))
    room = 0.06 * (top - bottom) or 0.5
    axes.set_ylim(bottom - room, top + room)
    axes.yaxis.get_major_locator().set_params(nbins=5)


def _short(number: str) -> str:
    """Return a written number without zeros at the end of its decimals.

    >>> _short("2.50 ms"), _short("1.00 MB"), _short("200 kB")
    ('2.5 ms', '1 MB', '200 kB')
    """
    return re.sub(r"\.?0+(?=\D*$)", "", number) if "." in number else number


def _ticks_by_ratio(low: float, high: float) -> list[float]:
    """Return round numbers between two ends: of 1, 2, 5 times powers of ten, six at most.

    >>> _ticks_by_ratio(120_000, 2_100_000)
    [200000.0, 500000.0, 1000000.0, 2000000.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1,)):
        ticks = [
            step * 10.0**power
            for power in powers
            for step in steps
            if low <= step * 10**power <= high
        ]
        if len(ticks) <= 6:
            break
    return ticks


def _draw_front(axes: Any, variants: Sequence[Variant], axis: _Axis, goal: Goal) -> None:
    """Draw the best score that can be had at each size or time, or less."""
    xs: list[float] = []
    ys: list[float] = []
    best: float | None = None
    for variant in sorted(variants, key=lambda v: (axis.value(v), -gain(goal, v.score))):
        if best is None or gain(goal, variant.score - best) > 0:
            best = variant.score
            xs.append(axis.value(variant))
            ys.append(plotted(goal, best))
    xs.append(axes.get_xlim()[1])
    ys.append(ys[-1])
    axes.plot(xs, ys, drawstyle="steps-post", color=ACCENT, linewidth=5, alpha=0.16, zorder=1)


def _draw_point(
    axes: Any, variant: Variant, axis: _Axis, goal: Goal, *, index: int, is_best: bool
) -> None:
    """Draw one variant: its intervals, its gzipped size where sizes are drawn, its mark."""
    x, y = axis.value(variant), plotted(goal, variant.score)
    ends = [plotted(goal, variant.score_low), plotted(goal, variant.score_high)]
    colour = ACCENT if variant.pareto else MUTED
    thin = {"color": colour, "linewidth": 1.3, "alpha": 0.6, "markersize": 7, "zorder": 2}
    axes.plot([x, x], ends, **thin)
    axes.plot([x, x], ends, "_", **thin)
    axes.plot(axis.bounds(variant), [y, y], **thin)
    if axis is _SIZE:
        axes.plot(
            [variant.gzip_bytes, x],
            [y, y],
            color=colour,
            linewidth=1,
            linestyle=(0, (1, 3)),
            zorder=2,
        )
        axes.plot(
            [variant.gzip_bytes],
            [y],
            marker="D",
            markersize=5,
            color=PAPER,
            markeredgecolor=colour,
            markeredgewidth=1.3,
            zorder=3,
        )
    axes.plot(
        [x],
        [y],
        marker="o",
        markersize=12 if is_best else 9,
        color=colour if variant.pareto else PAPER,
        markeredgecolor=INK if is_best else colour,
        markeredgewidth=2 if is_best else 1.6,
        zorder=4,
        gid=f"point{index}",
    )


def _draw_labels(
    axes: Any, variants: Sequence[Variant], axis: _Axis, goal: Goal, best: Variant | None
) -> None:
    """Name the points, the best first; a name without room is left to the tooltip and the table."""

    def at(x: float, value: float) -> tuple[float, float]:
        pixel = axes.transData.transform((x, plotted(goal, value)))
        return float(pixel[0]), float(pixel[1])

    def around(x: float, y: float, half: float) -> Box:
        return Box(x - half, y - half, x + half, y + half)

    ordered = sorted(variants, key=lambda v: (v is not best, not v.pareto))
    points = [at(axis.value(variant), variant.score) for variant in ordered]
    marks, lines = [around(x, y, 6) for x, y in points], []
    for variant, (x, y) in zip(ordered, points, strict=True):
        low, high = axis.bounds(variant)
        (left, bottom), (right, top) = (
            at(low, variant.score_low),
            at(high, variant.score_high),
        )
        lines += [Box(left, y - 1, right, y + 1), Box(x - 1, bottom, x + 1, top)]
        if axis is _SIZE:
            gzipped, _ = at(variant.gzip_bytes, variant.score)
            marks.append(around(gzipped, y, 4))
            lines.append(Box(gzipped, y - 1, x, y + 1))
    names = [_shown(variant.name) for variant in ordered]
    frame = axes.bbox
    boxes = place_labels(
        points,
        [(len(name) * _WIDTH_PER_CHARACTER + 4, 1.25 * _LABEL) for name in names],
        marks=marks,
        lines=lines,
        frame=Box(frame.x0, frame.y0, frame.x1 + 10, frame.y1 + 10),
    )
    for variant, name, (x, y), box in zip(ordered, names, points, boxes, strict=True):
        if box is None:
            continue
        if max(box.left - x, x - box.right, box.bottom - y, y - box.top) > 12:
            _lead(axes, (x, y), box)
        side = "left" if box.left > x else "right" if box.right < x else "center"
        edge = {"left": box.left + 2, "right": box.right - 2, "center": (box.left + box.right) / 2}
        axes.text(
            edge[side],
            (box.bottom + box.top) / 2,
            name,
            transform=None,
            ha=side,
            va="center",
            fontsize=_LABEL,
            fontweight="bold" if variant is best else "normal",
            color=INK if variant.pareto else MUTED,
            parse_math=False,
            zorder=5,
        )


def _lead(axes: Any, point: tuple[float, float], box: Box) -> None:
    """Draw a thin line from a point to the nearest spot of its label."""
    x, y = point
    end = (min(max(x, box.left), box.right), min(max(y, box.bottom), box.top))
    axes.annotate(
        "",
        point,
        xycoords="figure pixels",
        xytext=end,
        textcoords="figure pixels",
        arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.8},
        zorder=1,
    )


def _shown(name: str) -> str:
    return printable(name if len(name) <= 24 else f"{name[:23]}…")


def _tooltip(variant: Variant, goal: Goal) -> str:
    """Say in one line what a point stands for."""
    ends = bounds(goal, variant.score_low, variant.score_high)
    facts = [
        f"{metric_of(goal).title} {score(goal, variant.score)} {ends}",
        f"{file_size(variant.size_bytes)}, {file_size(variant.gzip_bytes)} gzipped",
    ]
    p50, low, high = variant.p50_ms, variant.p50_low_ms, variant.p50_high_ms
    if p50 is not None and low is not None and high is not None:
        facts.append(f"median {duration(p50)} {duration_bounds(p50, low, high)}")
    if variant.pareto:
        facts.append("on the Pareto front")
    return ", ".join(facts)
