"""What keeps weights from fitting the training samples alone, added to any network from outside.

Nothing of it stays in the network: layers, names and weights are those that it came with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from msgspec import Meta

from compress.networks.named_layers import named_layers
from deploy.record import Record

NotNegative = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]

_NO_KERNELS = {"bias", "beta", "gamma", "alpha"}
"""Names of weights that scale or shift; only PReLU's alpha can have more than one axis."""
_SHAPERS = {"Activation", "ELU", "LeakyReLU", "PReLU", "ReLU", "ThresholdedReLU"}
"""Layer types that are an activation."""


class Regularise(Record, frozen=True):
    """Terms, limits and noise that keep weights small and features spread.

    Terms and limits concern kernels: weights with two axes or more. Biases and normalisation
    parameters are left alone.
    """

    l1: NotNegative = 0.0
    """Adds ``l1 · Σ|w|`` to what is made small. Its step is exact soft-thresholding after the step
    along the loss, so that weights become 0 and not nearly 0: Beck and Teboulle (2009), equation 1.5;
    with momentum and adaptive optimizers each weight's threshold follows the size of its own steps,
    as in Yun, Lozano and Yang, "ProxGen" (2021)."""
    l2: NotNegative = 0.0
    """Adds ``l2 · Σw²`` to what is made small."""
    weight_decay: NotNegative = 0.0
    """Takes ``learning rate · weight_decay`` of each weight away at each step, whatever the
    optimizer: Loshchilov and Hutter (2019). AdamW has its own."""
    max_norm: Positive | None = None
    """Largest Euclidean norm of the weights into one unit or filter: Srivastava et al. (2014),
    section 5.1."""
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Fraction of values set to 0 at each training step, the others scaled up: Srivastava et al.
    (2014). Exported models have none."""
    dropout_at: Literal["head", "activations"] = "head"
    """Before the last layer that has a kernel, or behind each activation before it."""
    clip_value: Positive | None = None
    """Largest absolute value in a gradient."""
    clip_norm: Positive | None = None
    """Largest norm of each weight's gradient."""
    clip_global_norm: Positive | None = None
    """Largest norm of all gradients together: Pascanu, Mikolov and Bengio (2013), algorithm 1."""

    def __post_init__(self) -> None:
        if len(self.clipping()) > 1:
            given = " and ".join(f"{name} = {value:g}" for name, value in self.clipping().items())
            raise ValueError(f"regularise: gradients are clipped in one way, got {given}")

    def clipping(self) -> dict[str, float]:
        """Return what of a gradient is limited, by field name."""
        names = ("clip_value", "clip_norm", "clip_global_norm")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def kernels(model: Any) -> list[Any]:
    """Return the trainable weights that regularisation concerns."""
    return [variable for variable in model.trainable_weights if _is_kernel(variable)]


def others(model: Any) -> tuple[Any, ...]:
    """Return the trainable weights that are no kernels."""
    return tuple(variable for variable in model.trainable_weights if not _is_kernel(variable))


def penalty(config: Regularise, weights: list[Any]) -> Any:
    """Return ``l1 · Σ|w| + l2 · Σw²``, a scalar."""
    import tensorflow as tf

    total = tf.constant(0.0)
    for weight in weights:
        if config.l1:
            total += config.l1 * tf.reduce_sum(tf.abs(weight))
        if config.l2:
            total += config.l2 * tf.reduce_sum(tf.square(weight))
    return total


def soft_threshold(weight: Any, threshold: Any) -> Any:
    """Return the weight moved towards 0 by ``threshold``, and no further than to 0."""
    import tensorflow as tf

    return tf.sign(weight) * tf.maximum(tf.abs(weight) - threshold, 0.0)


def limited(model: Any, limit: float) -> list[tuple[Any, Callable[[Any], Any]]]:
    """Return each kernel of a model with the function that scales its units down to a norm."""
    import tensorflow as tf

    def limiter(axes: list[int]) -> Callable[[Any], Any]:
        def limit_norm(weight: Any) -> Any:
            squares = tf.reduce_sum(tf.square(weight), axis=axes, keepdims=True)
            return weight * tf.minimum(1.0, limit * tf.math.rsqrt(tf.maximum(squares, 1e-30)))

        return limit_norm

    found = {}
    for _, layer in named_layers(model):
        for weight in layer.trainable_weights:
            if _is_kernel(weight):
                axes = _axes_into_one_unit(layer, weight)
                found[id(weight)] = (weight, limiter(axes))  # a shared layer is listed once
    return list(found.values())


