"""How weights follow their gradients."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta
from typing_extensions import assert_never

from deploy.record import Record

Positive = Annotated[float, Meta(gt=0)]
Decay = Annotated[float, Meta(ge=0, lt=1)]


class Adam(Record, frozen=True, tag_field="kind", tag="adam"):
    """Kingma and Ba, "Adam" (2015)."""

    learning_rate: Positive = 1e-3
    beta_1: Decay = 0.9
    """How much of the mean gradient is kept from step to step: its momentum."""
    beta_2: Decay = 0.999
    """How much of the mean squared gradient is kept."""
    epsilon: Positive = 1e-7
    amsgrad: bool = False
    """Divide by the largest mean squared gradient so far: Reddi, Kale and Kumar (2018)."""


class AdamW(Record, frozen=True, tag_field="kind", tag="adamw"):
    """Adam with decoupled weight decay: Loshchilov and Hutter (2019).

    Kernels decay; biases and normalisation parameters do not.
    """

    learning_rate: Positive = 1e-3
    weight_decay: Annotated[float, Meta(ge=0)] = 1e-2
    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    epsilon: Positive = 1e-7
    amsgrad: bool = False


class Sgd(Record, frozen=True, tag_field="kind", tag="sgd"):
    """Stochastic gradient descent with momentum."""

    learning_rate: Positive = 1e-2
    momentum: Decay = 0.9
    nesterov: bool = False
    """Look ahead before the gradient is taken: Sutskever et al. (2013), equations 3 and 4."""

    def __post_init__(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0, got 0")


class RmsProp(Record, frozen=True, tag_field="kind", tag="rmsprop"):
    """Tieleman and Hinton, Coursera lecture 6.5 (2012)."""

    learning_rate: Positive = 1e-3
    rho: Decay = 0.9
    """How much of the mean squared gradient is kept from step to step."""
    momentum: Decay = 0.0
    epsilon: Positive = 1e-7
    centered: bool = False
    """Divide by the gradient's standard deviation: Graves (2013), equations 38 to 45."""


class GradientDescent(Record, frozen=True, tag_field="kind", tag="gradient_descent"):
    """Full-batch gradient descent: one step an epoch, down the gradient over all samples.

    ``batch_size`` says how many samples are computed at a time; their gradients are added up, so it
    costs memory, not accuracy. Only batch normalisation sees single batches.
    """

    learning_rate: Positive = 1e-1


Optimizer = Adam | AdamW | Sgd | RmsProp | GradientDescent


def keras_optimizer(
    optimizer: Optimizer,
    *,
    weight_decay: float = 0.0,
    decays_not: tuple[Any, ...] = (),
    clip: dict[str, float] | None = None,
) -> Any:
    """Return a Keras optimizer; its learning rate is a variable that the loop sets at each step.

    Args:
        optimizer: which one, and its settings.
        weight_decay: decoupled weight decay of any optimizer, times the learning rate, as AdamW's.
        decays_not: variables that do not decay.
        clip: how Keras is to clip gradients: ``clipnorm``, ``clipvalue`` or ``global_clipnorm``.
    """
    import tf_keras

    optimizers, rate = tf_keras.optimizers, optimizer.learning_rate
    decay = optimizer.weight_decay if isinstance(optimizer, AdamW) else weight_decay
    # AdamW's decay is what every Keras optimizer does with weight_decay: one road for all.
    settings = {**(clip or {}), "weight_decay": decay or None}
    match optimizer:
        case Adam() | AdamW():
            made = optimizers.Adam(
                rate,
                beta_1=optimizer.beta_1,
                beta_2=optimizer.beta_2,
                epsilon=optimizer.epsilon,
                amsgrad=optimizer.amsgrad,
                **settings,
            )
        case Sgd():
            made = optimizers.SGD(
                rate, momentum=optimizer.momentum, nesterov=optimizer.nesterov, **settings
            )
        case RmsProp():
            made = optimizers.RMSprop(
                rate,
                rho=optimizer.rho,
                momentum=optimizer.momentum,
                epsilon=optimizer.epsilon,
                centered=optimizer.centered,
                **settings,
            )
        case GradientDescent():
            made = optimizers.SGD(rate, **settings)
        case _:
            assert_never(optimizer)
    if decay:
        made.exclude_from_weight_decay(var_list=list(decays_not))
    return made


def momentum_name(optimizer: Optimizer) -> str | None:
    """Return the attribute of the Keras optimizer that a one-cycle schedule may move, or None."""
    match optimizer:
        case Adam() | AdamW():
            return "beta_1"
        case Sgd() if optimizer.momentum > 0:
            return "momentum"
        case _:
            return None


def step_size(optimizer: Optimizer, made: Any, variable: Any) -> Any:
    """Return by how much a weight moves, in the end, for a gradient of 1 that stays.

    A number or a tensor of the weight's shape; asked after the step was made. Momentum adds a
    gradient up to 1 / (1 − momentum) of itself, and the adaptive methods divide by the root of
    their mean square.
    """
    import tensorflow as tf

    rate = tf.cast(made.learning_rate, variable.dtype)
    match optimizer:
        case GradientDescent():
            return rate
        case Sgd():
            return rate / (1 - tf.cast(made.momentum, variable.dtype))
        case RmsProp():
            at = made._index_dict[made._var_key(variable)]  # noqa: SLF001  # Keras offers no other way
            square = made._velocities[at]  # noqa: SLF001
            if optimizer.centered:
                square = square - tf.square(made._average_gradients[at])  # noqa: SLF001
            return rate * tf.math.rsqrt(square + optimizer.epsilon) / (1 - optimizer.momentum)
        case Adam() | AdamW():
            at = made._index_dict[made._var_key(variable)]  # noqa: SLF001
            squares = made._velocity_hats if optimizer.amsgrad else made._velocities  # noqa: SLF001
            steps = tf.cast(made.iterations, variable.dtype)
            unbiased = tf.sqrt(1 - tf.pow(tf.cast(optimizer.beta_2, variable.dtype), steps))
            return rate * unbiased / (tf.sqrt(squares[at]) + optimizer.epsilon)
        case _:
            assert_never(optimizer)
