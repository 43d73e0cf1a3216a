"""Pictures of what was searched and compared, as PNG."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress.train.tune import Search, Trial
from compress.train.validate import Selection
from deploy.errors import needs_extra

_BEST, _FINISHED, _PRUNED = "#c2410c", "#1d4ed8", "#9ca3af"
_COLUMNS = 3


def draw_search(found: Search, path: Path) -> None:
    """Draw a search: the metric trial by trial, against each range, and what mattered.

    Pruned trials are drawn at the last epoch they reached; of these the metric says less.
    """
    with needs_extra("report"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    shown = [trial for trial in found.trials if trial.seen is not None]
    panels = 1 + len(found.ranges) + bool(found.importance)
    rows = -(-panels // _COLUMNS)
    figure = Figure(figsize=(4.2 * min(panels, _COLUMNS), 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{found.name}: {len(found.trials)} of {found.planned} trials")
    axes = [figure.add_subplot(rows, min(panels, _COLUMNS), 1 + i) for i in range(panels)]
    _over_trials(axes[0], found, shown)
    for axis, (place, written) in zip(axes[1:], found.ranges.items(), strict=False):
        _against(axis, found, shown, place, log=written.endswith("log"))
    if found.importance:
        _importance(axes[-1], found)
    with path.open("wb") as file:
        figure.savefig(file, format="png", dpi=120)


def _over_trials(axis: Any, found: Search, shown: list[Trial]) -> None:
    """Draw every trial and the best so far."""
    _dots(axis, found, shown, [trial.number for trial in shown])
    best: list[tuple[int, float]] = []
    for trial in shown:
        if trial.value is None:
            continue
        better = max if found.larger_is_better else min
        best.append((trial.number, better(trial.value, best[-1][1]) if best else trial.value))
    if best:
        axis.step(*zip(*best, strict=True), where="post", color=_BEST, lw=1, label="best so far")
    axis.set_xlabel("trial")
    axis.set_ylabel(found.metric)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize="small")


def _against(axis: Any, found: Search, shown: list[Trial], place: str, *, log: bool) -> None:
    """Draw the trials against one range; those in which it did not exist are left out."""
    here = [trial for trial in shown if place in trial.values]
    values = [trial.values[place] for trial in here]
    if any(isinstance(value, str | bool) for value in values):
        values = [_category(value) for value in values]
    _dots(axis, found, here, values)
    if log and here:
        axis.set_xscale("log")
        axis.set_xlim(
            10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values)))
        )
        axis.xaxis.set_minor_formatter("")  # the labels between the decades overlap
    axis.set_xlabel(place)
    axis.set_ylabel(found.metric)


def _category(value: object) -> str:
    """Return a choice as it stands on an axis: tables of the recipe by their kinds, not as JSON.

    >>> print(_category('{"kind":"cosine","warmup_epochs":1}'))
    cosine
    warmup_epochs 1
    >>> _category("[]"), _category('[{"kind":"flip"}]'), _category("relu"), _category(True)
    ('none', 'flip', 'relu', 'True')
    """
    try:
        read = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        read = value
    if isinstance(read, dict):
        rest = [f"{name} {content}" for name, content in read.items() if name != "kind"]
        return "\n".join([str(read.get("kind", "")), *rest]).strip()
    if isinstance(read, list):
        return "\n".join(_category(json.dumps(part)) for part in read) or "none"
    return str(value)


def _dots(axis: Any, found: Search, trials: list[Trial], values: list[Any]) -> None:
    kinds: dict[str, tuple[str, str, Callable[[Trial], bool]]] = {
        "finished": (_FINISHED, "o", lambda trial: trial.value is not None),
        "pruned": (_PRUNED, "x", lambda trial: trial.value is None),
        "best": (_BEST, "*", lambda trial: trial.number == found.best),
    }
    if any(isinstance(value, str) for value in values):
        # Categories stand in the order in which they are first drawn.
        axis.plot(sorted(set(values)), [trials[0].seen] * len(set(values)), alpha=0)
    for name, (colour, marker, belongs) in kinds.items():
        pairs = [
            (value, trial.seen)
            for trial, value in zip(trials, values, strict=True)
            if belongs(trial)
        ]
        if pairs:
            size = 110 if name == "best" else 24
            axis.scatter(*zip(*pairs, strict=True), c=colour, marker=marker, s=size, label=name)


def _importance(axis: Any, found: Search) -> None:
    names = list(found.importance)[::-1]
    axis.barh(names, [found.importance[name] for name in names], color=_FINISHED)
    axis.set_xlabel("share in what the metric varies by")
    axis.set_xlim(0, 1)


def draw_selection(found: Selection, path: Path) -> None:
    """Draw every candidate: its folds, its mean and the interval of the mean."""
    with needs_extra("report"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    candidates = found.candidates[::-1]
    figure = Figure(figsize=(7.5, 1.6 + 0.55 * len(candidates)), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    for height, candidate in enumerate(candidates):
        colour = _BEST if candidate.name == found.winner else _FINISHED
        values = [fold.value for fold in candidate.folds]
        axis.scatter(values, [height] * len(values), c=_PRUNED, s=14)
        axis.scatter([candidate.mean], [height], c=colour, s=40, zorder=3)
        if candidate.interval is not None:
            axis.plot([candidate.interval.low, candidate.interval.high], [height] * 2, c=colour)
    axis.set_yticks(range(len(candidates)), [candidate.name for candidate in candidates])
    axis.set_xlabel(f"{found.metric} on held-out samples: folds, mean, 95 % interval of the mean")
    with path.open("wb") as file:
        figure.savefig(file, format="png", dpi=120)
