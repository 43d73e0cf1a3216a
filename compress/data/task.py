"""What a network is asked to learn: the splits, the labels and the preprocessing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.preprocess import Preprocess

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One part of a data set.

    Attributes:
        raw: samples as the source gave them, ``(n, ...)``; what a device would receive.
        x: the same samples preprocessed, ``(n, ...)``; what the network receives.
        y: classes, int64 ``(n,)``, counted from 0.
    """

    raw: Array
    x: Array
    y: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A classification task.

    ``calibration`` is part of ``train``; ``train``, ``validation`` and ``test`` are disjoint.
    Steps and searches look at ``validation``; only the report looks at ``test``.

    Attributes:
        name: the data source, as its user wrote it.
        digest: sha256 over the samples, labels, splits and preprocessing: equal digests, equal task.
        licence: licence of the data, one line.
        labels: a name per class.
        preprocess: how ``raw`` becomes ``x``.
    """

    name: str
    digest: str
    licence: str
    labels: tuple[str, ...]
    preprocess: Preprocess
    train: Split
    calibration: Split
    validation: Split
    test: Split

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one preprocessed sample."""
        return tuple(self.train.x.shape[1:])
