"""Which metrics a task can be judged by: their direction, their unit, and how they are written."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from deploy.errors import UserError
from deploy.record import Goal, TaskKind

_THIN, _MINUS = "\u202f", "\u2212"
_SPARE_POINTS = 1.0
_SPARE_OF_ERROR = 0.01
_SPARE_NUMBER = 0.01


@dataclass(frozen=True, slots=True)
class Metric:
    """What a number of this name says.

    Attributes:
        title: its name in a sentence.
        form: a ``share`` is a fraction of 1, written in percent, its differences in points; an
            ``error`` is in the targets' unit and smaller is better; a ``number`` has no unit.
        square: whether an error is in the square of the unit.
    """

    title: str
    form: Literal["share", "error", "number"] = "share"
    square: bool = False

    @property
    def higher_is_better(self) -> bool:
        """Whether more is better."""
        return self.form != "error"


_AVERAGED = {
    f"{name}_{average}": Metric(f"{average} {title}")
    for name, title in (("precision", "precision"), ("recall", "recall"), ("f1", "F1"))
    for average in ("macro", "micro", "weighted")
}
_BINARY = {
    "precision": Metric("precision"),
    "recall": Metric("recall"),
    "f1": Metric("F1"),
    "roc_auc": Metric("ROC-AUC"),
}
_METRICS: dict[TaskKind, dict[str, Metric]] = {
    "classification": {"accuracy": Metric("accuracy"), **_AVERAGED, **_BINARY},
    "multi_label": {
        "accuracy": Metric("exact match"),
        **_AVERAGED,
        "roc_auc": Metric("macro ROC-AUC"),
    },
    "regression": {
        "mae": Metric("mean absolute error", "error"),
        "mse": Metric("mean squared error", "error", square=True),
        "r2": Metric("R²", "number"),
    },
    "reconstruction": {"roc_auc": Metric("ROC-AUC")},
}
_DEFAULTS: dict[TaskKind, str] = {
    "classification": "accuracy",
    "multi_label": "f1_macro",
    "regression": "mae",
    "reconstruction": "roc_auc",
}
_PER_LABEL: dict[TaskKind, str] = {
    "classification": "recall_macro",
    "multi_label": "f1_macro",
    "regression": "mae",
    "reconstruction": "roc_auc",
}
_TOP = re.compile(r"top_([1-9]\d*)")


def default_metric(task: TaskKind) -> str:
    """Return the metric that a task is judged by unless told otherwise."""
    return _DEFAULTS[task]


def chosen_goal(said: Goal, *, task: TaskKind | None, metric: str | None) -> Goal:
    """Return a goal with another task or metric; another task has its own default metric.

    Raises:
        UserError: if the metric does not fit the task.
    """
    kind = task or said.task
    kept = said.metric if kind == said.task else default_metric(kind)
    goal = Goal(task=kind, metric=metric or kept, unit=said.unit)
    metric_of(goal)
    return goal


def why_not_metric(task: TaskKind, name: str, outputs: int | None = None) -> str | None:
    """Say why a task cannot be judged by a metric, or None if it can.

    Args:
        task: the kind of task.
        name: the metric.
        outputs: how many classes, labels or targets there are, where that is known.

    >>> why_not_metric("classification", "top_5", 10)
    >>> why_not_metric("classification", "f1", 10)
    "metric 'f1' is for two classes, there are 10; take f1_macro"
    """
    top = top_k(name) if task == "classification" else None
    if top is None and name not in _METRICS[task]:
        more = ", top_K" if task == "classification" else ""
        return (
            f"metric {name!r} does not fit a {task.replace('_', '-')} task; "
            f"there are {', '.join(_METRICS[task])}{more}"
        )
    if outputs is None or task != "classification":
        return None
    if top is not None and top >= outputs:
        return f"metric {name!r} is always 1 with {outputs} classes; take a smaller number"
    if name in _BINARY and outputs != 2:
        instead = "accuracy" if name == "roc_auc" else f"{name}_macro"
        return f"metric {name!r} is for two classes, there are {outputs}; take {instead}"
    return None


def metrics_of(task: TaskKind, outputs: int) -> list[str]:
    """Return every metric that fits a task of so many classes, labels or targets.

    >>> metrics_of("regression", 1)
    ['mae', 'mse', 'r2']
    """
    top = [name for k, name in ((3, "top_3"), (5, "top_5")) if k < outputs]
    names = [*_METRICS[task], *(top if task == "classification" else [])]
    return [name for name in names if why_not_metric(task, name, outputs) is None]


def top_k(name: str) -> int | None:
    """Return the k of a ``top_k`` metric, or None for another.

    >>> top_k("top_5"), top_k("accuracy")
    (5, None)
    """
    found = _TOP.fullmatch(name)
    return int(found[1]) if found else None


def metric_of(goal: Goal) -> Metric:
    """Return what a goal's metric is.

    Raises:
        UserError: if the metric does not fit the task.
    """
    why_not = why_not_metric(goal.task, goal.metric)
    if why_not is not None:
        raise UserError(why_not)
    top = top_k(goal.metric)
    return Metric(f"top-{top} accuracy") if top else _METRICS[goal.task][goal.metric]


def per_label(goal: Goal) -> Goal:
    """Return by what each label by itself is judged: recall, F1, or the mean absolute error."""
    return Goal(task=goal.task, metric=_PER_LABEL[goal.task], unit=goal.unit)


def title(goal: Goal) -> str:
    """Return what a goal is called at the head of a column.

    >>> title(Goal(task="regression", metric="mae", unit="mm"))
    'Mean absolute error'
    """
    text = metric_of(goal).title
    return text[0].upper() + text[1:]


def axis(goal: Goal) -> str:
    """Return what an axis of the metric is called, with the unit of ``plotted``.

    >>> axis(Goal()), axis(Goal(task="regression", metric="mse", unit="mm"))
    ('accuracy, %', 'mean squared error, mm²')
    """
    metric = metric_of(goal)
    unit = "%" if metric.form == "share" else _unit(goal)
    return f"{metric.title}, {unit}" if unit else metric.title


def plotted(goal: Goal, value: float) -> float:
    """Return a value in the unit of ``axis``."""
    return 100 * value if metric_of(goal).form == "share" else value


def score(goal: Goal, value: float) -> str:
    r"""Write a value of the metric with its unit.

    >>> score(Goal(), 0.986)
    '98.60\u202f%'
    >>> score(Goal(task="regression", metric="mae", unit="mm"), 43.1282)
    '43.13\u202fmm'
    """
    if metric_of(goal).form == "share":
        return f"{100 * value:.2f}{_THIN}%"
    return _with_unit(_digits(value, value), goal)


def bounds(goal: Goal, low: float, high: float) -> str:
    """Write the interval of a value, without the unit.

    >>> bounds(Goal(), 0.9798, 0.9902)
    '[97.98, 99.02]'
    >>> bounds(Goal(task="regression", metric="mae"), 38.2, 48.111)
    '[38.20, 48.11]'
    """
    if metric_of(goal).form == "share":
        return f"[{100 * low:.2f}, {100 * high:.2f}]"
    return f"[{_digits(low, high)}, {_digits(high, high)}]"


def delta(goal: Goal, value: float, low: float, high: float) -> str:
    r"""Write a difference of the metric with its sign and its unit.

    Args:
        goal: says the metric.
        value: the difference, in points where the metric is a share.
        low: low end of its interval; with the high end it decides the digits.
        high: high end.

    >>> delta(Goal(), -0.25, -0.6, 0.2)
    '−0.25 points'
    >>> delta(Goal(task="regression", metric="mae", unit="mm"), 0.0312, -0.01, 0.07)
    '+0.0312\u202fmm'
    """
    text = delta_number(goal, value, low, high)
    return f"{text} points" if metric_of(goal).form == "share" else _with_unit(text, goal)


def delta_number(goal: Goal, value: float, low: float, high: float) -> str:
    """Write a difference as ``delta`` does, without the unit."""
    share = metric_of(goal).form == "share"
    return _signed(value, 2 if share else _decimals(value, low, high))


def delta_bounds(goal: Goal, value: float, low: float, high: float) -> str:
    """Write the interval of a difference with the digits of ``delta``.

    >>> delta_bounds(Goal(), -0.25, -0.6, 0.2)
    '[−0.60, +0.20]'
    """
    share = metric_of(goal).form == "share"
    decimals = 2 if share else _decimals(value, low, high)
    return f"[{_signed(low, decimals)}, {_signed(high, decimals)}]"


def delta_unit(goal: Goal) -> str:
    """Return the unit of a difference: points, the metric's own, or nothing.

    >>> delta_unit(Goal()), delta_unit(Goal(task="regression", metric="r2"))
    ('points', '')
    """
    return "points" if metric_of(goal).form == "share" else _unit(goal)


def gain(goal: Goal, difference: float) -> float:
    """Return a difference such that above 0 is better."""
    return difference if metric_of(goal).higher_is_better else -difference


def spare(goal: Goal, reference: float) -> float:
    """Return how much of the metric a smaller model may cost, in the unit of a difference.

    It is 1 point of a share, 1 % of the reference's error, and 0.01 of another number.

    >>> spare(Goal(), 0.98), spare(Goal(task="regression", metric="mae"), 45.0)
    (1.0, 0.45)
    """
    match metric_of(goal).form:
        case "share":
            return _SPARE_POINTS
        case "error":
            return _SPARE_OF_ERROR * reference
        case "number":
            return _SPARE_NUMBER


def spare_words(goal: Goal) -> str:
    """Say ``spare`` in words.

    >>> spare_words(Goal()), spare_words(Goal(task="regression", metric="mae"))
    ('1 point', '1\u202f%')
    """
    match metric_of(goal).form:
        case "share":
            return "1 point"
        case "error":
            return f"1{_THIN}%"
        case "number":
            return f"{_SPARE_NUMBER:g}"


def _unit(goal: Goal) -> str:
    metric = metric_of(goal)
    if metric.form != "error" or not goal.unit:
        return ""
    return f"{goal.unit}²" if metric.square else goal.unit


def _with_unit(text: str, goal: Goal) -> str:
    unit = _unit(goal)
    return f"{text}{_THIN}{unit}" if unit else text


def _digits(value: float, largest: float) -> str:
    """Return a number with four digits of the largest beside it."""
    decimals = max(0, 3 - _magnitude(largest))
    return f"{value:.{decimals}f}".replace("-", _MINUS)


def _decimals(*values: float) -> int:
    """Return the decimals that leave the largest of some numbers three digits."""
    return max(0, 2 - _magnitude(max(map(abs, values))))


def _magnitude(value: float) -> int:
    return math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0


def _signed(value: float, decimals: int) -> str:
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text.replace("-", _MINUS)
