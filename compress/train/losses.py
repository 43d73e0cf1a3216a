"""What training makes small, and what it watches meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta
from typing_extensions import assert_never

from compress.data.task import Task
from deploy.record import Record, TaskKind

Smoothing = Annotated[float, Meta(ge=0, lt=1)]
Weights = tuple[Annotated[float, Meta(gt=0)], ...] | Literal["balanced"]
Measured = Callable[[Any, Any], Any]
"""From targets and outputs, ``(n, outputs)`` each, to one number a sample."""
_LEAST = 1e-7  # what Keras takes for a probability of 0


class CrossEntropy(Record, frozen=True, tag_field="kind", tag="cross_entropy"):
    """The negative logarithm of the right class's probability."""

    label_smoothing: Smoothing = 0.0
    """Share of each target that is spread evenly over all classes: Szegedy et al., "Rethinking the
    Inception Architecture" (2016), section 7."""
    class_weights: Weights | None = None
    """How much a sample of each class counts, in label order; ``balanced`` makes every class count
    alike, as ``n / (classes × samples of the class)``."""


class BinaryCrossEntropy(Record, frozen=True, tag_field="kind", tag="binary_cross_entropy"):
    """Each output by itself as the probability of a yes: the mean of their cross-entropies."""

    label_smoothing: Smoothing = 0.0
    """Share of each target that is moved to one half."""
    class_weights: Weights | None = None
    """How much a yes of each label counts beside a no; ``balanced`` is as many noes as there are for
    each yes."""


class Focal(Record, frozen=True, tag_field="kind", tag="focal"):
    """Cross-entropy that counts what is right already less: Lin et al. (2017), equation 5.

    Of a multi-label task, each label by itself.
    """

    gamma: Annotated[float, Meta(ge=0)] = 2.0
    """How much less: the loss is multiplied by ``(1 − p)`` to this power; 0 is cross-entropy."""
    class_weights: Weights | None = None
    """As in ``cross_entropy``; of a multi-label task as in ``binary_cross_entropy``."""


class Brier(Record, frozen=True, tag_field="kind", tag="brier"):
    """The squared distance of the probabilities to the one-hot class, summed: Brier (1950).

    It bounds what one wrong label can do.
    """


class MeanSquaredError(Record, frozen=True, tag_field="kind", tag="mean_squared_error"):
    """The mean of squared errors; of a regression in standard deviations of each target."""


class MeanAbsoluteError(Record, frozen=True, tag_field="kind", tag="mean_absolute_error"):
    """The mean of errors without their sign; of a regression in standard deviations."""


class Huber(Record, frozen=True, tag_field="kind", tag="huber"):
    """Squared near 0, straight beyond ``delta``: Huber (1964), "Robust estimation"."""

    delta: Annotated[float, Meta(gt=0)] = 1.0
    """In standard deviations of each target."""


Loss = (
    CrossEntropy | BinaryCrossEntropy | Focal | Brier | MeanSquaredError | MeanAbsoluteError | Huber
)

_OF_NUMBERS = (MeanSquaredError, MeanAbsoluteError, Huber)
_FITTING: dict[TaskKind, tuple[type[Any], ...]] = {
    "classification": (CrossEntropy, BinaryCrossEntropy, Focal, Brier),
    "multi_label": (BinaryCrossEntropy, Focal),
    "regression": _OF_NUMBERS,
    "reconstruction": _OF_NUMBERS,
}
_DEFAULTS: dict[TaskKind, Loss] = {
    "classification": CrossEntropy(),
    "multi_label": BinaryCrossEntropy(),
    "regression": MeanSquaredError(),
    "reconstruction": MeanSquaredError(),
}
_SHOWN: dict[TaskKind, str] = {
    "classification": "accuracy",
    "multi_label": "label_accuracy",
    "regression": "mae",
    "reconstruction": "mse",
}


