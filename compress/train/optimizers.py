"""How weights follow their gradients."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from deploy.record import Record

Positive = Annotated[float, Meta(gt=0)]


class Adam(Record, frozen=True, tag_field="kind", tag="adam"):
    """Kingma and Ba, "Adam" (2015)."""

    learning_rate: Positive = 1e-3


class AdamW(Record, frozen=True, tag_field="kind", tag="adamw"):
    """Adam with decoupled weight decay: Loshchilov and Hutter (2019).

    Kernels decay; biases and normalisation parameters do not.
    """

    learning_rate: Positive = 1e-3
    weight_decay: Annotated[float, Meta(ge=0)] = 1e-2


class Sgd(Record, frozen=True, tag_field="kind", tag="sgd"):
    """Stochastic gradient descent with momentum."""

    learning_rate: Positive = 1e-2
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0, got 0")


class RmsProp(Record, frozen=True, tag_field="kind", tag="rmsprop"):
    """Tieleman and Hinton, Coursera lecture 6.5 (2012)."""

    learning_rate: Positive = 1e-3


Optimizer = Adam | AdamW | Sgd | RmsProp


def keras_optimizer(optimizer: Optimizer, rate: Any) -> Any:
    """Return a Keras optimizer.

    Args:
        optimizer: which one, and its settings.
        rate: its learning rate: a number or a Keras schedule.
    """
    import tf_keras

    match optimizer:
        case Adam():
            return tf_keras.optimizers.Adam(rate)
        case AdamW():
            adamw = tf_keras.optimizers.AdamW(rate, weight_decay=optimizer.weight_decay)
            adamw.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
            return adamw
        case Sgd():
            return tf_keras.optimizers.SGD(
                rate, momentum=optimizer.momentum, nesterov=optimizer.nesterov
            )
        case RmsProp():
            return tf_keras.optimizers.RMSprop(rate)
