"""Every step there is, and how each is carried out: the one list that a new technique joins."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from typing_extensions import assert_never

from compress.data.task import Task
from compress.networks.named_layers import named_layers
from compress.prune.magnitude import (
    MagnitudePrune,
    check_names,
    magnitude_prune,
    why_not_pruned,
)
from compress.quantize.post_training import (
    OnnxStep,
    QuantizeDynamic,
    QuantizeStatic,
    ToFloat16,
    WeightOnly,
    quantize_dynamic,
    quantize_static,
    to_float16,
    weight_only,
    why_not_quantized,
)
from compress.train.fit import History, OnEpoch, TrainingFiles
from deploy.errors import UserError
from deploy.kernels import why_not_int8
from deploy.machine import this_target

KerasStep = MagnitudePrune
"""Steps that take a Keras model and give one."""

Step = KerasStep | OnnxStep
"""Every step; ``OnnxStep`` are those that take an ONNX model and give one."""


def keras_step(
    model: Any,
    step: KerasStep,
    task: Task,
    *,
    seed: int,
    on_epoch: OnEpoch | None = None,
    files: TrainingFiles | None = None,
) -> tuple[Any, History]:
    """Return what a step makes of a tf-keras model, which is left alone, and how it trained."""
    match step:
        case MagnitudePrune():
            return magnitude_prune(model, step, task, seed=seed, on_epoch=on_epoch, files=files)
        case _:
            assert_never(step)


def onnx_step(model: Any, step: OnnxStep, task: Task) -> Any:
    """Return what a step makes of an ONNX model (``onnx.ModelProto``), which is left alone."""
    match step:
        case QuantizeStatic():
            return quantize_static(model, step, task)
        case QuantizeDynamic():
            return quantize_dynamic(model, step)
        case ToFloat16():
            return to_float16(model, step)
        case WeightOnly():
            return weight_only(model, step)
        case _:
            assert_never(step)


def reasons_left_alone(original: Any, step: Step, made: Any) -> dict[str, str]:
    """Return why layers are not what the step makes of layers, by layer name.

    A quantized layer that the runtime computes in float all the same is among them.

    Args:
        original: the model that the step was given.
        step: the step.
        made: the model that the step gave.
    """
    match step:
        case MagnitudePrune():
            reasons = {name: why_not_pruned(layer, step) for name, layer in named_layers(original)}
            return {name: why for name, why in reasons.items() if why}
        case QuantizeStatic() | QuantizeDynamic():
            # Asked of this machine, whatever the target: the report speaks of what ran here.
            return {**why_not_quantized(original, step), **why_not_int8(made, target=this_target())}
        case ToFloat16() | WeightOnly():
            return {}
        case _:
            assert_never(step)


def check_layer_names(model: Any, step: Step) -> None:
    """Refuse a step that names layers which the network does not have, before any training.

    Args:
        model: the network, trained or not.
        step: the step.

    Raises:
        UserError: if a name or pattern of the step matches no layer.
    """
    match step:
        case MagnitudePrune():
            check_names(model, step)
        case QuantizeStatic():
            names = [name for name, _ in named_layers(model)]
            for pattern in step.exclude:
                if not any(fnmatchcase(name, pattern) for name in names):
                    raise UserError(
                        f"exclude: no layer is named {pattern!r}; there are {', '.join(names)}"
                    )
        case QuantizeDynamic() | ToFloat16() | WeightOnly():
            return
        case _:
            assert_never(step)


def epochs_of(step: Step) -> int:
    """Return how many epochs of training a step takes."""
    return step.fine_tune.epochs if isinstance(step, MagnitudePrune) else 0