def targets(task: Task, y: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return what the outputs are compared with, float32 ``(n, outputs)``.

    Classes become one-hot; everything else is as it is, a regression's values in their own unit.

    Args:
        task: knows what kind ``y`` is and how many classes there are.
        y: as ``Split.y`` of the training or the validation part.
    """
    if task.kind == "classification":
        one_hot: npt.NDArray[np.float32] = np.eye(len(task.labels), dtype=np.float32)[y]
        return one_hot
    return np.asarray(y, np.float32)


def loss_of(loss: Loss | None, task: Task) -> Loss:
    """Return the loss, or the task's own where none is named."""
    return _DEFAULTS[task.kind] if loss is None else loss


def why_not_loss(loss: Loss, task: Task) -> str | None:
    """Say why a task cannot be learned with a loss, or None if it can."""
    kind = loss.__struct_config__.tag
    if not isinstance(loss, _FITTING[task.kind]):
        fitting = ", ".join(str(one.__struct_config__.tag) for one in _FITTING[task.kind])
        what = task.kind.replace("_", "-")
        return f"loss: {kind} does not fit the {what} task {task.name}; there are {fitting}"
    weights = getattr(loss, "class_weights", None)
    if weights is not None and weights != "balanced" and len(weights) != len(task.labels):
        return (
            f"loss.class_weights: needs one number a label, {len(task.labels)} for {task.name}, "
            f"got {len(weights)}"
        )
    return None


def keras_loss(loss: Loss, task: Task) -> Measured:
    """Return the loss as Keras takes it: from ``targets`` and outputs to one number a sample.

    Args:
        loss: which one; it has to fit the task.
        task: gives the weights of classes that are balanced, and the deviations of targets.
    """
    import tensorflow as tf

    weights = _class_weights(loss, task)
    match loss:
        case CrossEntropy():
            return _cross_entropy(weights, smoothing=loss.label_smoothing)
        case BinaryCrossEntropy():
            return _binary(weights, smoothing=loss.label_smoothing, gamma=0.0)
        case Focal() if task.kind == "multi_label":
            return _binary(weights, smoothing=0.0, gamma=loss.gamma)
        case Focal():
            return _focal(weights, gamma=loss.gamma)
        case Brier():
            return _brier
        case MeanSquaredError():
            return _error(task, tf.square)
        case MeanAbsoluteError():
            return _error(task, tf.abs)
        case Huber():
            return _error(task, _bent(loss.delta))
        case _:
            assert_never(loss)


def keras_metrics(task: Task) -> list[Any]:
    """Return what Keras reports beside the loss: the one metric that ``shown_metric`` names."""
    import tf_keras

    name = shown_metric(task)
    match task.kind:
        case "classification":
            return [tf_keras.metrics.CategoricalAccuracy(name=name)]
        case "multi_label":
            return [tf_keras.metrics.BinaryAccuracy(name=name)]
        case "regression":
            return [tf_keras.metrics.MeanAbsoluteError(name=name)]
        case "reconstruction":
            return [tf_keras.metrics.MeanSquaredError(name=name)]


def shown_metric(task: Task) -> str:
    """Return the name of the metric that is shown after each epoch beside the loss.

    ``accuracy``; of a multi-label task ``label_accuracy``, the share of labels that are right; of a
    regression ``mae`` in the target's unit; of a reconstruction ``mse``.
    """
    return _SHOWN[task.kind]


def watched_metric(task: Task) -> str:
    """Return the metric that a search or a selection compares: the shown one, on validation."""
    return f"val_{shown_metric(task)}"


def higher_is_better(name: str) -> bool:
    """Say whether more is better of a loss or metric as it is named after each epoch.

    >>> higher_is_better("val_accuracy"), higher_is_better("val_loss")
    (True, False)
    """
    falling = (
        "loss",
        "penalty",
        "distance",
        "error",
        "mae",
        "mse",
        "rmse",
        "deviation",
        "crossentropy",
    )
    word = name.removeprefix("val_").lower()
    return not any(word == ending or word.endswith(f"_{ending}") for ending in falling)


def _class_weights(loss: Loss, task: Task) -> npt.NDArray[np.float32] | None:
    """Return one weight a class or label, or None where all count alike."""
    weights = getattr(loss, "class_weights", None)
    if weights is None:
        return None
    if weights != "balanced":
        return np.array(weights, np.float32)
    # A label that is never there has no sample that its weight could matter to.
    there = np.maximum(targets(task, task.train.y).sum(axis=0), 1)
    samples = len(task.train)
    if task.kind == "multi_label" or isinstance(loss, BinaryCrossEntropy):
        return np.asarray((samples - there) / there, np.float32)
    return np.asarray(samples / (len(task.labels) * there), np.float32)


def _weighted(wanted: Any, each: Any, weights: npt.NDArray[np.float32] | None) -> Any:
    """Weigh the losses of samples by their class; a target between classes by the mean."""
    import tensorflow as tf

    if weights is None:
        return each
    return each * tf.reduce_sum(tf.cast(wanted, each.dtype) * weights, axis=-1)


def _cross_entropy(weights: npt.NDArray[np.float32] | None, *, smoothing: float) -> Measured:
    import tf_keras

    def measured(wanted: Any, given: Any) -> Any:
        # Keras' own goes back from a softmax to the logits, which cannot overflow.
        crossed = tf_keras.losses.categorical_crossentropy(wanted, given, label_smoothing=smoothing)
        return _weighted(wanted, crossed, weights)

    return measured


def _focal(weights: npt.NDArray[np.float32] | None, *, gamma: float) -> Measured:
    import tensorflow as tf

    def measured(wanted: Any, given: Any) -> Any:
        given = tf.clip_by_value(given, _LEAST, 1 - _LEAST)
        parts = tf.cast(wanted, given.dtype) * (1 - given) ** gamma * tf.math.log(given)
        return _weighted(wanted, -tf.reduce_sum(parts, axis=-1), weights)

    return measured


def _brier(wanted: Any, given: Any) -> Any:
    import tensorflow as tf

    return tf.reduce_sum(tf.square(given - tf.cast(wanted, given.dtype)), axis=-1)


def _bent(delta: float) -> Callable[[Any], Any]:
    """Return Huber's measure of an error: half its square, and a straight line beyond delta."""
    import tensorflow as tf

    def bent(apart: Any) -> Any:
        size = tf.abs(apart)
        inside = tf.minimum(size, delta)
        return 0.5 * tf.square(inside) + delta * (size - inside)

    return bent


def _binary(weights: npt.NDArray[np.float32] | None, *, smoothing: float, gamma: float) -> Measured:
    """Return the mean over outputs of their binary cross-entropies, focal where gamma is not 0."""
    import tensorflow as tf

    def measured(wanted: Any, given: Any) -> Any:
        given = tf.clip_by_value(given, _LEAST, 1 - _LEAST)
        yes = tf.cast(wanted, given.dtype) * (1 - smoothing) + smoothing / 2
        found = yes * (1 - given) ** gamma * tf.math.log(given)
        left = (1 - yes) * given**gamma * tf.math.log(1 - given)
        return -tf.reduce_mean(found * (1.0 if weights is None else weights) + left, axis=-1)

    return measured


def _error(task: Task, measure: Callable[[Any], Any]) -> Measured:
    """Return the mean of a measure of the errors, those of a regression in standard deviations."""
    import tensorflow as tf

    unit = np.array(task.scaling.std, np.float32) if task.scaling else np.float32(1)

    def measured(wanted: Any, given: Any) -> Any:
        apart = measure((given - tf.cast(wanted, given.dtype)) / unit)
        return tf.reduce_mean(tf.reshape(apart, (tf.shape(apart)[0], -1)), axis=-1)

    return measured
