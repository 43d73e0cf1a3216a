"""How a data set becomes a task: which samples train, validate, calibrate and test."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from compress.data.augment import why_not_augmented
from compress.data.clean import fingerprints, repeats, without_leaks, without_missing
from compress.data.fit_preprocess import fit_preprocess, fit_table, recoded
from compress.data.labelled import Labelled
from compress.data.sources import Data, read_source
from compress.data.task import Scaling, Split, Task
from deploy.errors import UserError
from deploy.evalset import EvalSet
from deploy.goals import why_not_metric
from deploy.preprocess import Column, ImageSize, Preprocess, apply
from deploy.record import Goal, TaskKind
from deploy.streams import Mapped, Samples, blocks, choose

_CALIBRATION_SAMPLES = 500
"""What a quantization calibrates on unless told otherwise."""

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]


Fold = Callable[[npt.NDArray[Any]], tuple[Indices, Indices]]
"""Given what is to be learned of the samples that are not test: which stay, which are held out."""


def load_task(
    data: Data, *, seed: int, fold: Fold | None = None, with_validation: bool = True
) -> Task:
    """Read a data set, check it and split it.

    The source's own test part stays whole. Every other cut of classes is stratified: each class
    keeps its share and is in every part (calibration alone may be too small for that). Of a
    reconstruction, anomalies go to the test part alone: those of the training part are left out
    where the source has a test part of its own.

    Args:
        data: what to read and how to split it.
        seed: decides which samples go where; equal data and seeds give equal tasks.
        fold: holds samples out for cross-validation. They stand where the test samples stood, which
            are left out altogether, and nothing is fitted to them.
        with_validation: False trains on what would have been the validation part, too.

    Raises:
        UserError: if the data are missing, damaged or unfit to learn from, or do not split as asked.
        MissingExtraError: if the source needs a library that is not installed.
    """
    data = _checked(data)
    source, notes = without_missing(read_source(data), data.clean, data.source)
    if data.normal is not None:
        source = _told_apart(source, data.normal, data.source)
    goal = data.goal
    _require_fit(source, data)

    rng = np.random.default_rng(seed)
    samples, test = source.train, source.test
    prints = fingerprints(samples.x)
    rest: Indices = np.arange(len(samples.y))
    if data.clean.duplicates == "drop":
        repeated = repeats(prints, samples.y)
        if repeated.any():
            notes.append(f"{data.source}: {repeated.sum()} samples that repeat others were dropped")
        rest = rest[~repeated]
    kinds, anomalies = _kinds(samples.y, goal.task), rest[:0]
    if goal.task == "reconstruction":
        anomalies, rest = rest[samples.y[rest] == 1], rest[samples.y[rest] == 0]
    if test is None:
        taken, rest = _cut(kinds, rest, data, field="test_fraction", rng=rng)
        taken = np.concatenate([taken, anomalies])
        test = EvalSet(x=choose(samples.x, taken), y=samples.y[taken])
        test_prints = prints[taken]
    else:
        test_prints = fingerprints(test.x)
    if fold is not None:
        stays, held_out = fold(samples.y[rest])
        test = EvalSet(x=choose(samples.x, rest[held_out]), y=samples.y[rest[held_out]])
        test_prints, rest = prints[rest[held_out]], rest[stays]
    validation, train = rest[:0], rest
    if with_validation:
        validation, train = _cut(kinds, rest, data, field="validation_fraction", rng=rng)
    kept_train, kept_validation, leaks = without_leaks(
        train, validation, prints=prints, test=test_prints, clean=data.clean, name=data.source
    )
    classes_known = source.labels if goal.task == "classification" else ()
    for called, before, after in (
        ("training", train, kept_train),
        ("validation", validation, kept_validation),
    ):
        _require_kept(kinds, before, after, classes_known, f"{data.source}: {called} part")
    train, validation = kept_train, kept_validation
    train = _fewer(train, kinds, data, rng=rng)
    calibrating = _calibrating(train, kinds, data, rng=rng)

    front, x, test_x = _front(source, test.x, train, data)
    with np.errstate(over="ignore", invalid="ignore"):  # refused below, by place
        preprocess = fit_preprocess(
            data.preprocess, choose(x, train), clean=data.clean, front=front
        )
    make = _Splitter(preprocess, data, samples=len(train) + len(validation) + len(test.y))
    train_split = make.part(choose(x, train), samples.y[train])
    why_not = why_not_augmented(data.augment, train_split.x.shape[1:])
    if why_not is not None:
        raise UserError(f"{data.source}: {why_not}")
    # What a fold holds out is judged as validation is: its samples are all normal.
    make_test = make.split if fold is None else make.part
    task = Task(
        name=data.source,
        digest="",
        licence=source.licence,
        labels=source.labels,
        preprocess=preprocess,
        train=train_split,
        calibration=make.chosen(train_split, calibrating),
        validation=make.part(choose(x, validation), samples.y[validation]),
        test=make_test(test_x, test.y),
        goal=goal,
        scaling=_scaling(samples.y[train], source.labels, data),
        augment=data.augment,
        notes=(*notes, *leaks),
    )
    parts = (prints[train], prints[train][calibrating], prints[validation], test_prints)
    return dataclasses.replace(task, digest=_digest(task, source.columns, parts))


def _front(
    source: Labelled, test: Samples, train: Indices, data: Data
) -> tuple[Preprocess, Samples, Samples]:
    """Return what says what samples are, and the samples of both parts in that form."""
    x = source.train.x
    if source.columns:
        raw = choose(x, train)
        table = data.table or fit_table(source.columns, raw, data.clean)
        x, test = recoded(x, source.columns, table), recoded(test, source.columns, table)
        return () if data.table else (table,), x, test
    stated = data.preprocess[0] if data.preprocess else None
    if data.image_size is None or isinstance(stated, ImageSize):
        return (), x, test
    height, width = data.image_size
    return (ImageSize(height=height, width=width),), x, test


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
    count, classes = round(fraction * len(pool)), max(1, len(np.unique(y[pool])))
    if not classes <= count <= len(pool) - leave * classes:
        raise UserError(
            f"{data.source}: {field} = {fraction:g} makes {count} of {len(pool)} samples; "
            f"{classes} classes, each in every part, need {classes} to {len(pool) - leave * classes}"
        )
    taken = pool[stratified(y[pool], count, least=1, leave=leave, rng=rng)]
    return taken, np.setdiff1d(pool, taken)


def _fewer(
    train: Indices, kinds: npt.NDArray[np.int64], data: Data, *, rng: np.random.Generator
) -> Indices:
    """Return as many training samples as ``train_samples`` asks for."""
    if data.train_samples is None:
        return train
    _require_at_most("train_samples", data.train_samples, len(train), data.source)
    classes = len(np.unique(kinds))
    if data.train_samples < classes:
        raise UserError(
            f"{data.source}: train_samples = {data.train_samples} is fewer than "
            f"the {classes} classes; give each at least one"
        )
    return train[stratified(kinds[train], data.train_samples, least=1, rng=rng)]


def _calibrating(
    train: Indices, kinds: npt.NDArray[np.int64], data: Data, *, rng: np.random.Generator
) -> Indices:
    """Return which of the training samples calibrate, as numbers into ``train``."""
    wanted = data.calibration_samples or min(_CALIBRATION_SAMPLES, len(train))
    _require_at_most("calibration_samples", wanted, len(train), data.source)
    return stratified(kinds[train], wanted, rng=rng)


def _checked(data: Data) -> Data:
    """Apply the rules of ``Data`` to a value that was built in Python, where msgspec checks none."""
    try:
        return msgspec.convert(msgspec.to_builtins(data), Data)
    except msgspec.ValidationError as error:
        raise UserError(f"data: {error}") from error


def _require_fit(source: Labelled, data: Data) -> None:
    """Refuse data that no network could learn from, or that would be read wrongly."""
    train, test, labels, name = source.train, source.test, source.labels, data.source
    goal, classification = data.goal, data.task == "classification"
    missing = data.clean.fills or (data.table is not None and data.table.missing)
    if classification and len(labels) < 2:
        raise UserError(f"{name}: has one class only ({labels[0]}); a classifier needs two or more")
    why_not = why_not_metric(goal.task, goal.metric, len(labels))
    if why_not is not None:
        raise UserError(f"{name}: {why_not}")
    for part, samples in (("training", train), ("test", test)):
        if samples is not None:
            _require_part(samples, part, labels, name, goal)
            _require_finite(samples.x, f"{name}: {part} part", missing=missing)
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


def _require_kept(
    kinds: npt.NDArray[np.int64],
    before: Indices,
    after: Indices,
    classes: Sequence[str],
    where: str,
) -> None:
    """Refuse a part that lost a class, or all samples where there are none, with its duplicates."""
    lost = np.setdiff1d(kinds[before], kinds[after])
    if len(lost):
        of_class = f" of class {classes[lost[0]]!r}" if classes else ""
        raise UserError(
            f"{where}: no sample{of_class} is left without duplicates; "
            f'add some or set data.clean.duplicates = "keep"'
        )


def _require_part(
    samples: EvalSet, part: str, labels: tuple[str, ...], name: str, goal: Goal
) -> None:
    if samples.x.ndim < 2:
        raise UserError(
            f"{name}: x must be (n, ...), one or more axes a sample, got {samples.x.shape}"
        )
    if math.prod(samples.x.shape) == 0:
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


def _require_finite(x: Samples, where: str, *, missing: bool = False) -> None:
    """Refuse NaN, unless values may be ``missing``, and infinity."""
    if x.dtype.kind != "f":
        return
    fit = [_are_fit(block, missing=missing) for block in blocks(x)]
    bad = np.flatnonzero(~np.concatenate(fit)) if fit else np.empty(0)
    if len(bad):
        raise UserError(
            f"{where}: {len(bad)} of {len(x)} samples hold {'' if missing else 'NaN or '}infinity, "
            f"the first at index {bad[0]}; mend them, or see data.clean for missing values"
        )


def _are_fit(block: Array, *, missing: bool) -> npt.NDArray[np.bool_]:
    fit = np.isfinite(block)
    if missing:
        fit |= np.isnan(block)
    return np.asarray(fit.reshape(len(block), -1).all(axis=1))


def _require_at_most(field: str, count: int, available: int, name: str) -> None:
    if count > available:
        raise UserError(
            f"{name}: {field} = {count} is more than the {available} training samples; "
            f"set it to {available} or fewer"
        )


class _Splitter:
    """Makes splits, all in memory or all streams."""

    def __init__(self, preprocess: Preprocess, data: Data, *, samples: int) -> None:
        self._preprocess = preprocess
        self._name = data.source
        self._reconstructs = data.task == "reconstruction"
        self._samples = samples
        self._memory_bytes = data.memory_mb * 1_000_000

    def part(self, raw: Samples, y: Array) -> Split:
        """Return samples to learn from: of a reconstruction ``y`` is what the network receives."""
        split = self.split(raw, y)
        return dataclasses.replace(split, y=split.x) if self._reconstructs else split

    def chosen(self, part: Split, numbers: Indices) -> Split:
        """Return some samples of a part."""
        x = choose(part.x, numbers)
        y = x if self._reconstructs else part.y[numbers]
        return Split(raw=choose(part.raw, numbers), x=x, y=y)

    def split(self, raw: Samples, y: Array) -> Split:
        """Return samples as the network receives them, with the truth as it is."""

        def prepare(block: Array) -> Array:
            with np.errstate(over="ignore", invalid="ignore"):  # refused below, by place
                return apply(self._preprocess, block)

        x: Samples = Mapped(raw, prepare)
        sample_bytes = x.dtype.itemsize * math.prod(x.shape[1:])
        if self._samples * sample_bytes <= self._memory_bytes:
            stream, x, end = x, np.empty(x.shape, x.dtype), 0
            for block in blocks(stream):
                x[end : end + len(block)] = block
                end += len(block)
        _require_finite(x, f"{self._name}: after preprocessing")
        return Split(raw=raw, x=x, y=y)


def _digest(task: Task, columns: Sequence[Column], parts: Sequence[npt.NDArray[np.uint64]]) -> str:
    """Return a digest of a task.

    Args:
        task: gives all but the samples.
        columns: of a table, as the samples were read.
        parts: fingerprints of the samples of each split.
    """
    about = (task.labels, task.preprocess, task.augment, columns, task.goal)
    scaling = dataclasses.astuple(task.scaling) if task.scaling is not None else None
    digest = hashlib.sha256(msgspec.json.encode((*about, scaling)))
    splits = (task.train, task.calibration, task.validation, task.test)
    for split, prints in zip(splits, parts, strict=True):
        digest.update(f"{split.raw.dtype.str} {split.raw.shape}".encode())
        # A reconstruction's y is x, which the fingerprints and the preprocessing say.
        for array in (prints,) if split.y is split.x else (prints, split.y):
            digest.update(f"{array.dtype.str} {array.shape}".encode())
            for block in blocks(array):
                digest.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
