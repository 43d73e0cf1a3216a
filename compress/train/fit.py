"""The one training loop: every baseline and every recovery runs through it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from compress.data.augment import augment_batch
from compress.data.task import Split, Task
from compress.train.batches import Batch, ahead, cut, read_batch
from compress.train.checkpoint import (
    EpochEnd,
    Standing,
    TrainingFiles,
    fingerprint,
    read_checkpoint,
    write_checkpoint,
)
from compress.train.distribute import Worker
from compress.train.draws import order
from compress.train.hearing import Telling
from compress.train.logs import TensorBoard, write_csv
from compress.train.losses import (
    Loss,
    higher_is_better,
    keras_loss,
    keras_metrics,
    loss_of,
    why_not_loss,
)
from compress.train.optimizers import Adam, AdamW, GradientDescent, Optimizer, momentum_name
from compress.train.regularise import Regularise, why_not_dropped
from compress.train.schedules import (
    Constant,
    OneCycle,
    Plateau,
    Schedule,
    learning_rate,
    momentum,
    why_not_scheduled,
)
from compress.train.step import Augment, Step
from compress.train.teacher import Lesson, Teacher, why_not_taught
from compress.train.trainable import why_not_trained
from deploy.errors import UserError, needs_extra
from deploy.machine import this_environment
from deploy.record import Record

__all__ = [
    "EarlyStopping",
    "EpochEnd",
    "Fit",
    "History",
    "OnEpoch",
    "Training",
    "TrainingFiles",
    "fit",
    "make_step",
]

_STEPS_BETWEEN_LOOKS = 20
"""Losses are looked at together: a look waits for an accelerator to finish."""


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
    regularise: Regularise = Regularise()
    early_stopping: EarlyStopping | None = None
    """None keeps the last epoch's weights."""
    deterministic: bool = True
    """Bit-equal weights for equal seeds on one machine. TensorFlow cannot take this back: once a
    deterministic run was made, every later run of the process is deterministic too."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What TensorFlow computes in where it holds that safe; weights stay float32. ``bfloat16`` needs
    a processor with AVX512-BF16 or AMX."""
    xla: bool = False
    """Compile each step with XLA: a longer start, and faster steps of networks with many small
    operations."""

    def __post_init__(self) -> None:
        why_not = why_not_scheduled(self.schedule, epochs=self.epochs)
        if why_not is not None:
            raise ValueError(why_not)
        if isinstance(self.optimizer, AdamW) and self.regularise.weight_decay:
            raise ValueError(
                "regularise.weight_decay is adamw's own weight_decay; set optimizer.weight_decay"
            )
        if self._moves_momentum and momentum_name(self.optimizer) is None:
            raise ValueError(
                "schedule.momentum needs an optimizer with momentum: adam, adamw, or sgd with a "
                "momentum above 0"
            )

    @property
    def _moves_momentum(self) -> bool:
        return isinstance(self.schedule, OneCycle) and self.schedule.momentum is not None

    def batches_per_epoch(self, samples: int) -> int:
        """Batches in an epoch over ``samples`` samples: how often the network is computed.

        >>> Fit(epochs=1, batch_size=128).batches_per_epoch(300)
        3
        """
        return math.ceil(samples / self.batch_size)

    def steps_per_epoch(self, samples: int) -> int:
        """Steps of the optimizer in an epoch: its batches, but one of full-batch descent."""
        full = isinstance(self.optimizer, GradientDescent)
        return 1 if full else self.batches_per_epoch(samples)


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
    teacher: Teacher | None = None,
    callbacks: Sequence[Any] = (),
    on_epoch: OnEpoch | None = None,
    keep_from: int = 1,
    files: TrainingFiles | None = None,
    worker: Worker | None = None,
) -> History:
    """Train a Keras model in place on ``task.train``, watching ``task.validation``.

    Prints nothing. Python's, numpy's and TensorFlow's global generators are seeded, because a
    network's own code may draw from them; what the loop and Keras' layers draw depends on the seed
    and the step alone. The optimizer is made anew; the model's own is dropped.

    A training whose checkpoint is found goes on from there; in deterministic mode it ends with the
    very weights of one that was never stopped.

    Args:
        model: a tf-keras model whose outputs are those of the task; compiled or not.
        task: what to learn. The test split is not touched.
        config: how to learn it.
        seed: of shuffling, dropout and everything else that is drawn while training.
        teacher: whose answers count beside the truth; None is the truth alone.
        callbacks: further Keras callbacks; at the end of an epoch they run first, so that what
            they do to the weights is in the weights that are kept. What they remember outside the
            model's variables is not in a checkpoint.
        on_epoch: told about the end of each epoch; what it raises ends the training.
        keep_from: first epoch, counted from 1, that early stopping may judge and keep.
        files: what is left on disk meanwhile; None leaves nothing.
        worker: which part of each batch is computed here, inside ``distribute.joined``; None is all
            of it. What it reports is the same at every worker; the first one's checkpoint counts.

    Raises:
        UserError: if the batch is larger than the training split, early stopping or the schedule
            watch a metric that there is not, the model or the teacher does not give the task's
            outputs, the loss does not fit the task, something that was asked for does not work with this network or
            machine, or the loss or a weight becomes infinite or NaN; the model's weights are
            worthless then.
    """
    with needs_extra("compress"):
        import tensorflow as tf
        import tf_keras

    worker = worker or Worker()
    why_not = (
        why_not_fitted(task, config)
        or _why_not_shared(worker, task, config)
        or why_not_trained(model, task)
        or why_not_dropped(model, config.regularise)
        or why_not_taught(model, teacher, task)
    )
    if why_not is not None:
        raise UserError(why_not)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    tf_keras.utils.set_random_seed(seed)
    step = make_step(model, task, config, seed=seed, teacher=teacher)
    names = [metric.name for metric in model.metrics]
    why_not = _why_not_watched(names, task, config)
    if why_not is not None:
        raise UserError(why_not)
    training = Training(
        step,
        task=task,
        config=config,
        seed=seed,
        teacher=teacher,
        callbacks=callbacks,
        on_epoch=on_epoch,
        keep_from=keep_from,
        files=files or TrainingFiles(),
        worker=worker,
    )
    with _computing_in(config.precision), contextlib.closing(step):
        return training.run()