def _axes_into_one_unit(layer: Any, weight: Any) -> list[int]:
    """Return the axes of a kernel over which the norm of one unit, filter or embedding runs."""
    kind = type(getattr(layer, "layer", layer)).__name__
    every = list(range(len(weight.shape)))
    if kind == "Embedding":
        return [1]
    if "depthwise" in _short_name(weight):
        return every[:-2]
    if kind.endswith("Transpose"):
        return [*every[:-2], every[-1]]
    return every[:-1]


def _is_kernel(variable: Any) -> bool:
    return len(variable.shape) > 1 and _short_name(variable) not in _NO_KERNELS


def _short_name(variable: Any) -> str:
    return str(variable.name).rpartition("/")[2].partition(":")[0]


def why_not_dropped(model: Any, config: Regularise) -> str | None:
    """Say why dropout cannot be added to a network, or None if it can or none is asked for."""
    if not config.dropout:
        return None
    if not hasattr(model, "_nodes_by_depth"):  # what Sequential and functional models have
        return (
            "dropout: the order of the layers of a subclassed model is unknown; build it in there"
        )
    if _head(model) is None:
        return "dropout: the network has no layer with a kernel to put it before"
    if config.dropout_at == "activations" and not _activations(model):
        return (
            "dropout: the network has no activation before its last layer; use dropout_at = 'head'"
        )
    return None


@contextlib.contextmanager
def dropping(model: Any, config: Regularise, drop: Callable[[Any], Any]) -> Iterator[None]:
    """Add dropout to the calls of a network's layers inside the block.

    A layer's ``call`` is replaced and put back: no layer is added, so that names, weights, pruning
    wrappers and models inside the model stay what they are, and an export knows nothing of it.

    Args:
        model: the network.
        config: where dropout goes.
        drop: what dropout does to a tensor.
    """
    replaced: list[Any] = []

    def replace(layer: Any, made: Callable[..., Any]) -> None:
        layer.__dict__["call"] = made  # past Keras, which tracks what is set on a layer
        replaced.append(layer)

    try:
        if config.dropout and config.dropout_at == "activations":
            for layer in _activations(model):
                replace(layer, _dropping_behind(layer.call, drop))
        elif config.dropout and (head := _head(model)) is not None:
            replace(head, _dropping_before(head.call, drop))
        yield
    finally:
        for layer in replaced:
            del layer.__dict__["call"]


def _dropping_before(call: Callable[..., Any], drop: Callable[[Any], Any]) -> Callable[..., Any]:
    def dropped(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return call(drop(inputs), *args, **kwargs)

    return dropped


def _dropping_behind(call: Callable[..., Any], drop: Callable[[Any], Any]) -> Callable[..., Any]:
    def dropped(*args: Any, **kwargs: Any) -> Any:
        return drop(call(*args, **kwargs))

    return dropped


def _layers(model: Any) -> list[Any]:
    """Return every layer once, in the order of the network."""
    return list({id(layer): layer for _, layer in named_layers(model)}.values())


def _head(model: Any) -> Any | None:
    """Return the last layer that has a kernel."""
    having = [layer for layer in _layers(model) if any(map(_is_kernel, layer.trainable_weights))]
    return having[-1] if having else None


def _activations(model: Any) -> list[Any]:
    """Return the layers before the head whose outputs come from an activation."""
    layers = _layers(model)
    head = next((at for at, layer in enumerate(layers) if layer is _head(model)), 0)
    return [layer for layer in layers[:head] if _is_activation(layer)]


def _is_activation(layer: Any) -> bool:
    inner = getattr(layer, "layer", layer)  # of a pruning wrapper
    if type(inner).__name__ in _SHAPERS:
        return True
    name = getattr(getattr(inner, "activation", None), "__name__", "linear")
    return name not in {"linear", "softmax"}
