"""The one training loop: every baseline and every recovery runs through it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from msgspec import Meta

from compress.data.task import Task
from compress.train.losses import (
    Loss,
    higher_is_better,
    keras_loss,
    keras_metrics,
    loss_of,
    targets,
    why_not_loss,
    why_not_watched,
)
from compress.train.optimizers import Adam, Optimizer, keras_optimizer
from compress.train.schedules import Constant, Cosine, Schedule, learning_rate
from compress.train.trainable import why_not_trained
from deploy.errors import UserError, needs_extra
from deploy.record import Record


class EarlyStopping(Record, frozen=True):
    """Stop when validation no longer improves, and go back to the best epoch's weights.

    An epoch is better when it beats the best so far by more than ``min_delta``, in the metric's
    own unit; of equals the earlier is kept. The best weights come back whether or not training
    was cut short.
    """

    patience: Annotated[int, Meta(ge=1)]
    """Epochs in a row without improvement after which training stops."""
    metric: str = "val_loss"
    """``val_loss``, or ``val_`` and what is shown beside the loss: ``accuracy``, ``label_accuracy``,
    ``mae`` or ``mse``; without ``val_`` that of the training samples."""
    min_delta: Annotated[float, Meta(ge=0)] = 0.0


class Fit(Record, frozen=True):
    """One training run."""

    epochs: Annotated[int, Meta(ge=1)]
    batch_size: Annotated[int, Meta(ge=1)] = 128
    """The last batch of an epoch holds what is left."""
    loss: Loss | None = None
    """None is that of the task: cross-entropy, binary cross-entropy of labels, or the mean squared
    error of values and reconstructions."""
    optimizer: Optimizer = Adam()
    schedule: Schedule = Constant()
    early_stopping: EarlyStopping | None = None
    """None keeps the last epoch's weights."""
    deterministic: bool = True
    """Bit-equal weights for equal seeds on one machine. TensorFlow cannot take this back: once a
    deterministic run was made, every later run of the process is deterministic too."""

    def __post_init__(self) -> None:
        if isinstance(self.schedule, Cosine) and self.schedule.warmup_epochs >= self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs must be below epochs ({self.epochs}), "
                f"got {self.schedule.warmup_epochs:g}"
            )

    def steps_per_epoch(self, samples: int) -> int:
        """Batches in an epoch over ``samples`` samples.

        >>> Fit(epochs=1, batch_size=128).steps_per_epoch(300)
        3
        """
        return math.ceil(samples / self.batch_size)


class EpochEnd(Record, frozen=True):
    """What is known when an epoch is over."""

    epoch: int
    """Counted from 1."""
    epochs: int
    """How many there will be, unless training stops early."""
    metrics: dict[str, float]
    """``loss``, the task's ``shown_metric`` and, with validation samples, both with ``val_``."""
    seconds: float
    """How long the epoch took, validation included."""


OnEpoch = Callable[[EpochEnd], None]


class History(Record, frozen=True):
    """How a training run went."""

    epochs: tuple[dict[str, float], ...]
    """The metrics of each epoch that was run, in order."""
    kept_epoch: int
    """The epoch, counted from 1, whose weights the model has now."""


def fit(
    model: Any,
    task: Task,
    config: Fit,
    *,
    seed: int,
    callbacks: Sequence[Any] = (),
    on_epoch: OnEpoch | None = None,
    keep_from: int = 1,
) -> History:
    """Train a Keras model in place on ``task.train``, watching ``task.validation``.

    Prints nothing. Python's, numpy's and TensorFlow's global generators are seeded, because Keras
    draws from all three. The optimizer is made anew; the model's own is dropped.

    Args:
        model: a tf-keras model whose outputs are those of the task; compiled or not.
        task: what to learn. The test split is not touched.
        config: how to learn it.
        seed: of shuffling, dropout and everything else that is drawn while training.
        callbacks: further Keras callbacks; at the end of an epoch they run first, so that what
            they do to the weights is in the weights that are kept.
        on_epoch: told about the end of each epoch.
        keep_from: first epoch, counted from 1, that early stopping may judge and keep.

    Raises:
        UserError: if the batch is larger than the training split, early stopping has no
            validation samples, the model does not give the task's outputs, the loss or a watched
            metric does not fit the task, or the loss or a weight becomes infinite or NaN; the model's weights are worthless then.
    """
    with needs_extra("compress"):
        import tensorflow as tf
        import tf_keras

    why_not = _why_not_fitted(task, config) or why_not_trained(model, task)
    if why_not is not None:
        raise UserError(why_not)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    tf_keras.utils.set_random_seed(seed)
    rate = learning_rate(
        config.schedule,
        config.optimizer.learning_rate,
        epochs=config.epochs,
        steps_per_epoch=config.steps_per_epoch(len(task.train)),
    )
    model.compile(
        optimizer=keras_optimizer(config.optimizer, rate),
        loss=keras_loss(loss_of(config.loss, task), task),
        metrics=keras_metrics(task),
    )
    run = _Run(model, config, on_epoch, keep_from)
    watch = tf_keras.callbacks.LambdaCallback(
        on_epoch_begin=run.begin_epoch, on_batch_end=run.end_step, on_epoch_end=run.end_epoch
    )
    model.fit(
        task.train.x,
        targets(task, task.train.y),
        batch_size=config.batch_size,
        epochs=config.epochs,
        validation_data=(task.validation.x, targets(task, task.validation.y))
        if len(task.validation)
        else None,
        callbacks=[*callbacks, watch],
        verbose=0,
    )
    return run.finish()


