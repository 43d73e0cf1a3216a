"""Train weights to cost few bits: each is a whole number of steps, and its code has a price.

Pruning and quantization at once. What is made small is the loss plus a price for every bit that an
entropy coder of order 0 would spend on the weights, so that training itself decides which weights
become zero, how many values the others share and which layers give most.

Sources: Oktay, Ballé, Singh and Shrivastava, "Scalable Model Compression by Entropy Penalized
Reparameterization" (2020), for the objective (equation 3); Wiedemann, Marban, Müller and Samek,
"Entropy-Constrained Training of Deep Neural Networks" (2019), for a rate that comes from counting the
codes; Esser et al., "Learned Step Size Quantization" (2020), for the gradient of the step size. The
probabilities here are the counted ones, not a learned density: what is paid for is what a coder will
bill.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from compress.data.task import Task
from compress.networks.named_layers import is_model, named_layers
from compress.prune.copied import copied, require_built
from compress.train.fit import Fit, History, OnEpoch, TrainingFiles, fit
from compress.train.teacher import Distillation, Teacher
from deploy.errors import UserError, needs_extra
from deploy.record import Record

_CODED = ("kernel", "depthwise_kernel", "pointwise_kernel", "embeddings", "bias")
"""Names of the weights that are coded."""
_LAYERS = {
    "Conv1D", "Conv1DTranspose", "Conv2D", "Conv2DTranspose", "Conv3D", "Conv3DTranspose", "Dense",
    "DepthwiseConv1D", "DepthwiseConv2D", "Embedding", "SeparableConv1D", "SeparableConv2D",
}  # fmt: skip
"""The layer types whose weights are read where they are called."""
_LARGEST_CODE = 127
"""Codes fit int8; few trainings go beyond 10."""
_UNSEEN = 0.01
"""What a code counts that no weight has: it can still be reached, at a price."""


class EntropyPrune(Record, frozen=True, tag_field="kind", tag="entropy_prune"):
    """Make the weights cost few bits while training goes on: most become 0, the others share few values.

    Every weight and bias of the layers that have kernels becomes a whole number times the step size
    of its tensor, which is learned. ``price_per_bit`` decides how many bytes remain; how many zeros
    there are in each layer is what training finds. Normalisation is left alone: fold it first.
    """

    price_per_bit: Annotated[float, Meta(gt=0)]
    """What a bit of the coded weights costs, in nats of the loss summed over the training samples.
    0.7 (the logarithm of 2) is the minimum description length of the training labels; MNIST's LeNets
    keep their accuracy from 0.03 to 0.3."""
    fine_tune: Fit
    """How the model trains meanwhile; early stopping judges the epochs after ``rise`` only."""
    rise: Annotated[float, Meta(ge=0, le=1)] = 0.3
    """Share of the training over which the price climbs from 0."""
    levels: Annotated[int, Meta(ge=1, le=_LARGEST_CODE)] = 8
    """Steps from 0 to the largest weight of a tensor when training begins."""
    updates_per_epoch: Annotated[int, Meta(ge=1)] = 8
    """How often the codes are counted anew, and with them what each costs."""
    skip: tuple[str, ...] = ()
    """Names of layers left alone; ``*``, ``?`` and ``[]`` match as in a shell."""
    distill: Distillation | bool = False
    """How the training listens to the baseline beside the truth; true as any recovery does. Left out,
    because bits that the teacher's soft answers cost bought no accuracy where both were tried."""


@dataclass(frozen=True, slots=True)
class _Coded:
    """A weight under training.

    Attributes:
        name: of the attribute of the layer.
        values: the variable that the optimizer moves, of any shape.
        log_step: variable, the logarithm of the step size.
        table: variable ``(2 * _LARGEST_CODE + 1,)``, the bits of each code from the most negative.
    """

    name: str
    values: Any
    log_step: Any
    table: Any

    def quantized(self) -> Any:
        """Return what the network computes with; gradients pass as if nothing had been rounded."""
        import tensorflow as tf

        steps = self._steps()
        codes = steps + tf.stop_gradient(tf.round(steps) - steps)
        return codes * tf.exp(self.log_step)

    def codes(self) -> npt.NDArray[np.int64]:
        """Return the whole numbers that the weights are now."""
        import tensorflow as tf

        return np.asarray(tf.round(self._steps()).numpy(), dtype=np.int64)

    def bits(self) -> Any:
        """Return what the codes cost, a scalar; between two codes the price is on a straight line."""
        import tensorflow as tf

        steps = tf.minimum(self._steps(), _LARGEST_CODE - 1e-3)
        below = tf.floor(steps)
        index = tf.cast(below, tf.int32) + _LARGEST_CODE
        table = tf.stop_gradient(tf.convert_to_tensor(self.table))
        low, high = tf.gather(table, index), tf.gather(table, index + 1)
        return tf.reduce_sum(low + (steps - below) * (high - low))

    def count(self) -> None:
        """Let each code cost what an entropy coder would spend on it now."""
        self.table.assign(bits_by_code(self.codes()))

    def _steps(self) -> Any:
        import tensorflow as tf

        return tf.clip_by_value(self.values * tf.exp(-self.log_step), -_LARGEST_CODE, _LARGEST_CODE)


