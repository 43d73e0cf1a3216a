"""Every step there is, and how each is carried out: the one list that a new technique joins."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from typing_extensions import assert_never

from compress.data.task import Task
from compress.export.parity import require_parity
from compress.export.proven import Export, export
from compress.export.to_tflite import LiteRt, reasons_in_float, to_tflite
from compress.networks.named_layers import named_layers
from compress.prune.entropy import EntropyPrune, check_skipped, entropy_prune, why_not_coded
from compress.prune.magnitude import (
    MagnitudePrune,
    check_names,
    magnitude_prune,
    why_not_pruned,
)
from compress.quantize.as_trained import require_as_trained
from compress.quantize.aware import (
    QuantizeAware,
    as_static,
    check_excluded,
    learned,
    quantize_aware,
    why_not_aware,
)
from compress.quantize.fold import FoldBatchNorm, fold_batch_norm
from compress.quantize.mixed import (
    Mixed,
    OnSearch,
    QuantizeMixed,
    quantize_mixed,
    why_in_float,
)
from compress.quantize.post_training import (
    PostTraining,
    QuantizeDynamic,
    QuantizeStatic,
    ToFloat16,
    WeightOnly,
    quantize_dynamic,
    quantize_static,
    to_float16,
    weight_only,
    why_not_quantized,
    with_method,
)
from compress.train.fit import History, OnEpoch, TrainingFiles
from compress.train.teacher import Distillation, Teacher, why_not_hinted, why_not_hinting
from deploy.errors import UserError
from deploy.kernels import why_not_int8
from deploy.machine import this_target

KerasStep = MagnitudePrune | EntropyPrune | FoldBatchNorm | QuantizeAware
"""Steps that take a Keras model and give one."""

OnnxStep = PostTraining | QuantizeMixed
"""Steps that take an ONNX model and give one."""

LiteRtStep = LiteRt
"""Steps that take a Keras model and give the bytes of a ``.tflite`` file."""

PARITY_SAMPLES = 256
"""Real samples on which an export must agree with Keras."""
_FOLD_TOLERANCE = 1e-5
"""Float32 rounding; of outputs above 1, a share of the largest."""

Step = KerasStep | OnnxStep | LiteRtStep
"""Every step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What an ONNX step gave.

    Attributes:
        model: an ``onnx.ModelProto``.
        step: the step as it was carried out: what it left open is decided.
        search: how it was found, if it was searched for.
    """

    model: Any
    step: OnnxStep
    search: Mixed | None = None


def keras_step(
    model: Any,
    step: KerasStep,
    task: Task,
    *,
    seed: int,
    teacher: Any | None = None,
    on_epoch: OnEpoch | None = None,
    files: TrainingFiles | None = None,
) -> tuple[Any, History | None]:
    """Return what a step makes of a tf-keras model, which is left alone, and how it trained.

    Args:
        model: what the step is carried out on.
        step: the step.
        task: what is learned.
        seed: of its training.
        teacher: the tf-keras model that the training listens to if the step says so; may be
            ``model`` itself. None trains on the truth alone.
        on_epoch: told about the end of each epoch.
        files: what the training leaves on disk meanwhile.

    Raises:
        UserError: if the step does not fit the model or the task.
        ParityError: if folding changed the numbers.
    """
    how = distillation_of(step)
    taught = Teacher(model=teacher, how=how) if teacher is not None and how is not None else None
    match step:
        case MagnitudePrune():
            return magnitude_prune(
                model, step, task, seed=seed, teacher=taught, on_epoch=on_epoch, files=files
            )
        case EntropyPrune():
            return entropy_prune(
                model, step, task, seed=seed, teacher=taught, on_epoch=on_epoch, files=files
            )
        case FoldBatchNorm():
            return _folded(model, task), None
        case QuantizeAware():
            return quantize_aware(
                _folded(model, task),
                step,
                task,
                seed=seed,
                teacher=taught,
                on_epoch=on_epoch,
                files=files,
            )
        case _:
            assert_never(step)


def _folded(model: Any, task: Task) -> Any:
    folded, _ = fold_batch_norm(model)
    samples = task.validation.x[:PARITY_SAMPLES]
    before, after = (
        lambda x, made=made: np.asarray(made(x, training=False)) for made in (model, folded)
    )
    require_parity(before, after, samples, tolerance=_FOLD_TOLERANCE)
    return folded


def exported(model: Any, step: Step | None, settings: Export, task: Task) -> Any:
    """Return a tf-keras model as an ``onnx.ModelProto`` that gives its numbers.

    Args:
        model: what a Keras step, or the baseline's training, gave; left alone.
        step: that step; what ``QuantizeAware`` trained is written as int8.
        settings: opset and tolerance.
        task: gives the samples on which Keras and ONNX are compared.

    Raises:
        UserError: if the model cannot be exported.
        ParityError: if the file gives other numbers.
    """
    samples = task.validation.x[:PARITY_SAMPLES]
    if not isinstance(step, QuantizeAware):
        return export(model, settings, samples)
    plain, found = learned(model, step)
    float_model = export(plain, settings, samples)
    static = as_static(step, plain, float_model)
    quantized = quantize_static(float_model, static, task, learned=found)
    one = task.kind == "classification"
    require_as_trained(quantized, float_model, model, task.validation.x, chooses_class=one)
    return quantized


def onnx_step(
    model: Any, step: OnnxStep, task: Task, *, seed: int, on_search: OnSearch | None = None
) -> Made:
    """Return what a step makes of an ONNX model (``onnx.ModelProto``), which is left alone.

    Raises:
        UserError: if the step does not fit the model or the task.
    """
    match step:
        case QuantizeStatic():
            decided = with_method(model, step, task)
            return Made(model=quantize_static(model, decided, task), step=decided)
        case QuantizeMixed():
            made, search = quantize_mixed(model, step, task, seed=seed, on_search=on_search)
            return Made(model=made, step=search.step, search=search)
        case QuantizeDynamic():
            return Made(model=quantize_dynamic(model, step), step=step)
        case ToFloat16():
            return Made(model=to_float16(model, step), step=step)
        case WeightOnly():
            return Made(model=weight_only(model, step, task), step=step)
        case _:
            assert_never(step)


def litert_step(model: Any, step: LiteRtStep, task: Task) -> bytes:
    """Return what a step makes of a tf-keras model, which is left alone: a ``.tflite`` file."""
    match step:
        case LiteRt():
            return to_tflite(model, step, task)
        case _:
            assert_never(step)


def reasons_left_alone(original: Any, step: Step, made: Any) -> dict[str, str]:
    """Return why layers are not what the step makes of layers, by layer name.

    A quantized layer that the runtime computes in float all the same is among them.

    Args:
        original: the model that the step was given.
        step: the step.
        made: the model that the step gave, for LiteRT its bytes.
    """
    match step:
        case MagnitudePrune():
            reasons = {name: why_not_pruned(layer, step) for name, layer in named_layers(original)}
            return {name: why for name, why in reasons.items() if why}
        case EntropyPrune():
            layers = ((name, layer) for name, layer in named_layers(original) if layer.weights)
            reasons = {name: why_not_coded(name, layer, step) for name, layer in layers}
            return {name: why for name, why in reasons.items() if why}
        case FoldBatchNorm():
            return fold_batch_norm(original)[1]
        case QuantizeAware():
            layers = ((name, layer) for name, layer in named_layers(original) if layer.weights)
            reasons = {name: why_not_aware(name, layer, step) for name, layer in layers}
            unfolded = fold_batch_norm(original)[1]
            return {name: why for name, why in reasons.items() if why} | unfolded
        case QuantizeStatic() | QuantizeDynamic():
            # Asked of this machine, whatever the target: the report speaks of what ran here.
            return {**why_not_quantized(original, step), **why_not_int8(made, target=this_target())}
        case QuantizeMixed():
            return {
                **why_not_int8(made, target=this_target()),
                **why_in_float(original, step, made),
            }
        case ToFloat16() | WeightOnly():
            return {}
        case LiteRt():
            return reasons_in_float(made, step)
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
    how = distillation_of(step)
    why_not = how and (why_not_hinted(model, how) or why_not_hinting(model, how))
    if why_not:
        raise UserError(why_not)
    match step:
        case MagnitudePrune():
            check_names(model, step)
        case EntropyPrune():
            check_skipped(model, step)
        case QuantizeAware():
            check_excluded([name for name, _ in named_layers(model)], step)
        case QuantizeStatic():
            names = [name for name, _ in named_layers(model)]
            for pattern in step.exclude:
                if not any(fnmatchcase(name, pattern) for name in names):
                    raise UserError(
                        f"exclude: no layer is named {pattern!r}; there are {', '.join(names)}"
                    )
        case (
            FoldBatchNorm()
            | QuantizeDynamic()
            | QuantizeMixed()
            | ToFloat16()
            | WeightOnly()
            | LiteRt()
        ):
            return
        case _:
            assert_never(step)


def distillation_of(step: Step) -> Distillation | None:
    """Return how a step's training listens to its teacher; None if it has none, or does not train."""
    asked: Distillation | bool = getattr(step, "distill", False)
    if isinstance(asked, Distillation):
        return asked
    return Distillation() if asked else None


def epochs_of(step: Step) -> int:
    """Return how many epochs of training a step takes."""
    return (
        step.fine_tune.epochs
        if isinstance(step, MagnitudePrune | EntropyPrune | QuantizeAware)
        else 0
    )
