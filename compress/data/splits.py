"""How a data set becomes a task: which samples train, validate, calibrate and test."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from compress.data.labelled import Labelled
from compress.data.sources import Data, read_source
from compress.data.task import Scaling, Split, Task
from deploy.errors import UserError
from deploy.evalset import EvalSet
from deploy.goals import why_not_metric
from deploy.preprocess import Cast, Preprocess, Reshape, Scale, apply
from deploy.record import Goal, TaskKind

_CALIBRATION_SAMPLES = 500
"""What a quantization calibrates on unless told otherwise."""

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]


def load_task(data: Data, *, seed: int) -> Task:
    """Read a data set, check it and split it.

    The source's own test part stays whole. Every other cut of classes is stratified: each class
    keeps its share and is in every part (calibration alone may be too small for that). Of a
    reconstruction, anomalies go to the test part alone: those of the training part are left out
    where the source has a test part of its own.

    Args:
        data: what to read and how to split it.
        seed: decides which samples go where; equal data and seeds give equal tasks.

    Raises:
        UserError: if the data are missing, damaged or unfit to learn from, or do not split as asked.
        MissingExtraError: if the source needs a library that is not installed.
    """
    data = _checked(data)
    source = read_source(data)
    if data.normal is not None:
        source = _told_apart(source, data.normal, data.source)
    goal = data.goal
    _require_fit(source, data.source, goal)
    preprocess = data.preprocess if data.preprocess is not None else _default(source.train.x)

    rng = np.random.default_rng(seed)
    samples, test = source.train, source.test
    rest: Indices = np.arange(len(samples.y))
    kinds, anomalies = _kinds(samples.y, goal.task), rest[:0]
    if goal.task == "reconstruction":
        anomalies, rest = np.flatnonzero(samples.y == 1), np.flatnonzero(samples.y == 0)
    if test is None:
        taken, rest = _cut(kinds, rest, data, field="test_fraction", rng=rng)
        taken = np.concatenate([taken, anomalies])
        test = EvalSet(x=samples.x[taken], y=samples.y[taken])
    validation, train = _cut(kinds, rest, data, field="validation_fraction", rng=rng)
    if data.train_samples is not None:
        _require_at_most("train_samples", data.train_samples, len(train), data.source)
        classes = len(np.unique(kinds))
        if data.train_samples < classes:
            raise UserError(
                f"{data.source}: train_samples = {data.train_samples} is fewer than "
                f"the {classes} classes; give each at least one"
            )
        train = train[stratified(kinds[train], data.train_samples, least=1, rng=rng)]
    wanted = data.calibration_samples or min(_CALIBRATION_SAMPLES, len(train))
    _require_at_most("calibration_samples", wanted, len(train), data.source)
    calibrating = stratified(kinds[train], wanted, rng=rng)

    def part(chosen: Indices) -> Split:
        split = _split(samples.x[chosen], samples.y[chosen], preprocess, data.source)
        return dataclasses.replace(split, y=split.x) if goal.task == "reconstruction" else split

    train_split = part(train)
    task = Task(
        name=data.source,
        digest="",
        licence=source.licence,
        labels=source.labels,
        preprocess=preprocess,
        train=train_split,
        calibration=Split(
            raw=train_split.raw[calibrating],
            x=train_split.x[calibrating],
            y=train_split.y[calibrating],
        ),
        validation=part(validation),
        test=_split(test.x, test.y, preprocess, data.source),
        goal=goal,
        scaling=_scaling(samples.y[train], source.labels, data),
    )
    return dataclasses.replace(task, digest=_digest(task))


def stratified(
    y: npt.NDArray[np.int64],
    count: int,
    *,
    least: int = 0,
    leave: int = 0,
    rng: np.random.Generator,
) -> Indices:
    """Choose samples at random so that every class keeps its share.

    Args:
        y: classes counted from 0, ``(n,)``.
        count: how many to choose.
        least: how many of every class to choose at least.
        leave: how many of every class to leave at least.
        rng: makes the choice.

    Returns:
        ``count`` different indices into ``y``, in random order. Shares are rounded by largest
        remainder within the bounds of ``least`` and ``leave``; ties go to the lower class.

    Raises:
        ValueError: if ``count``, ``least`` and ``leave`` cannot all be met.

    >>> y = np.array([0] * 6 + [1] * 3)
    >>> np.bincount(y[stratified(y, 3, rng=np.random.default_rng(0))]).tolist()
    [2, 1]
    """
    present, of_class = np.unique(y, return_inverse=True)
    counts = np.bincount(of_class)
    most = counts - leave
    if most.min() < least or not least * len(present) <= count <= most.sum():
        raise ValueError(f"cannot choose {count} of {len(y)} with {least=} and {leave=}")
    wanted = counts * count  # in units of 1 / len(y) of a sample: integers, so that ties are ties
    share = np.clip(wanted // len(y), least, most)
    while missing := count - share.sum():
        step = np.sign(missing)
        may = share < most if step > 0 else share > least
        share[np.argmax(np.where(may, step * (wanted - share * len(y)), -np.inf))] += step
    chosen = [
        rng.choice(np.flatnonzero(of_class == index), size=share[index], replace=False)
        for index in range(len(present))
    ]
    return rng.permutation(np.concatenate(chosen))


def _told_apart(source: Labelled, normal: tuple[str, ...], name: str) -> Labelled:
    """Return a source of classes as one of normal samples, 0, and anomalies, 1."""
    unknown = [label for label in normal if label not in source.labels]
    if unknown or not normal or set(normal) == set(source.labels):
        raise UserError(
            f"{name}: normal must name some labels but not all of {', '.join(source.labels)}; "
            f"got {', '.join(normal) or 'none'}"
        )
    numbers = [source.labels.index(label) for label in normal]

    def told(part: EvalSet) -> EvalSet:
        return EvalSet(x=part.x, y=(~np.isin(part.y, numbers)).astype(np.int64))

    return dataclasses.replace(
        source,
        train=told(source.train),
        test=None if source.test is None else told(source.test),
        labels=("normal", "anomalous"),
    )


def _kinds(y: Array, task: TaskKind) -> npt.NDArray[np.int64]:
    """Return what keeps its share in every part, ``(n,)``: classes; else all samples are alike."""
    return np.asarray(y) if task == "classification" else np.zeros(len(y), np.int64)


def _scaling(y: Array, labels: tuple[str, ...], data: Data) -> Scaling | None:
    """Return mean and deviation of the training part's targets, if they are to be standardised."""
    if data.task != "regression" or not data.standardise_targets:
        return None
    mean, std = y.mean(axis=0, dtype=np.float64), y.std(axis=0, dtype=np.float64)
    if (std == 0).any():
        label = labels[int(np.argmin(std))]
        raise UserError(
            f"{data.source}: target {label!r} is {y[0, int(np.argmin(std))]:g} in every training "
            "sample; there is nothing to learn about it"
        )
    return Scaling(mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def _cut(
    y: npt.NDArray[np.int64],
    pool: Indices,
    data: Data,
    *,
    field: Literal["test_fraction", "validation_fraction"],
    rng: np.random.Generator,
) -> tuple[Indices, Indices]:
    """Split ``pool`` into the part that ``field`` asks for and the rest, every class in both."""
    fraction: float = getattr(data, field)
    leave = 2 if field == "test_fraction" else 1  # the rest is cut once more after the test part
    count, classes = round(fraction * len(pool)), len(np.unique(y[pool]))
    if not classes <= count <= len(pool) - leave * classes:
        raise UserError(
            f"{data.source}: {field} = {fraction:g} makes {count} of {len(pool)} samples; "
            f"{classes} classes, each in every part, need {classes} to {len(pool) - leave * classes}"
        )
    taken = pool[stratified(y[pool], count, least=1, leave=leave, rng=rng)]
    return taken, np.setdiff1d(pool, taken)


def _checked(data: Data) -> Data:
    """Apply the rules of ``Data`` to a value that was built in Python, where msgspec checks none."""
    try:
        return msgspec.convert(msgspec.to_builtins(data), Data)
    except msgspec.ValidationError as error:
        raise UserError(f"data: {error}") from error


def _require_fit(source: Labelled, name: str, goal: Goal) -> None:
    """Refuse data that no network could learn from, or that would be read wrongly."""
    train, test, labels = source.train, source.test, source.labels
    classification = goal.task == "classification"
    if classification and len(labels) < 2:
        raise UserError(f"{name}: has one class only ({labels[0]}); a classifier needs two or more")
    why_not = why_not_metric(goal.task, goal.metric, len(labels))
    if why_not is not None:
        raise UserError(f"{name}: {why_not}")
    for part, samples in (("training", train), ("test", test)):
        if samples is not None:
            _require_part(samples, part, labels, name, goal)
    if test is not None and (test.x.shape[1:], test.x.dtype) != (train.x.shape[1:], train.x.dtype):
        raise UserError(
            f"{name}: samples of both parts must be alike, got {train.x.dtype} "
            f"{train.x.shape[1:]} for training and {test.x.dtype} {test.x.shape[1:]} for test"
        )
    needed = 2 if test is not None else 3
    if not classification:
        if len(train.y) < needed:
            raise UserError(f"{name}: has {len(train.y)} samples, it needs {needed} or more")
        return
    counts = np.bincount(train.y, minlength=len(labels))
    if counts.min() < needed:
        parts = "training and validation" if needed == 2 else "training, validation and test"
        raise UserError(
            f"{name}: class {labels[int(counts.argmin())]!r} has {counts.min()} samples, "
            f"it needs {needed}: one each for {parts}"
        )


def _require_part(
    samples: EvalSet, part: str, labels: tuple[str, ...], name: str, goal: Goal
) -> None:
    if samples.x.ndim < 2:
        raise UserError(
            f"{name}: x must be (n, ...), one or more axes a sample, got {samples.x.shape}"
        )
    if samples.x.size == 0:
        raise UserError(
            f"{name}: samples must hold one value or more, got x {samples.x.shape}; "
            f"an axis of 0 leaves nothing to learn from"
        )
    if samples.y.ndim == 2 and samples.y.shape[1] != len(labels):
        raise UserError(
            f"{name}: y of the {part} part must have {len(labels)} columns as that of the other, "
            f"got {samples.y.shape[1]}"
        )
    if goal.task == "classification" and samples.y.max() >= len(labels):
        index = int(np.argmax(samples.y >= len(labels)))
        raise UserError(
            f"{name}: classes of the {part} part must be 0 to {len(labels) - 1}, "
            f"got {samples.y[index]} at index {index} of y"
        )
    _require_finite(samples.x, f"{name}: {part} part")


def _require_finite(x: Array, where: str) -> None:
    if x.dtype.kind != "f":
        return
    bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))
    if len(bad):
        raise UserError(
            f"{where}: {len(bad)} of {len(x)} samples hold NaN or infinity, the first at index {bad[0]}"
        )


def _require_at_most(field: str, count: int, available: int, name: str) -> None:
    if count > available:
        raise UserError(
            f"{name}: {field} = {count} is more than the {available} training samples; "
            f"set it to {available} or fewer"
        )


def _default(x: Array) -> Preprocess:
    """Return the preprocessing for samples whose user states none."""
    if x.dtype != np.uint8 or x.ndim not in (3, 4):
        return (Cast(dtype="float32"),)
    if x.ndim == 3:
        return (Reshape(shape=(*x.shape[1:], 1)), Scale())
    return (Scale(),)


def _split(raw: Array, y: Array, preprocess: Preprocess, name: str) -> Split:
    with np.errstate(over="ignore", invalid="ignore"):  # refused below, by place
        x = apply(preprocess, raw)
    _require_finite(x, f"{name}: after preprocessing")
    return Split(raw=raw, x=x, y=y)


def _digest(task: Task) -> str:
    digest = hashlib.sha256(msgspec.json.encode((task.labels, task.preprocess, task.kind)))
    for split in (task.train, task.calibration, task.validation, task.test):
        for array in (split.raw, split.y):
            digest.update(f"{array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
