"""What a network is asked to learn: the splits, the labels and the preprocessing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compress.data.augment import Augment
from deploy.preprocess import Preprocess
from deploy.streams import Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One part of a data set.

    ``raw`` and ``x`` are arrays, or streams where they would not fit into memory: index them.

    Attributes:
        raw: samples as the source gave them, ``(n, ...)``; what a device would receive.
        x: the same samples preprocessed, ``(n, ...)``; what the network receives.
        y: classes, int64 ``(n,)``, counted from 0.
    """

    raw: Samples
    x: Samples
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
        digest: sha256 over the samples, labels, splits, preprocessing and augmentation: equal
            digests, equal task.
        licence: licence of the data, one line.
        labels: a name per class.
        preprocess: how ``raw`` becomes ``x``.
        augment: what training does to its batches of ``train.x``.
        notes: what a reader of results has to know of the data, one line each.
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
    augment: tuple[Augment, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one preprocessed sample."""
        return tuple(self.train.x.shape[1:])
