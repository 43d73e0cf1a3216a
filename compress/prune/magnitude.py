"""Zero the smallest weights of every kernel while training goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from compress.data.task import Task
from compress.networks.named_layers import is_model, named_layers
from compress.train.fit import Fit, History, OnEpoch, TrainingFiles, fit
from compress.train.teacher import Distillation, Teacher
from deploy.errors import UserError, needs_extra
from deploy.record import Record

Sparsity = Annotated[float, Meta(ge=0, lt=1)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[int, Meta(ge=1)]

_KERNELS = {
    "Conv1D": "kernel",
    "Conv1DTranspose": "kernel",
    "Conv2D": "kernel",
    "Conv2DTranspose": "kernel",
    "Conv3D": "kernel",
    "Conv3DTranspose": "kernel",
    "Dense": "kernel",
    "Embedding": "embeddings",
    "SeparableConv1D": "pointwise_kernel",
    "SeparableConv2D": "pointwise_kernel",
}
"""The layer types that can be pruned, and which of their weights is."""


class Unstructured(Record, frozen=True, tag_field="kind", tag="unstructured"):
    """Any weight may go."""


class NOfM(Record, frozen=True, tag_field="kind", tag="n_of_m"):
    """``zeros`` of every ``of`` neighbours along the input channels go, as in 2:4 sparsity.

    Mishra et al., "Accelerating Sparse Deep Neural Networks" (2021). For Dense and Conv2D. Which
    ones go is decided once, before the first training step.
    """

    zeros: Positive = 2
    of: Positive = 4

    def __post_init__(self) -> None:
        if self.zeros >= self.of:
            raise ValueError(f"zeros must be below of ({self.of}), got {self.zeros}")


class Block(Record, frozen=True, tag_field="kind", tag="block"):
    """Blocks of ``height`` inputs by ``width`` outputs go together. For kernels of two axes."""

    height: Positive
    width: Positive
    pooling: Literal["average", "max"] = "average"
    """What a block's magnitude is: the mean or the largest of its absolute weights."""


Pattern = Unstructured | NOfM | Block


class MagnitudePrune(Record, frozen=True, tag_field="kind", tag="magnitude_prune"):
    """Zero the smallest weights of every kernel while training goes on.

    Each layer reaches its own target; weights of different layers are not compared. ``begin`` and
    ``end`` are fractions of the fine-tuning: with 4 epochs, 0.25 and 0.75 choose weights during
    the second and third, and the fourth trains what is left.
    """

    final_sparsity: Sparsity
    """Fraction of zeros in each kernel at the end."""
    fine_tune: Fit
    """How the model trains meanwhile; early stopping judges the epochs after ``end`` only."""
    schedule: Literal["polynomial", "constant"] = "polynomial"
    """``polynomial`` raises the sparsity from ``initial_sparsity``, fast first and slowly at last:
    Zhu and Gupta, "To prune, or not to prune" (2017), equation 1. ``constant`` has it all at
    ``begin``; until ``end`` it may still exchange weights."""
    initial_sparsity: Sparsity = 0.0
    power: Annotated[float, Meta(gt=0)] = 3.0
    """Exponent of the polynomial; 1 is a straight line."""
    begin: Fraction = 0.0
    end: Fraction = 0.5
    updates_per_epoch: Positive = 8
    """How often the weights that go are chosen anew."""
    per_layer: dict[str, Sparsity] = {}
    """Targets of single layers, by name; 0 leaves a layer alone."""
    skip: tuple[str, ...] = ()
    """Names of layers left alone; ``*``, ``?`` and ``[]`` match as in a shell."""
    pattern: Pattern = Unstructured()
    distill: Distillation | bool = Distillation()
    """How the fine-tuning listens to the baseline beside the truth; false leaves the baseline out."""

    def __post_init__(self) -> None:
        if self.begin > self.end:
            raise ValueError(f"begin must not exceed end ({self.end:g}), got {self.begin:g}")
        if self.schedule == "constant" and (self.initial_sparsity, self.power) != (0.0, 3.0):
            raise ValueError("initial_sparsity and power belong to the schedule 'polynomial'")
        for name, target in {"final_sparsity": self.final_sparsity, **self.per_layer}.items():
            if 0 < target < self.initial_sparsity:
                raise ValueError(
                    f"{name}: must not be below initial_sparsity ({self.initial_sparsity:g}), "
                    f"got {target:g}"
                )
        if isinstance(self.pattern, NOfM):
            self._check_n_of_m(self.pattern)

    def _check_n_of_m(self, pattern: NOfM) -> None:
        exact = pattern.zeros / pattern.of
        if self.schedule != "constant" or self.begin != 0:
            raise ValueError(
                "pattern n_of_m decides once, at the start: set schedule = 'constant' and begin = 0"
            )
        if any(
            target not in {0, exact} for target in (self.final_sparsity, *self.per_layer.values())
        ):
            raise ValueError(
                f"final_sparsity: {pattern.zeros} of {pattern.of} is exactly {exact:g}, "
                f"got {self.final_sparsity:g}"
            )

    def target(self, layer_name: str) -> float:
        """Fraction of zeros that is asked of this layer."""
        return self.per_layer.get(layer_name, self.final_sparsity)