def make_step(
    model: Any, task: Task, config: Fit, *, seed: int, teacher: Teacher | None = None
) -> Step:
    """Return what one batch of a task does to a model."""
    example = read_batch(task, task.train, np.arange(1))
    lesson = (
        partial(Lesson, teacher, model, task, example=example[0], seed=seed) if teacher else None
    )
    return Step(
        model,
        optimizer=config.optimizer,
        regularise=config.regularise,
        loss=keras_loss(loss_of(config.loss, task), task),
        metrics=keras_metrics(task),
        seed=seed,
        example=example,
        augment=_augment(task),
        lesson=lesson,
        moves_momentum=config._moves_momentum,  # noqa: SLF001  # of this file
        xla=config.xla,
    )


class Training:
    """One training run: where it stands, and how it gets on from there."""

    def __init__(
        self,
        step: Step,
        *,
        task: Task,
        config: Fit,
        seed: int,
        teacher: Teacher | None,
        callbacks: Sequence[Any],
        on_epoch: OnEpoch | None,
        keep_from: int,
        files: TrainingFiles,
        worker: Worker,
    ) -> None:
        import tf_keras

        self.step = step
        self.model = step.model
        self.task = task
        self.config = config
        self.seed = seed
        self.teacher = teacher
        self.callbacks = tf_keras.callbacks.CallbackList(list(callbacks), model=step.model)
        self.on_epoch = on_epoch
        self.keep_from = keep_from
        self.files = files
        self.worker = worker
        self.ends: list[EpochEnd] = []
        self.best_epoch: int | None = None
        self.best_weights: list[Any] = []
        self.steps_per_epoch = config.steps_per_epoch(len(task.train))
        self.losses: list[tuple[int, Any]] = []
        """Of the steps, counted from 0, that were not looked at yet."""
        self.between_steps = False
        """Whether weights, metrics and epochs agree, so that they can be written down."""
        self.saved_at = time.monotonic()
        self.saving_seconds = 0.0
        self.telling = Telling()
        self.last_loss: float | None = None

    def run(self) -> History:
        """Train to the end; return how it went."""
        self.begin()
        board = TensorBoard(self.files.tensorboard) if self.files.tensorboard else None
        try:
            while not self._over():
                self.epoch()
                if board is not None:
                    board.write(self.ends[-1])
        except KeyboardInterrupt:
            if self.between_steps and self.worker.count == 1:  # others may be at another step
                self._save()
            raise
        finally:
            if board is not None:
                board.close()
        self.callbacks.on_train_end()
        kept_epoch = len(self.ends)
        if self.best_epoch is not None:
            kept_epoch = self.best_epoch
            self._set_weights(self.best_weights)
        return History(epochs=tuple(end.metrics for end in self.ends), kept_epoch=kept_epoch)

    def begin(self) -> None:
        """Stand where the training begins, or where its checkpoint does."""
        self.model.stop_training = False
        self.callbacks.on_train_begin()
        self._resume()

    @property
    def history(self) -> list[dict[str, float]]:
        """The metrics of the epochs that are over."""
        return [end.metrics for end in self.ends]

    def epoch(self) -> None:
        """Make what is left of an epoch, and look at what it brought."""
        epoch, started = len(self.ends), time.perf_counter()
        done = self.step.steps - epoch * self.steps_per_epoch
        if done == 0:
            self.step.reset()
        self.callbacks.on_epoch_begin(epoch)
        self.between_steps = True
        if isinstance(self.config.optimizer, GradientDescent):
            if done == 0:
                self._descend(epoch)
        else:
            self._steps(epoch, done)
        self._look_at_losses()
        self.between_steps = False
        metrics = self._metrics()
        self.callbacks.on_epoch_end(epoch, dict(metrics))
        end = EpochEnd(
            epoch=epoch + 1,
            epochs=self.config.epochs,
            metrics=metrics,
            seconds=time.perf_counter() - started,
            learning_rate=self._rate(self.step.steps - 1),
        )
        self.ends.append(end)
        if self.files.csv is not None:
            write_csv(self.files.csv, self.ends)
        if self.config.early_stopping is not None:
            self._keep_best(self.config.early_stopping)
        self.between_steps = True
        if self.on_epoch is not None:
            self.on_epoch(msgspec.structs.replace(end, last=self._over()))

    def _steps(self, epoch: int, done: int) -> None:
        """Make the steps of an epoch that are not ``done`` yet, one a batch."""
        train = self.task.train
        parts = cut(order(len(train), seed=self.seed, epoch=epoch), self.config.batch_size)[done:]
        batches = self._read(train, parts)
        with contextlib.closing(batches):  # type: ignore[type-var]  # a generator
            for index, (x, y) in enumerate(batches, start=done):
                at = epoch * self.steps_per_epoch + index
                self.callbacks.on_train_batch_begin(index)
                loss = self.step.update(
                    x,
                    y,
                    samples=len(parts[index - done]),
                    at=at,
                    rate=self._rate(at),
                    momentum=self._momentum(at),
                )
                self.losses.append((at, loss))
                self.callbacks.on_train_batch_end(index)
                if len(self.losses) >= _STEPS_BETWEEN_LOOKS:
                    self._look_at_losses()
                self._save_if_due()
                self._tell_if_due(index + 1)

    def _descend(self, epoch: int) -> None:
        """Make the one step of an epoch of full-batch descent."""
        train = self.task.train
        parts = cut(np.arange(len(train)), self.config.batch_size)
        self.step.forget_sums()
        self.callbacks.on_train_batch_begin(0)
        batches = self._read(train, parts)
        with contextlib.closing(batches):  # type: ignore[type-var]  # a generator
            for index, (x, y) in enumerate(batches):
                samples = len(parts[index])
                at, share = epoch * len(parts) + index, samples / len(train)
                loss = self.step.accumulate(x, y, samples=samples, at=at, share=share)
                self.losses.append((epoch, loss))
                self._tell_if_due(index + 1)
        self.step.descend(rate=self._rate(epoch), momentum=self._momentum(epoch))
        self.callbacks.on_train_batch_end(0)
        self._save_if_due()

    def _read(self, split: Split, parts: Sequence[npt.NDArray[np.int64]]) -> Iterator[Batch]:
        """Yield what this worker computes of each batch."""
        own = [self.worker.part(part) for part in parts]
        return ahead(partial(read_batch, self.task, split), own)

    def _rate(self, at: int) -> float:
        return learning_rate(
            self.config.schedule,
            self.config.optimizer.learning_rate,
            at,
            epochs=self.config.epochs,
            steps_per_epoch=self.steps_per_epoch,
            history=self.history if isinstance(self.config.schedule, Plateau) else (),
        )

    def _momentum(self, at: int) -> float | None:
        return momentum(
            self.config.schedule,
            at,
            epochs=self.config.epochs,
            steps_per_epoch=self.steps_per_epoch,
        )

    def _metrics(self) -> dict[str, float]:
        """Return the metrics of the epoch whose steps are over; look at validation for them."""
        metrics = {**self.step.metrics(), **self.step.means()}
        if len(self.task.validation):
            self.step.reset()
            parts = cut(np.arange(len(self.task.validation)), self.config.batch_size)
            batches = self._read(self.task.validation, parts)
            with contextlib.closing(batches):  # type: ignore[type-var]  # a generator
                for part, (x, y) in zip(parts, batches, strict=True):
                    self.step.evaluate(x, y, samples=len(part))
            seen = {f"val_{name}": value for name, value in self.step.metrics().items()}
            self._require_finite("val_loss", seen["val_loss"], "its end")
            metrics.update(seen)
        for weight in self.model.trainable_weights:
            # A fused ReLU turns NaN into 0: the loss can stay finite over worthless weights.
            self._require_finite(weight.name, float(weight.numpy().sum()), "its end")
        return metrics

    def _keep_best(self, stopping: EarlyStopping) -> None:
        epoch = len(self.ends)
        if epoch < self.keep_from:
            return
        if self.best_epoch is None or self._gain(stopping, self.best_epoch) > stopping.min_delta:
            self.best_epoch = epoch
            self.best_weights = [weight.numpy() for weight in self.model.weights]

    def _over(self) -> bool:
        """Say whether no epoch follows: all are over, or training ends early."""
        stopping, best = self.config.early_stopping, self.best_epoch
        waited = stopping is not None and best is not None
        return (
            len(self.ends) >= self.config.epochs
            or bool(self.model.stop_training)
            or (waited and len(self.ends) - (best or 0) >= (stopping.patience if stopping else 0))
        )

    def _gain(self, stopping: EarlyStopping, best_epoch: int) -> float:
        """By how much the last epoch beats the best one; above 0 is better."""
        history = self.history
        gain = history[-1][stopping.metric] - history[best_epoch - 1][stopping.metric]
        return gain if higher_is_better(stopping.metric) else -gain

    def _look_at_losses(self) -> None:
        """Stop at the first step whose loss is not finite."""
        losses, self.losses = self.losses, []
        for at, loss in losses:
            where = f"step {at % self.steps_per_epoch + 1}"
            self.last_loss = float(loss)
            self._require_finite("loss", self.last_loss, where, at=at)

    def _tell_if_due(self, batches: int) -> None:
        self.telling.tell_if_due(
            epoch=len(self.ends) + 1,
            epochs=self.config.epochs,
            batches=batches,
            of=self.config.batches_per_epoch(len(self.task.train)),
            loss=self.last_loss,
        )

    def _require_finite(
        self, name: str, value: float, where: str, *, at: int | None = None
    ) -> None:
        if not math.isfinite(value):
            rate = self._rate(self.step.steps - 1 if at is None else at)
            raise UserError(
                f"training: {name} became {value} in epoch {len(self.ends) + 1} at {where} "
                f"with learning rate {rate:.3g}; lower optimizer.learning_rate, "
                "add warm-up epochs, or look for NaN and unscaled values in the data"
            )

    def _fingerprint(self) -> str:
        parts = {
            "key": self.files.key,
            "config": self.config,
            "data": self.task.digest,
            "samples": [len(self.task.train), len(self.task.validation)],
            "seed": self.seed,
            "keep_from": self.keep_from,
            "teacher": self.teacher.how if self.teacher else None,
        }
        weights = [*self.model.weights, *(self.teacher.model.weights if self.teacher else ())]
        return fingerprint(parts, [weight.numpy() for weight in weights])

    def _resume(self) -> None:
        """Go on where the checkpoint stands, if there is one of this very training."""
        path = self.files.checkpoint
        if path is None:
            return
        self.fingerprint = self._fingerprint()
        found = read_checkpoint(path, fingerprint=self.fingerprint, hear=self.worker.hear_first)
        if found is None:
            return
        standing, arrays = found
        for name, variable in self.step.variables().items():
            variable.assign(arrays[name])
        self.ends, self.best_epoch = list(standing.epochs), standing.best_epoch
        if self.best_epoch is not None:
            self.best_weights = [
                arrays[f"best_{index}"] for index in range(len(self.model.weights))
            ]

    def _save_if_due(self) -> None:
        """Keep a checkpoint from time to time, so that writing takes at most a few percent."""
        every = self.files.every_seconds
        alone = self.worker.count == 1
        if not self.files.checkpoint or (
            every and not alone and self.step.steps % _STEPS_BETWEEN_LOOKS
        ):
            return
        pause = max(every, 50 * self.saving_seconds) if every else 0.0
        due = time.monotonic() - self.saved_at >= pause
        # All save at one step: some of what is written is a sum over the workers.
        if due if alone else self.worker.hear_first(b"due" if due else b""):
            self._look_at_losses()
            self._save()

    def _save(self) -> None:
        if self.files.checkpoint is None:
            return
        began = time.monotonic()
        arrays = {name: variable.numpy() for name, variable in self.step.variables().items()}
        arrays |= {f"best_{index}": weight for index, weight in enumerate(self.best_weights)}
        standing = Standing(
            fingerprint=self.fingerprint, epochs=tuple(self.ends), best_epoch=self.best_epoch
        )
        if self.worker.first:
            write_checkpoint(self.files.checkpoint, standing, arrays)
        self.saved_at = time.monotonic()
        self.saving_seconds = self.saved_at - began

    def _set_weights(self, values: Sequence[Any]) -> None:
        for weight, value in zip(self.model.weights, values, strict=True):
            weight.assign(value)