def entropy_prune(
    model: Any,
    step: EntropyPrune,
    task: Task,
    *,
    seed: int,
    teacher: Teacher | None = None,
    on_epoch: OnEpoch | None = None,
    files: TrainingFiles | None = None,
) -> tuple[Any, History]:
    """Return a fine-tuned copy of a Keras model whose weights cost few bits, and how it trained.

    The copy is a plain tf-keras model, not compiled, with the names of the original, which stays as
    it was. What its kernels and biases hold is exactly what the last training step computed with.
    The history's ``penalty`` is the price of all bits, a training sample; weights between two codes
    pay for it, so that it is above what the codes cost.

    Args:
        model: a functional or Sequential tf-keras model.
        step: what a bit costs and how to train.
        task: what to train on.
        seed: of the training.
        teacher: whose answers the training listens to.
        on_epoch: told about the end of each epoch.
        files: what the training leaves on disk meanwhile.

    Raises:
        UserError: if ``skip`` names no layer or every layer, the model cannot be copied layer by
            layer, nothing of a kernel is left because bits are too dear, or the training fails
            (see ``fit``).
    """
    with needs_extra("compress"):
        import tensorflow as tf

    require_built(model)
    check_skipped(model, step)
    working = copied(model)
    samples = len(task.train)
    price = tf.Variable(0.0, trainable=False)
    coded: dict[str, list[_Coded]] = {}
    for name, layer in _once(working):
        if why_not_coded(name, layer, step) is None:
            coded[name] = _code(layer, step, price=price, samples=samples)
    counting = _counting(
        [weight for weights in coded.values() for weight in weights],
        step,
        price=price,
        steps_per_epoch=step.fine_tune.steps_per_epoch(samples),
    )
    history = fit(
        working,
        task,
        step.fine_tune,
        seed=seed,
        teacher=teacher,
        callbacks=[counting],
        on_epoch=on_epoch,
        keep_from=max(1, math.ceil(step.rise * step.fine_tune.epochs)),
        files=files,
    )
    made = copied(model)
    trained = dict(_once(working))
    for name, layer in _once(made):
        if name in coded:
            for weight in coded[name]:
                getattr(layer, weight.name).assign(weight.quantized())
        else:
            layer.set_weights(trained[name].get_weights())
    _require_something_left(made, coded)
    return made, history


def why_not_coded(name: str, layer: Any, step: EntropyPrune) -> str | None:
    """Say why a Keras layer is left alone, or None if its weights are coded."""
    pattern = next((p for p in step.skip if fnmatchcase(name, p)), None)
    if pattern is not None:
        return f"skipped: '{pattern}'"
    if is_model(layer):
        return "is a model: its layers are coded one by one"
    if not layer.weights:
        return "has no weights"
    ours = type(layer).__module__.startswith("tf_keras.")
    if not ours or type(layer).__name__ not in _LAYERS:
        return f"layers of type {type(layer).__name__} cannot be coded"
    if not layer.trainable:
        return "is frozen: trainable = False"
    return None


def reasons_not_coded(model: Any, step: EntropyPrune) -> dict[str, str]:
    """Return why layers that have weights are left alone, by layer name."""
    found = ((name, layer) for name, layer in named_layers(model) if layer.weights)
    reasons = {name: why_not_coded(name, layer, step) for name, layer in found}
    return {name: why for name, why in reasons.items() if why}