def magnitude_prune(
    model: Any,
    step: MagnitudePrune,
    task: Task,
    *,
    seed: int,
    teacher: Teacher | None = None,
    on_epoch: OnEpoch | None = None,
    files: TrainingFiles | None = None,
) -> tuple[Any, History]:
    """Return a pruned and fine-tuned copy of a Keras model, and how the fine-tuning went.

    The copy is a plain tf-keras model, not compiled, with the names of the original; the
    original, its weights and its optimizer stay as they were. A layer that is used several times,
    or that lies in a model inside the model, is pruned like any other.

    Args:
        model: a functional or Sequential tf-keras classifier that ends in a softmax.
        step: what to prune and how.
        task: what to fine-tune on.
        seed: of the fine-tuning.
        teacher: whose answers the fine-tuning listens to.
        on_epoch: told about the end of each epoch.
        files: what the fine-tuning leaves on disk meanwhile.

    Raises:
        UserError: if ``skip`` or ``per_layer`` names no layer that could be meant, nothing is left
            to prune, the model cannot be copied layer by layer, a layer did not reach its target
            because too many of its weights are equal, or the fine-tuning fails (see ``fit``).
    """
    with needs_extra("compress"):
        import tensorflow_model_optimization as tfmot

    if not model.built:
        raise UserError(f"model: '{model.name}' has no known input shape; begin it with an Input")
    check_names(model, step)
    steps_per_epoch = step.fine_tune.batches_per_epoch(len(task.train))
    wrapped = _wrap(_copy(model), step, steps_per_epoch)
    _, end, _ = mask_updates(step, steps_per_epoch)
    history = fit(
        wrapped,
        task,
        step.fine_tune,
        seed=seed,
        teacher=teacher,
        callbacks=[tfmot.sparsity.keras.UpdatePruningStep()],
        on_epoch=on_epoch,
        keep_from=math.ceil(end / steps_per_epoch),
        files=files,
    )
    pruned = _copy(model)
    pruned.set_weights(tfmot.sparsity.keras.strip_pruning(wrapped).get_weights())
    _require_targets(pruned, step)
    return pruned, history


