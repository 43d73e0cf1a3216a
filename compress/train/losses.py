"""What training makes small."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from compress.data.task import Task

Loss = Literal["cross_entropy", "squared_error"]


def targets(task: Task, y: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return what the outputs are compared with, ``(n, classes)``: one-hot classes.

    Args:
        task: knows how many classes there are.
        y: classes counted from 0, ``(n,)``.
    """
    return np.eye(len(task.labels), dtype=np.float32)[y]


def keras_loss(loss: Loss) -> Any:
    """Return the loss as Keras takes it: a mean over samples of outputs against ``targets``."""
    if loss == "cross_entropy":
        return "categorical_crossentropy"
    import tensorflow as tf

    def squared_error(wanted: Any, probabilities: Any) -> Any:
        wanted = tf.cast(wanted, probabilities.dtype)
        return tf.reduce_sum(tf.square(probabilities - wanted), axis=-1)

    return squared_error