def check_skipped(model: Any, step: EntropyPrune) -> None:
    """Raise a UserError if ``skip`` names no layer, or nothing is left to code."""
    layers = list(named_layers(model))
    for pattern in step.skip:
        if not any(fnmatchcase(name, pattern) for name, _ in layers):
            names = ", ".join(name for name, _ in layers)
            raise UserError(f"skip: no layer is named '{pattern}'; there are {names}")
    reasons = {name: why_not_coded(name, layer, step) for name, layer in layers}
    if all(reasons.values()):
        found = "; ".join(f"{name}: {why}" for name, why in reasons.items())
        raise UserError(f"entropy_prune: nothing is left to code ({found})")


def bits_by_code(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return what an entropy coder of order 0 spends on each code, from the most negative on.

    A code and its negative cost the same, so that a weight may change its sign; codes that do not
    occur are dear, not impossible.

    >>> bits = bits_by_code(np.array([0, 0, 0, 0, 0, 0, 1, -1]))
    >>> [round(float(bits[127 + code])) for code in (-1, 0, 1)]
    [3, 1, 3]
    """
    counts = np.bincount(codes.ravel() + _LARGEST_CODE, minlength=2 * _LARGEST_CODE + 1)
    even = (counts + counts[::-1]) / 2 + _UNSEEN
    return np.asarray(-np.log2(even / even.sum()), dtype=np.float32)


def order_0_bits(values: npt.NDArray[Any]) -> float:
    """Return the least bits that a coder needs which knows how often each value occurs, and no more.

    >>> order_0_bits(np.array([0, 0, 1, 1]))
    4.0
    """
    counts = np.unique(values, return_counts=True)[1]
    return float(np.sum(counts * -np.log2(counts / values.size)))


def _once(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield each layer under the first of its names."""
    seen: set[int] = set()
    for name, layer in named_layers(model):
        if id(layer) not in seen:
            seen.add(id(layer))
            yield name, layer


def _code(layer: Any, step: EntropyPrune, *, price: Any, samples: int) -> list[_Coded]:
    """Let a layer compute with codes and add their price to the loss; return its coded weights."""
    names = [name for name in _CODED if getattr(layer, name, None) is not None]
    largest = {name: float(np.abs(getattr(layer, name).numpy()).max()) for name in names}
    coded = []
    for name in names:
        # Biases begin as zeros; those of the layer's kernel are then of the right size.
        size = largest[name] or max(largest.values()) or 1.0
        coded.append(
            _Coded(
                name=name,
                values=getattr(layer, name),
                log_step=layer.add_weight(
                    name=f"{name}_log_step",
                    shape=(),
                    initializer=_constant(math.log(size / step.levels)),
                ),
                table=layer.add_weight(
                    name=f"{name}_bits",
                    shape=(2 * _LARGEST_CODE + 1,),
                    initializer="zeros",
                    trainable=False,
                ),
            )
        )
    call = layer.call

    def call_with_codes(*args: Any, **kwargs: Any) -> Any:
        # Past Keras, which tracks what is set on a layer.
        layer.__dict__.update({weight.name: weight.quantized() for weight in coded})
        try:
            return call(*args, **kwargs)
        finally:
            layer.__dict__.update({weight.name: weight.values for weight in coded})

    layer.__dict__["call"] = call_with_codes
    layer.add_loss(lambda: price / samples * sum(weight.bits() for weight in coded))
    return coded


def _constant(value: float) -> Any:
    import tf_keras

    return tf_keras.initializers.Constant(value)


def _counting(coded: list[_Coded], step: EntropyPrune, *, price: Any, steps_per_epoch: int) -> Any:
    """Return the callback that counts codes and raises the price.

    It remembers nothing: a training that goes on from a checkpoint finds the counts in the tables
    and the price by the optimizer's steps.
    """
    import tf_keras

    every = max(1, round(steps_per_epoch / step.updates_per_epoch))
    climb = step.rise * steps_per_epoch * step.fine_tune.epochs

    class Counting(tf_keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
        def on_train_batch_begin(self, _batch: int, _logs: Any = None) -> None:
            done = int(self.model.optimizer.iterations.numpy())
            price.assign(step.price_per_bit * min(1.0, done / climb if climb else 1.0))
            if done % every == 0:
                for weight in coded:
                    weight.count()

    return Counting()


def _require_something_left(model: Any, coded: dict[str, list[_Coded]]) -> None:
    for name, layer in _once(model):
        for weight in coded.get(name, []):
            if weight.name != "bias" and not np.any(getattr(layer, weight.name).numpy()):
                raise UserError(
                    f"entropy_prune: nothing is left of '{name}': bits are too dear; lower "
                    "price_per_bit, or train longer"
                )