def why_not_pruned(layer: Any, step: MagnitudePrune) -> str | None:
    """Say why a Keras layer is left alone, or None if it is pruned.

    Depthwise kernels are never pruned: they hold few weights, each channel hangs on a handful of
    them, and tfmot does not offer it.
    """
    pattern = next((p for p in step.skip if fnmatchcase(layer.name, p)), None)
    if pattern is not None:
        return f"skipped: '{pattern}'"
    if is_model(layer):
        return "is a model: its layers are pruned one by one"
    kernel = _kernel(layer)
    if kernel is None:
        if all(len(weight.shape) < 2 for weight in layer.weights):
            return "has no kernel to prune"
        return f"layers of type {type(layer).__name__} cannot be pruned"
    if not layer.trainable:
        return "is frozen: trainable = False"
    if step.target(layer.name) == 0:
        return "no zeros are asked of it"
    return _why_pattern_does_not_fit(layer, tuple(kernel.shape), step.pattern)


def sparsity_by_layer(model: Any) -> dict[str, float]:
    """Return the fraction of zeros in the kernel of each layer that has one that can be pruned."""
    return {
        layer.name: float(np.mean(kernel.numpy() == 0))
        for _, layer in named_layers(model)
        if (kernel := _kernel(layer)) is not None
    }


def mask_updates(step: MagnitudePrune, steps_per_epoch: int) -> tuple[int, int, int]:
    """Return first, last and distance of the training steps, from 1, that choose weights anew.

    >>> step = MagnitudePrune(final_sparsity=0.9, fine_tune=Fit(epochs=4), updates_per_epoch=4)
    >>> mask_updates(step, steps_per_epoch=100)
    (1, 176, 25)
    """
    steps = steps_per_epoch * step.fine_tune.epochs
    begin, end = max(1, round(step.begin * steps)), max(1, round(step.end * steps))
    distance = max(1, min(end - begin, round(steps_per_epoch / step.updates_per_epoch)))
    return begin, begin + (end - begin) // distance * distance, distance


def _why_pattern_does_not_fit(layer: Any, shape: tuple[int, ...], pattern: Pattern) -> str | None:
    match pattern:
        case NOfM() if type(layer).__name__ not in {"Dense", "Conv2D"}:
            return f"layers of type {type(layer).__name__} have no n_of_m pattern"
        case NOfM(of=of) if shape[-2] % of:
            return f"its {shape[-2]} input channels are not a multiple of {of}"
        case Block() if len(shape) != 2:
            return f"a block needs a kernel of two axes, this has {len(shape)}"
        case Block(height=height, width=width) if shape[0] % height or shape[1] % width:
            return f"blocks of {height}×{width} do not tile its {shape[0]}×{shape[1]} kernel"
    return None


def _kernel(layer: Any) -> Any | None:
    """Return the weight that can be pruned, or None; a subclass in user code is a type of its own."""
    if not type(layer).__module__.startswith("tf_keras."):
        return None
    return getattr(layer, _KERNELS.get(type(layer).__name__, ""), None)


def check_names(model: Any, step: MagnitudePrune) -> None:
    """Raise a UserError if ``skip`` or ``per_layer`` name no layer that could be meant.

    Also if nothing is left to prune. Asked before a long training, of the untrained network.
    """
    layers = [layer for _, layer in named_layers(model)]
    names = [layer.name for layer in layers]
    for pattern in step.skip:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"skip: no layer is named '{pattern}'; there are {', '.join(names)}")
    for name, target in step.per_layer.items():
        if name not in names:
            raise UserError(f"per_layer: no layer is named '{name}'; there are {', '.join(names)}")
        why_not = why_not_pruned(layers[names.index(name)], step)
        if target > 0 and why_not is not None:
            raise UserError(f"per_layer: '{name}' cannot be pruned to {target:g}: {why_not}")
    pruned = [layer.name for layer in layers if why_not_pruned(layer, step) is None]
    if not pruned:
        reasons = "; ".join(f"{layer.name}: {why_not_pruned(layer, step)}" for layer in layers)
        raise UserError(f"magnitude_prune: nothing is left to prune ({reasons})")
    twice = sorted({name for name in pruned if names.count(name) > 1})
    if twice:
        raise UserError(
            f"model: several layers are named {', '.join(twice)}; "
            "give the layers of models inside the model names of their own"
        )


