"""Train a network of one's choice, smaller as a rule, with the baseline as its teacher."""

from __future__ import annotations

from typing import Any

from compress.data.task import Task
from compress.networks import Network
from compress.prune.copied import copied
from compress.train.fit import Fit, History, OnEpoch, TrainingFiles, fit
from compress.train.teacher import Distillation, Teacher
from compress.train.trainable import network_for
from deploy.record import Record


class Distill(Record, frozen=True, tag_field="kind", tag="distill"):
    """Train a network that listens to the baseline: Hinton et al., "Distilling" (2015)."""

    train: Fit
    """How it trains."""
    network: Network | None = None
    """The network that learns, from scratch; None trains the variant it comes from further."""
    distill: Distillation = Distillation()
    """What of the baseline it listens to."""


def distill(
    model: Any,
    step: Distill,
    task: Task,
    *,
    seed: int,
    teacher: Teacher | None = None,
    on_epoch: OnEpoch | None = None,
    files: TrainingFiles | None = None,
) -> tuple[Any, History]:
    """Return a model that was trained with a teacher, and how its training went.

    Args:
        model: what is trained further if the step names no network; left alone.
        step: which network, and how it trains.
        task: what it learns.
        seed: of the first weights and of the training.
        teacher: whose answers count beside the truth; None is the control, the same training
            without one.
        on_epoch: told about the end of each epoch.
        files: what the training leaves on disk meanwhile.

    Raises:
        UserError: as ``networks.build``, if the model cannot be copied, or as ``fit`` does.
    """
    student = network_for(task, step.network, seed=seed) if step.network else copied(model)
    history = fit(
        student, task, step.train, seed=seed, teacher=teacher, on_epoch=on_epoch, files=files
    )
    return student, history