@contextlib.contextmanager
def _computing_in(precision: str) -> Iterator[None]:
    """Let TensorFlow rewrite the graphs of the block to compute in ``precision``.

    The model is left alone, so that what is saved and exported is float32.
    """
    import tensorflow as tf

    option = "auto_mixed_precision_onednn_bfloat16"
    if precision == "float32":
        yield
        return
    tf.config.optimizer.set_experimental_options({option: True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({option: False})


def _augment(task: Task) -> Augment | None:
    """Return what the task does to its training batches."""
    if not task.augment:
        return None
    import tensorflow as tf

    # It knows no match, and nothing here branches on a tensor.
    as_it_is = tf.autograph.experimental.do_not_convert(augment_batch)
    return partial(as_it_is, task.augment)


def why_not_fitted(task: Task, config: Fit) -> str | None:
    """Say why this task cannot be learned like this, or None if it can."""
    full = isinstance(config.optimizer, GradientDescent)
    if config.batch_size > len(task.train) and not full:
        return (
            f"batch_size: {config.batch_size} is more than the {len(task.train)} training samples "
            f"of {task.name}; give a smaller batch_size or more samples"
        )
    why_not = why_not_loss(loss_of(config.loss, task), task)
    if why_not is not None:
        return why_not
    for field, metric in _watched(config).items():
        if metric.startswith("val_") and not len(task.validation):
            return (
                f"{field}: {metric} needs validation samples and {task.name} has none; "
                f"raise data.validation_fraction or leave {field} out"
            )
    flags = this_environment().isa
    if config.precision == "bfloat16" and not {"avx512_bf16", "amx_bf16"} & set(flags):
        return (
            "precision: bfloat16 needs a processor with AVX512-BF16 or AMX, which this one has not; "
            "leave it at float32"
        )
    return None


def _why_not_shared(worker: Worker, task: Task, config: Fit) -> str | None:
    """Say why this training cannot be shared between accelerators, or None if it can."""
    if worker.accelerators == 1:
        return None
    if config.xla:
        return "xla: several accelerators cannot exchange gradients inside of it; leave it out"
    return worker.why_not_shared(batch_size=config.batch_size, samples=len(task.train))


def _why_not_watched(names: Sequence[str], task: Task, config: Fit) -> str | None:
    """Say why a metric that stops or slows the training cannot be watched, or None if it can.

    Args:
        names: the metrics that the loop has of each epoch.
        task: what is learned.
        config: how.
    """
    known = [*names, *(f"val_{name}" for name in names if len(task.validation))]
    for field, metric in _watched(config).items():
        if metric not in known:
            return f"{field}.metric: there is no {metric!r} here; there are {', '.join(known)}"
    return None


def _watched(config: Fit) -> dict[str, str]:
    """Return the metric that each part of the settings watches, by the part's name."""
    watched = {}
    if config.early_stopping is not None:
        watched["early_stopping"] = config.early_stopping.metric
    if isinstance(config.schedule, Plateau):
        watched["schedule"] = config.schedule.metric
    return watched