def _copy(model: Any) -> Any:
    """Return a model with the same layers, names and weights, which shares nothing with it."""
    try:
        copy = _clone(model, lambda layer: type(layer).from_config(layer.get_config()))
        copy.set_weights(model.get_weights())
    except (NotImplementedError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model: '{model.name}' cannot be copied layer by layer: {reason}; give a functional or "
            "Sequential model whose own layers have get_config"
        ) from error
    return copy


def _clone(model: Any, clone_layer: Callable[[Any], Any]) -> Any:
    """Rebuild a model, and the models inside it, from what ``clone_layer`` makes of each layer."""
    import tf_keras

    def clone(layer: Any) -> Any:
        return _clone(layer, clone_layer) if is_model(layer) else clone_layer(layer)

    return tf_keras.models.clone_model(model, clone_function=clone)


def _wrap(model: Any, step: MagnitudePrune, steps_per_epoch: int) -> Any:
    """Return the model with tfmot's wrapper around each layer that is pruned; weights are shared."""
    from tensorflow_model_optimization.sparsity.keras import prune_low_magnitude

    calls = dict(_calls(model))

    def wrap(layer: Any) -> Any:
        if why_not_pruned(layer, step) is not None:
            return layer
        return prune_low_magnitude(
            layer,
            pruning_schedule=_tfmot_schedule(step, layer.name, steps_per_epoch, calls[layer.name]),
            **_tfmot_pattern(step.pattern),
        )

    return _clone(model, wrap)


def _calls(model: Any, times: int = 1) -> Iterator[tuple[str, int]]:
    """Yield how often a training step calls each layer of a model that was just copied."""
    for layer in model.layers:
        calls = times * len(layer.inbound_nodes)
        if is_model(layer):
            yield from _calls(layer, calls)
        else:
            yield layer.name, calls


def _tfmot_schedule(step: MagnitudePrune, layer_name: str, steps_per_epoch: int, calls: int) -> Any:
    """Return the schedule of a layer; tfmot counts a step at each of its calls."""
    from tensorflow_model_optimization.sparsity.keras import ConstantSparsity, PolynomialDecay

    begin, end, distance = (calls * at for at in mask_updates(step, steps_per_epoch))
    target = step.target(layer_name)
    # With a single update there is no curve to follow, and tfmot would divide by end - begin.
    if step.schedule == "constant" or begin == end:
        return ConstantSparsity(target, begin_step=begin, end_step=end, frequency=distance)
    return PolynomialDecay(
        initial_sparsity=step.initial_sparsity,
        final_sparsity=target,
        begin_step=begin,
        end_step=end,
        power=step.power,
        frequency=distance,
    )


def _tfmot_pattern(pattern: Pattern) -> dict[str, Any]:
    match pattern:
        case Unstructured():
            return {}
        case NOfM():
            return {"sparsity_m_by_n": (pattern.zeros, pattern.of)}
        case Block():
            return {
                "block_size": (pattern.height, pattern.width),
                "block_pooling_type": {"average": "AVG", "max": "MAX"}[pattern.pooling],
            }


def _require_targets(model: Any, step: MagnitudePrune) -> None:
    """Raise where the weights themselves do not show the zeros that were asked for."""
    unit = step.pattern.height * step.pattern.width if isinstance(step.pattern, Block) else 1
    for _, layer in named_layers(model):
        kernel = _kernel(layer)
        if kernel is None or why_not_pruned(layer, step) is not None:
            continue
        kernel, target = kernel.numpy(), step.target(layer.name)
        units = kernel.size // unit
        wanted = units - max(1, round(units * (1 - target)))
        zeros = int(np.sum(kernel == 0))
        if zeros < (wanted - 1) * unit:
            raise UserError(
                f"magnitude_prune: '{layer.name}' has {zeros} zeros in {kernel.size} weights where "
                f"{wanted * unit} were asked for; weights of equal size cannot be told apart, so "
                "prune before the weights are clustered or quantized"
            )