class _Run:
    """What is remembered between the epochs of one training run."""

    def __init__(self, model: Any, config: Fit, on_epoch: OnEpoch | None, keep_from: int) -> None:
        self.model = model
        self.config = config
        self.on_epoch = on_epoch
        self.keep_from = keep_from
        self.history: list[dict[str, float]] = []
        self.best_epoch: int | None = None
        self.best_weights: list[Any] = []

    def begin_epoch(self, _epoch: int, _logs: Any) -> None:
        self.started = time.perf_counter()

    def end_step(self, step: int, logs: dict[str, float]) -> None:
        self._require_finite("loss", logs["loss"], f"step {step + 1}")

    def end_epoch(self, _epoch: int, logs: dict[str, float]) -> None:
        metrics = {name: float(value) for name, value in logs.items()}
        if "val_loss" in metrics:
            self._require_finite("val_loss", metrics["val_loss"], "its end")
        for weight in self.model.trainable_weights:
            # A fused ReLU turns NaN into 0: the loss can stay finite over worthless weights.
            self._require_finite(weight.name, float(weight.numpy().sum()), "its end")
        self.history.append(metrics)
        if self.on_epoch is not None:
            seconds = time.perf_counter() - self.started
            epoch = len(self.history)
            self.on_epoch(
                EpochEnd(epoch=epoch, epochs=self.config.epochs, metrics=metrics, seconds=seconds)
            )
        if self.config.early_stopping is not None:
            self._keep_best(self.config.early_stopping)

    def finish(self) -> History:
        kept_epoch = len(self.history)
        if self.best_epoch is not None:
            kept_epoch = self.best_epoch
            self.model.set_weights(self.best_weights)
        return History(epochs=tuple(self.history), kept_epoch=kept_epoch)

    def _keep_best(self, stopping: EarlyStopping) -> None:
        epoch = len(self.history)
        if epoch < self.keep_from:
            return
        if self.best_epoch is None or self._gain(stopping, self.best_epoch) > stopping.min_delta:
            self.best_epoch, self.best_weights = epoch, self.model.get_weights()
        elif epoch - self.best_epoch >= stopping.patience:
            self.model.stop_training = True

    def _gain(self, stopping: EarlyStopping, best_epoch: int) -> float:
        """By how much the last epoch beats the best one; above 0 is better."""
        gain = self.history[-1][stopping.metric] - self.history[best_epoch - 1][stopping.metric]
        return gain if higher_is_better(stopping.metric) else -gain

    def _require_finite(self, name: str, value: float, where: str) -> None:
        if not math.isfinite(value):
            rate = float(self.model.optimizer.learning_rate)
            raise UserError(
                f"training: {name} became {value} in epoch {len(self.history) + 1} at {where} "
                f"with learning rate {rate:.3g}; lower optimizer.learning_rate, "
                "add warm-up epochs, or look for NaN and unscaled values in the data"
            )


def _why_not_fitted(task: Task, config: Fit) -> str | None:
    """Say why this task cannot be learned like this, or None if it can."""
    if config.batch_size > len(task.train):
        return (
            f"batch_size: {config.batch_size} is more than the {len(task.train)} training samples "
            f"of {task.name}; give a smaller batch_size or more samples"
        )
    why_not = why_not_loss(loss_of(config.loss, task), task)
    if why_not is not None:
        return why_not
    if config.early_stopping is None:
        return None
    why_not = why_not_watched(config.early_stopping.metric, task)
    if why_not is not None:
        return f"early_stopping.metric: {why_not}"
    if config.early_stopping.metric.startswith("val_") and not len(task.validation):
        return (
            f"early_stopping: {config.early_stopping.metric} needs validation samples and "
            f"{task.name} has none; raise data.validation_fraction or leave early_stopping out"
        )
    return None
