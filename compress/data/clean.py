"""What is put right before anything is learned: missing values, repeated samples, outliers."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from compress.data.labelled import Labelled
from deploy.errors import UserError
from deploy.evalset import EvalSet
from deploy.preprocess import MISSING_MARKS
from deploy.record import Record
from deploy.streams import Samples, blocks, choose

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Prints = npt.NDArray[np.uint64]


class Outliers(Record, frozen=True):
    """The range that values are brought into; exactly one of the two. Categories have none."""

    quantile: Annotated[float, Meta(gt=0, lt=0.5)] | None = None
    """From this quantile of the training part to one minus it."""
    sigma: Annotated[float, Meta(gt=0)] | None = None
    """As many standard deviations of the training part around its mean."""

    def __post_init__(self) -> None:
        if (self.quantile is None) == (self.sigma is None):
            raise ValueError("outliers needs quantile or sigma, one of them")


class Clean(Record, frozen=True):
    """What is put right in the samples. The rules that a device needs go into the preprocessing."""

    missing: Literal["refuse", "drop", "mean", "median", "constant"] = "refuse"
    """What happens to a missing value: the sample is dropped, or the value is filled with the mean
    or median of its column in the training part, or with ``missing_value``. A category is filled
    with the most frequent one. What is dropped in training is refused on a device."""
    missing_value: float | None = None
    """What ``missing = "constant"`` fills with."""
    missing_marks: tuple[str, ...] = MISSING_MARKS
    """The texts of a ``csv:`` that stand for a missing value."""
    duplicates: Literal["keep", "drop"] = "keep"
    """``drop`` keeps the first of samples that are equal, label and all, and takes from training and
    validation every sample that is also in the test part, and from training what is in validation.
    ``keep`` warns of them."""
    outliers: Outliers | None = None
    """None leaves them."""

    def __post_init__(self) -> None:
        if (self.missing == "constant") != (self.missing_value is not None):
            raise ValueError(
                f'missing_value goes with missing = "constant" and the other way round, '
                f"got missing = {self.missing!r} and missing_value = {self.missing_value}"
            )

    @property
    def fills(self) -> bool:
        """Whether missing values are filled, by a device too."""
        return self.missing in {"mean", "median", "constant"}


def without_missing(source: Labelled, clean: Clean, name: str) -> tuple[Labelled, list[str]]:
    """Return a source without the samples that lack a value, if those are to be dropped.

    Returns:
        The source, and a note for each part that lost samples.

    Raises:
        UserError: if a part has no other samples.
    """
    if clean.missing != "drop":
        return source, []
    notes: list[str] = []

    def kept(part: EvalSet, called: str) -> EvalSet:
        lacking = lacks_value(part.x)
        if not lacking.any():
            return part
        if lacking.all():
            raise UserError(f"{name}: every sample of the {called} part lacks a value; fill them")
        notes.append(
            f"{name}: {lacking.sum()} of {len(lacking)} samples of the {called} part were dropped, "
            f"because they lack a value: nothing is known of how well such samples are answered"
        )
        numbers = np.flatnonzero(~lacking)
        return EvalSet(x=choose(part.x, numbers), y=part.y[numbers])

    train = kept(source.train, "training")
    test = kept(source.test, "test") if source.test is not None else None
    return dataclasses.replace(source, train=train, test=test), notes


def lacks_value(samples: Samples) -> Mask:
    """Say which samples hold NaN, ``(n,)``."""
    if samples.dtype.kind != "f":
        return np.zeros(len(samples), np.bool_)
    found = [np.isnan(block).reshape(len(block), -1).any(axis=1) for block in blocks(samples)]
    return np.concatenate(found) if found else np.zeros(0, np.bool_)


def fingerprints(samples: Samples) -> Prints:
    """Return 16 bytes for each sample, ``(n, 2)``: equal samples have equal ones, others do not."""
    digests = [
        hashlib.blake2b(sample.data, digest_size=16).digest()
        for block in blocks(samples)
        for sample in np.ascontiguousarray(block).reshape(len(block), -1).view(np.uint8)
    ]
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)


def repeats(prints: Prints, y: Array) -> Mask:
    """Say which samples repeat an earlier one, label and all, ``(n,)``.

    >>> prints = np.array([[1, 1], [1, 1], [1, 1], [2, 1]], np.uint64)
    >>> repeats(prints, np.array([0, 1, 0, 0])).tolist()
    [False, False, True, False]
    """
    _, answers = np.unique(y, axis=0, return_inverse=True)
    order = np.lexsort((np.arange(len(y)), answers.reshape(-1), prints[:, 1], prints[:, 0]))
    rows = np.column_stack([prints[order], answers.reshape(-1)[order].astype(np.uint64)])
    found = np.zeros(len(y), np.bool_)
    found[order[1:]] = (rows[1:] == rows[:-1]).all(axis=1)
    return found


def also_in(prints: Prints, others: Prints) -> Mask:
    """Say which samples are among others, whatever their labels, ``(n,)``."""
    known = np.unique(others[:, 0])
    candidates = np.isin(prints[:, 0], known)
    whole = {row.tobytes() for row in others[np.isin(others[:, 0], prints[candidates, 0])]}
    found = np.zeros(len(prints), np.bool_)
    for place in np.flatnonzero(candidates):
        found[place] = prints[place].tobytes() in whole
    return found


def without_leaks(
    train: npt.NDArray[np.int64],
    validation: npt.NDArray[np.int64],
    *,
    prints: Prints,
    test: Prints,
    clean: Clean,
    name: str,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], list[str]]:
    """Take from training and validation what is also in the test part, or say that it is there.

    Args:
        train: numbers of the training samples.
        validation: numbers of the validation samples.
        prints: fingerprints of the samples that those numbers count.
        test: fingerprints of the test part.
        clean: says whether to take them out.
        name: of the data.

    Returns:
        Both parts, and notes on what was found.
    """
    drop, notes = clean.duplicates == "drop", []
    for called in ("validation", "training"):
        numbers, judges = (validation, test) if called == "validation" else (train, test)
        leaked = also_in(prints[numbers], judges)
        if called == "training" and drop:
            leaked |= also_in(prints[numbers], prints[validation])
        if not leaked.any():
            continue
        if drop:
            where = "test" if called == "validation" else "test or validation"
            notes.append(
                f"{name}: {leaked.sum()} {called} samples were dropped, because the same samples are "
                f"in the {where} part"
            )
            if called == "validation":
                validation = validation[~leaked]
            else:
                train = train[~leaked]
        else:
            notes.append(
                f"{name}: {leaked.sum()} {called} samples are equal to samples of the test part: if they "
                f"are copies, what is said of unseen samples is too good; set "
                f'data.clean.duplicates = "drop"'
            )
    return train, validation, notes
