"""Every step there is, and how each is carried out: the one list that a new technique joins."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from typing_extensions import assert_never

from compress.data.task import Split, Task
from compress.export.parity import require_parity
from compress.export.proven import Export, export
from compress.export.to_onnx import to_onnx
from compress.export.to_tflite import LiteRt, reasons_in_float, to_tflite
from compress.networks.named_layers import named_layers
from compress.prune.blocks import (
    PruneBlocks,
    block_facts,
    check_blocks,
    prune_blocks,
    with_blocks_named,
    without_blocks,
)
from compress.prune.channels import (
    Faster,
    PruneChannels,
    channel_facts,
    check_channel_names,
    prune_channels,
)
from compress.prune.clusters import (
    Cluster,
    check_clustered,
    cluster,
    reasons_not_clustered,
    why_not_as_clustered,
)
from compress.prune.dead import RemoveDead, dead_facts, remove_dead
from compress.prune.distill import Distill, distill
from compress.prune.entropy import EntropyPrune, check_skipped, entropy_prune, reasons_not_coded
from compress.prune.low_rank import (
    BySpeed,
    LowRank,
    check_low_rank_names,
    low_rank,
    ranks_said,
    reasons_whole,
)
from compress.prune.magnitude import (
    MagnitudePrune,
    check_names,
    magnitude_prune,
    reasons_not_pruned,
)
from compress.quantize.as_trained import require_as_planned, require_as_trained
from compress.quantize.aware import (
    QuantizeAware,
    as_static,
    check_excluded,
    learned,
    quantize_aware,
    why_not_aware,
    why_not_kept,
)
from compress.quantize.dynamic import QuantizeDynamic, quantize_dynamic, why_not_dynamic
from compress.quantize.fold import FoldBatchNorm, fold_batch_norm
from compress.quantize.layout import Int8Layout, int8_layout, refuse_unfit_layout
from compress.quantize.mixed import (
    Mixed,
    OnSearch,
    QuantizeMixed,
    quantize_mixed,
    why_in_float,
)
from compress.quantize.static import (
    QuantizeStatic,
    quantize_static,
    refuse_unfit_static,
    static_ranges,
    why_not_static,
    with_method,
)
from compress.quantize.storage import ToFloat16, WeightOnly, to_float16, weight_only
from compress.quantize.unfit import refuse_unfit
from compress.quantize.width_to_depth import why_wide
from compress.train.fit import History, OnEpoch, TrainingFiles
from compress.train.teacher import Distillation, Teacher, why_not_hinted, why_not_hinting
from deploy.bench import Bench, race
from deploy.errors import ParityError, UserError
from deploy.kernels import why_not_int8
from deploy.machine import this_target
from deploy.record import Artifact

KerasStep = (
    MagnitudePrune
    | EntropyPrune
    | PruneChannels
    | PruneBlocks
    | RemoveDead
    | LowRank
    | Cluster
    | Distill
    | FoldBatchNorm
    | QuantizeAware
)
"""Steps that take a Keras model and give one."""

OnnxStep = QuantizeStatic | QuantizeDynamic | ToFloat16 | WeightOnly | QuantizeMixed | Int8Layout
"""Steps that take an ONNX model and give one."""

LiteRtStep = LiteRt
"""Steps that take a Keras model and give the bytes of a ``.tflite`` file."""

PARITY_SAMPLES = 256
"""Real samples on which an export must agree with Keras."""
_BRIEF = Bench(processes=5, sessions_per_process=2, rounds=10, block_ms=2.0, batch=1)
"""How long one network is timed in a search for a latency."""
_FEW = 8
"""Samples that are calibrated on where only shapes count."""
_LOSSLESS_TOLERANCE = 1e-5
"""Float32 rounding; of outputs above 1, a share of the largest."""

Step = KerasStep | OnnxStep | LiteRtStep
"""Every step."""

AnyStep = TypeVar("AnyStep", bound=Step)


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


def keras_step(  # noqa: C901  # one case a step
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
        ParityError: if a step without loss changed the numbers.
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
        case PruneChannels():
            threads = step.target.threads if isinstance(step.target, Faster) else 1
            return prune_channels(
                model,
                step,
                task,
                seed=seed,
                teacher=taught,
                on_epoch=on_epoch,
                files=files,
                measure=_speedup_over(model, threads=threads, seed=seed),
            )
        case PruneBlocks():
            return prune_blocks(
                model, step, task, seed=seed, teacher=taught, on_epoch=on_epoch, files=files
            )
        case RemoveDead():
            return _proven(model, remove_dead(model, step), task), None
        case LowRank():
            threads = step.by.threads if isinstance(step.by, BySpeed) else 1
            return low_rank(
                model,
                step,
                task,
                seed=seed,
                measure=_speedup_over(model, threads=threads, seed=seed),
                teacher=taught,
                on_epoch=on_epoch,
                files=files,
            )
        case Cluster():
            return cluster(
                _folded(model, task),
                step,
                task,
                seed=seed,
                teacher=taught,
                on_epoch=on_epoch,
                files=files,
            )
        case Distill():
            return distill(
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


def _speedup_over(original: Any, *, threads: int, seed: int) -> Callable[[Any], float]:
    """Return how a tf-keras model is timed beside the original, in ONNX Runtime."""
    settings = msgspec.structs.replace(_BRIEF, threads=threads)

    def measure(candidate: Any) -> float:
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder, f"{name}.onnx") for name in ("original", "candidate")]
            for path, model in zip(paths, (original, candidate), strict=True):
                onnx.save(to_onnx(model, opset=Export().opset), path)
            return race(paths, settings, seed=seed)[1].value

    return measure


def _folded(model: Any, task: Task) -> Any:
    return _proven(model, fold_batch_norm(model)[0], task)


def _proven(model: Any, made: Any, task: Task) -> Any:
    """Return a tf-keras model that was made of another without loss, if it gives its numbers."""
    samples = task.validation.x[:PARITY_SAMPLES]
    before, after = (lambda x, one=one: np.asarray(one(x, training=False)) for one in (model, made))
    require_parity(before, after, samples, tolerance=_LOSSLESS_TOLERANCE)
    return made


def exported(
    model: Any, step: Step | None, settings: Export, task: Task
) -> tuple[Any, float | None]:
    """Return a tf-keras model as an ``onnx.ModelProto`` that gives its numbers, and how often it does.

    The second is the share of samples on which it chooses the class that the Keras model chooses,
    of what ``QuantizeAware`` trained for classes; None of all else, which is compared by value.

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
        return export(model, settings, samples), None
    plain, found = learned(model, step)
    float_model = export(plain, settings, samples)
    static = as_static(step, plain, float_model)
    ranges = static_ranges(float_model, static, task)
    quantized = quantize_static(float_model, static, task, learned=found, ranges=ranges)
    one = task.kind == "classification"
    # Two forms of one model are compared, on samples without their truth; a search has no test samples.
    proof = task.test.x if len(task.test) else task.validation.x
    agreement = require_as_trained(quantized, float_model, model, proof, chooses_class=one)
    after = quantize_static(float_model, static, task, ranges=ranges)
    require_as_planned(quantized, after, target=static.target)
    return quantized, agreement


