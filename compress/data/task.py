"""What a network is asked to learn: the splits, the labels and the preprocessing."""

from __future__ import annotations

from dataclasses import dataclass

from compress.data.augment import Augment
from deploy.preprocess import Preprocess
from deploy.record import Goal, TaskKind
from deploy.streams import Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One part of a data set.

    ``raw`` and ``x`` are arrays, or streams where they would not fit into memory: index them. So is
    ``y`` of a reconstruction; any other ``y`` is an array.

    Attributes:
        raw: samples as the source gave them, ``(n, ...)``; what a device would receive.
        x: the same samples preprocessed, ``(n, ...)``; what the network receives.
        y: the truth about them: classes counted from 0, int64 ``(n,)``; labels, int64
            ``(n, labels)`` of 0 and 1; values of targets, float32 ``(n, targets)``; of a
            reconstruction ``x`` itself, but for the test part 1 where a sample is an anomaly, int64
            ``(n,)``.
    """

    raw: Samples
    x: Samples
    y: Samples

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How far the targets of a regression lie from 0, and how far apart: one number a target."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task: what to learn, from what, and by what it is judged.

    ``calibration`` is part of ``train``; ``train``, ``validation`` and ``test`` are disjoint.
    Steps and searches look at ``validation``; only the report looks at the truth of ``test``.

    Attributes:
        name: the data source, as its user wrote it.
        digest: sha256 over the samples, labels, splits, preprocessing, augmentation, goal and
            scaling: equal digests, equal task.
        licence: licence of the data, one line.
        labels: a name per class, label or target; of a reconstruction those of a normal and of an
            anomalous sample.
        preprocess: how ``raw`` becomes ``x``.
        augment: what training does to its batches of ``train.x``.
        notes: what a reader of results has to know of the data, one line each.
        goal: the kind of task and the metric that decides.
        scaling: mean and standard deviation of a regression's targets in the training part; None
            where they are learned as they are.
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
    goal: Goal = Goal()
    scaling: Scaling | None = None

    @property
    def kind(self) -> TaskKind:
        """The kind of task."""
        return self.goal.task

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of what a network gives for one sample."""
        return self.input_shape if self.kind == "reconstruction" else (len(self.labels),)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one preprocessed sample."""
        return tuple(self.train.x.shape[1:])
