"""A whole data set as its source gave it, before any split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deploy.errors import UserError
from deploy.evalset import EvalSet
from deploy.preprocess import Column
from deploy.record import TaskKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """The parts, labels and licence of a data set.

    Attributes:
        train: the samples to learn from; of all samples, where the source has one part only.
        test: the source's own test part, or None where it has none.
        labels: a name per class, label or target.
        licence: licence of the data, one line; "unknown" where the source does not say.
        columns: of a table, with every category of its parts, in the order of the codes in ``x``.
    """

    train: EvalSet
    test: EvalSet | None
    labels: tuple[str, ...]
    licence: str = "unknown"
    columns: tuple[Column, ...] = ()


def numbered_labels(part: EvalSet, *, where: str) -> tuple[str, ...]:
    """Name the classes of a part by their numbers.

    Raises:
        UserError: if a number below the largest does not occur.

    >>> numbered_labels(EvalSet(x=np.zeros((3, 1)), y=np.array([0, 1, 0])), where="here")
    ('0', '1')
    """
    present = np.unique(part.y)
    if present[-1] >= len(present):  # a gap: refused before a label 2**62 asks for that many names
        absent = int(np.argmax(present != np.arange(len(present))))
        raise UserError(
            f"{where}: classes count from 0 without a gap, got none of class {absent} "
            f"and a largest of {present[-1]}; number them anew"
        )
    return tuple(str(number) for number in present)


def numbered_outputs(part: EvalSet, task: TaskKind) -> tuple[str, ...]:
    """Name the labels or targets of a part, ``y`` ``(n, outputs)``, by their numbers.

    >>> part = EvalSet(x=np.zeros((3, 1)), y=np.zeros((3, 2)))
    >>> numbered_outputs(part, "regression")
    ('target 0', 'target 1')
    """
    outputs, noun = part.y.shape[1], "target" if task == "regression" else "label"
    return (noun,) if outputs == 1 else tuple(f"{noun} {number}" for number in range(outputs))