def require_kept(made: Artifact, step: Step | None, parent: Artifact | None) -> None:
    """Check in the bytes of a file what its step promises of its weights.

    A clustered kernel has no more distinct values than were asked for; training for int8 keeps the
    zeros, and where asked for the number of distinct values, of each kernel it is given.

    Args:
        made: the record of the file.
        step: the step that made it; None is the baseline's training.
        parent: the record of the file that the step's parent became.

    Raises:
        ParityError: if a layer breaks the promise.
    """
    why_not = None
    if isinstance(step, Cluster):
        why_not = why_not_as_clustered(made.layers, step)
    elif isinstance(step, QuantizeAware) and parent is not None:
        why_not = why_not_kept(made.layers, parent.layers, step)
    if why_not is not None:
        raise ParityError(why_not)


def aimed(step: AnyStep) -> AnyStep:
    """Return a step as it is carried out: one that names no target aims at this machine."""
    if isinstance(step, QuantizeStatic | QuantizeDynamic | QuantizeAware) and step.target is None:
        return msgspec.structs.replace(step, target=this_target())
    return step


def as_carried_out(step: KerasStep, original: Any, made: Any) -> KerasStep:
    """Return a step on a tf-keras model as a record has it: with its target, and blocks by name.

    Args:
        step: the step.
        original: the model that it was given.
        made: the model that it gave.
    """
    if isinstance(step, PruneBlocks):
        return with_blocks_named(step, original, made)
    return aimed(step)


