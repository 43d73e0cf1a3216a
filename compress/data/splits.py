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
from compress.data.task import Split, Task
from deploy.errors import UserError
from deploy.evalset import EvalSet
from deploy.preprocess import Column, ImageSize, Preprocess, apply
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

    The source's own test part stays whole. Every other cut is stratified: each class keeps its
    share and is in every part (calibration alone may be too small for that).

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
    if test is None:
        taken, rest = _cut(samples.y, rest, source, data, field="test_fraction", rng=rng)
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
        validation, train = _cut(
            samples.y, rest, source, data, field="validation_fraction", rng=rng
        )
    kept_train, kept_validation, leaks = without_leaks(
        train, validation, prints=prints, test=test_prints, clean=data.clean, name=data.source
    )
    _require_kept(samples.y, train, kept_train, source.labels, f"{data.source}: training part")
    _require_kept(
        samples.y, validation, kept_validation, source.labels, f"{data.source}: validation part"
    )
    train, validation = kept_train, kept_validation
    if data.train_samples is not None:
        _require_at_most("train_samples", data.train_samples, len(train), data.source)
        if data.train_samples < len(source.labels):
            raise UserError(
                f"{data.source}: train_samples = {data.train_samples} is fewer than "
                f"the {len(source.labels)} classes; give each at least one"
            )
        train = train[stratified(samples.y[train], data.train_samples, least=1, rng=rng)]
    wanted = data.calibration_samples or min(_CALIBRATION_SAMPLES, len(train))
    _require_at_most("calibration_samples", wanted, len(train), data.source)
    calibrating = stratified(samples.y[train], wanted, rng=rng)

    front, x, test_x = _front(source, test.x, train, data)
    with np.errstate(over="ignore", invalid="ignore"):  # refused below, by place
        preprocess = fit_preprocess(
            data.preprocess, choose(x, train), clean=data.clean, front=front
        )
    make = _Splitter(preprocess, data, samples=len(train) + len(validation) + len(test.y))
    train_split = make.split(choose(x, train), samples.y[train])
    why_not = why_not_augmented(data.augment, train_split.x.shape[1:])
    if why_not is not None:
        raise UserError(f"{data.source}: {why_not}")
    task = Task(
        name=data.source,
        digest="",
        licence=source.licence,
        labels=source.labels,
        preprocess=preprocess,
        train=train_split,
        calibration=Split(
            raw=choose(train_split.raw, calibrating),
            x=choose(train_split.x, calibrating),
            y=train_split.y[calibrating],
        ),
        validation=make.split(choose(x, validation), samples.y[validation]),
        test=make.split(test_x, test.y),
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


def _cut(
    y: npt.NDArray[np.int64],
    pool: Indices,
    source: Labelled,
    data: Data,
    *,
    field: Literal["test_fraction", "validation_fraction"],
    rng: np.random.Generator,
) -> tuple[Indices, Indices]:
    """Split ``pool`` into the part that ``field`` asks for and the rest, every class in both."""
    fraction: float = getattr(data, field)
    leave = 2 if field == "test_fraction" else 1  # the rest is cut once more after the test part
    count, classes = round(fraction * len(pool)), len(source.labels)
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


def _require_fit(source: Labelled, data: Data) -> None:
    """Refuse data that no network could learn from, or that would be read wrongly."""
    train, test, labels, name = source.train, source.test, source.labels, data.source
    missing = data.clean.fills or (data.table is not None and data.table.missing)
    if len(labels) < 2:
        raise UserError(f"{name}: has one class only ({labels[0]}); a classifier needs two or more")
    for part, samples in (("training", train), ("test", test)):
        if samples is None:
            continue
        if samples.x.ndim < 2:
            raise UserError(
                f"{name}: x must be (n, ...), one or more axes a sample, got {samples.x.shape}"
            )
        if math.prod(samples.x.shape) == 0:
            raise UserError(
                f"{name}: samples must hold one value or more, got x {samples.x.shape}; "
                f"an axis of 0 leaves nothing to learn from"
            )
        if samples.y.max() >= len(labels):
            index = int(np.argmax(samples.y >= len(labels)))
            raise UserError(
                f"{name}: classes of the {part} part must be 0 to {len(labels) - 1}, "
                f"got {samples.y[index]} at index {index} of y"
            )
        _require_finite(samples.x, f"{name}: {part} part", missing=missing)
    if test is not None and (test.x.shape[1:], test.x.dtype) != (train.x.shape[1:], train.x.dtype):
        raise UserError(
            f"{name}: samples of both parts must be alike, got {train.x.dtype} "
            f"{train.x.shape[1:]} for training and {test.x.dtype} {test.x.shape[1:]} for test"
        )
    needed = 2 if test is not None else 3
    counts = np.bincount(train.y, minlength=len(labels))
    if counts.min() < needed:
        parts = "training and validation" if needed == 2 else "training, validation and test"
        raise UserError(
            f"{name}: class {labels[int(counts.argmin())]!r} has {counts.min()} samples, "
            f"it needs {needed}: one each for {parts}"
        )


def _require_kept(
    y: npt.NDArray[Any], before: Indices, after: Indices, labels: Sequence[str], where: str
) -> None:
    """Refuse a part that lost a class with its duplicates."""
    if len(after) == len(before) or y.ndim > 1 or y.dtype.kind not in "iu":
        return
    lost = np.setdiff1d(y[before], y[after])
    if len(lost):
        raise UserError(
            f"{where}: no sample of class {labels[lost[0]]!r} is left without duplicates; "
            f'add some or set data.clean.duplicates = "keep"'
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
        self._samples = samples
        self._memory_bytes = data.memory_mb * 1_000_000

    def split(self, raw: Samples, y: npt.NDArray[np.int64]) -> Split:
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
    about = (task.labels, task.preprocess, task.augment, columns)
    digest = hashlib.sha256(msgspec.json.encode(about))
    splits = (task.train, task.calibration, task.validation, task.test)
    for split, prints in zip(splits, parts, strict=True):
        digest.update(f"{split.raw.dtype.str} {split.raw.shape}".encode())
        for array in (prints, split.y):
            digest.update(f"{array.dtype.str} {array.shape}".encode())
            for block in blocks(array):
                digest.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