def onnx_step(
    model: Any, step: OnnxStep, task: Task, *, seed: int, on_search: OnSearch | None = None
) -> Made:
    """Return what a step makes of an ONNX model (``onnx.ModelProto``), which is left alone.

    Raises:
        UserError: if the step does not fit the model or the task.
    """
    match step:
        case QuantizeStatic():
            whole = with_method(model, aimed(step), task)
            return Made(model=quantize_static(model, whole, task), step=whole)
        case QuantizeMixed():
            made, search = quantize_mixed(model, step, task, seed=seed, on_search=on_search)
            return Made(model=made, step=search.step, search=search)
        case QuantizeDynamic():
            return Made(model=quantize_dynamic(model, step), step=aimed(step))
        case ToFloat16():
            return Made(model=to_float16(model, step), step=step)
        case WeightOnly():
            return Made(model=weight_only(model, step, task), step=step)
        case Int8Layout():
            laid, done = int8_layout(model, step, task, seed=seed, on_timing=on_search)
            return Made(model=laid, step=done)
        case _:
            assert_never(step)


def check_model(model: Any, step: OnnxStep) -> None:
    """Refuse an ONNX model that a step cannot take, before anything is calibrated or timed.

    Args:
        model: a ``ModelProto``.
        step: the step.

    Raises:
        UserError: as ``onnx_step`` does of the model, where that takes no sample to see.
    """
    match step:
        case QuantizeStatic():
            refuse_unfit_static(model, step)
        case QuantizeMixed():
            refuse_unfit_static(model, QuantizeStatic())  # all of it in int8 is one of the choices
        case QuantizeDynamic() | ToFloat16() | WeightOnly():
            refuse_unfit(model)
        case Int8Layout():
            refuse_unfit_layout(model, step)
        case _:
            assert_never(step)


def litert_step(model: Any, step: LiteRtStep, task: Task) -> bytes:
    """Return what a step makes of a tf-keras model, which is left alone: a ``.tflite`` file."""
    match step:
        case LiteRt():
            return to_tflite(model, step, task)
        case _:
            assert_never(step)


def reasons_left_alone(original: Any, step: Step, made: Any) -> dict[str, str]:  # one case a step
    """Return why layers are not what the step makes of layers, by layer name.

    A quantized layer that the runtime computes in float all the same is among them.

    Args:
        original: the model that the step was given.
        step: the step.
        made: the model that the step gave, for LiteRT its bytes.
    """
    if isinstance(step, KerasStep):
        return _reasons_in_keras(original, step, made)
    match step:
        # Asked of this machine, whatever the target: the report speaks of what ran here.
        case QuantizeStatic():
            return {**why_not_static(original, step), **why_not_int8(made, target=this_target())}
        case QuantizeDynamic():
            return {**why_not_dynamic(original, step), **why_not_int8(made, target=this_target())}
        case QuantizeMixed():
            return {
                **why_not_int8(made, target=this_target()),
                **why_in_float(original, step, made),
            }
        case Int8Layout():
            return {**why_wide(made), **why_not_int8(made, target=this_target())}
        case ToFloat16() | WeightOnly():
            return {}
        case LiteRt():
            return reasons_in_float(made, step)
        case _:
            assert_never(step)


def _reasons_in_keras(  # noqa: C901  # one case a step
    original: Any, step: KerasStep, made: Any
) -> dict[str, str]:
    match step:
        case MagnitudePrune():
            return reasons_not_pruned(original, step)
        case EntropyPrune():
            return reasons_not_coded(original, step)
        case PruneChannels():
            return channel_facts(original, made, step)
        case PruneBlocks():
            return block_facts(original, made)
        case RemoveDead():
            return dead_facts(original, made, step)
        case LowRank():
            return {**reasons_whole(original, step, made), **ranks_said(original, made)}
        case Cluster():
            return reasons_not_clustered(original, step) | fold_batch_norm(original)[1]
        case Distill():
            return {}
        case FoldBatchNorm():
            return fold_batch_norm(original)[1]
        case QuantizeAware():
            return _reasons_not_aware(original, step)
        case _:
            assert_never(step)


def _reasons_not_aware(model: Any, step: QuantizeAware) -> dict[str, str]:
    layers = ((name, layer) for name, layer in named_layers(model) if layer.weights)
    reasons = {name: why_not_aware(name, layer, step) for name, layer in layers}
    unfolded = fold_batch_norm(model)[1]
    return {name: why for name, why in reasons.items() if why} | unfolded


def check_layer_names(  # noqa: C901  # one case a step
    model: Any, step: Step, *, teacher: Any | None = None
) -> None:
    """Refuse a step that names layers which the network does not have, before any training.

    Args:
        model: the network, trained or not.
        step: the step.
        teacher: the one that its training listens to; None is ``model`` itself.

    Raises:
        UserError: if a name or pattern of the step matches no layer.
    """
    _check_hints(model, step, model if teacher is None else teacher)
    match step:
        case MagnitudePrune():
            check_names(model, step)
        case EntropyPrune():
            check_skipped(model, step)
        case PruneChannels():
            check_channel_names(model, step)
        case PruneBlocks():
            check_blocks(model, step)
        case LowRank():
            check_low_rank_names(model, step)
        case Cluster():
            check_clustered(model, step)
        case QuantizeAware():
            check_excluded([name for name, _ in named_layers(model)], step)
        case QuantizeStatic():
            _check_left_out(model, step)
        case Int8Layout():
            _check_columns(model, step)
        case (
            FoldBatchNorm()
            | Distill()
            | RemoveDead()
            | QuantizeDynamic()
            | QuantizeMixed()
            | ToFloat16()
            | WeightOnly()
            | LiteRt()
        ):
            return
        case _:
            assert_never(step)


def _check_hints(model: Any, step: Step, teacher: Any) -> None:
    """Raise a UserError if hints name layers that the teacher, or who learns, will not have."""
    how = distillation_of(step)
    if how is None:
        return
    learns = None if isinstance(step, Distill) and step.network else without_named(model, step)
    why_not = (learns and why_not_hinted(learns, how)) or why_not_hinting(teacher, how)
    if why_not:
        raise UserError(why_not)


def without_named(model: Any, step: Step) -> Any:
    """Return the network, trained or not, with the layers that a step leaves, as far as they are named."""
    if isinstance(step, PruneBlocks) and step.blocks:
        check_blocks(model, step)
        return without_blocks(model, step)
    return model


def leaves_known_shapes(step: Step) -> bool:
    """Say whether a Keras step decides no shape while it runs."""
    if isinstance(step, PruneBlocks):
        return bool(step.blocks)
    return isinstance(
        step, MagnitudePrune | EntropyPrune | Cluster | Distill | FoldBatchNorm | QuantizeAware
    )


def int8_of_these_shapes(
    model: Any, step: QuantizeStatic | QuantizeAware, settings: Export, task: Task
) -> Any:
    """Return an int8 ``ModelProto`` with the shapes of the one that a step will make, of no use else.

    Args:
        model: a tf-keras model of the shapes that the step will be given, trained or not; left alone.
        step: the step; it trains nothing here.
        settings: opset of the export.
        task: a few of its calibration samples are looked at.

    Raises:
        UserError: if the model cannot be exported, or the step does not fit it.
    """
    plain = fold_batch_norm(model)[0] if isinstance(step, QuantizeAware) else model
    float_model = to_onnx(plain, opset=settings.opset)
    static = as_static(step, plain, float_model) if isinstance(step, QuantizeAware) else step
    few = {name: getattr(task.calibration, name)[:_FEW] for name in ("raw", "x", "y")}
    return quantize_static(
        float_model,
        msgspec.structs.replace(static, calibration="minmax", percentile=None, correct=()),
        dataclasses.replace(task, calibration=Split(**few)),
    )


def _check_left_out(model: Any, step: QuantizeStatic) -> None:
    names = [name for name, _ in named_layers(model)]
    for pattern in step.exclude:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"exclude: no layer is named {pattern!r}; there are {', '.join(names)}")


def _check_columns(model: Any, step: Int8Layout) -> None:
    names = [name for name, layer in named_layers(model) if "Conv" in type(layer).__name__]
    for asked in step.columns if step.columns != "auto" else ():
        if asked not in names:
            there = f"there are {', '.join(names)}" if names else "there is none"
            raise UserError(f"columns: no convolution is named {asked!r}; {there}")


def distillation_of(step: Step) -> Distillation | None:
    """Return how a step's training listens to its teacher; None if it has none, or does not train."""
    if isinstance(step, LowRank) and step.fine_tune is None:
        return None
    asked: Distillation | bool = getattr(step, "distill", False)
    if isinstance(asked, Distillation):
        return asked
    return Distillation() if asked else None


def epochs_of(step: Step) -> int:
    """Return how many epochs of training a step takes."""
    if isinstance(step, PruneChannels):
        return step.epochs
    if isinstance(step, LowRank):
        return step.fine_tune.epochs if step.fine_tune else 0
    if isinstance(step, Distill):
        return step.train.epochs
    if isinstance(step, MagnitudePrune | EntropyPrune | PruneBlocks | Cluster | QuantizeAware):
        return step.fine_tune.epochs
    return 0
