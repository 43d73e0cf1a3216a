"""Put two thin layers in the place of a wide one, where that is less work."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta
from typing_extensions import assert_never

from compress.data.task import Task
from compress.networks.named_layers import named_layers
from compress.networks.rewire import copied, rewired
from compress.prune.copied import require_built
from compress.train.fit import Fit, History, OnEpoch, TrainingFiles, fit
from compress.train.teacher import Distillation, Teacher
from deploy.errors import UserError
from deploy.record import Record

Array = npt.NDArray[Any]
Share = Annotated[float, Meta(gt=0, le=1)]
Positive = Annotated[int, Meta(ge=1)]
Speedup = Callable[[Any], float]
"""From a tf-keras model to how many times faster it is than the one that was given."""
Scheme = Literal["channel", "spatial"]

_LADDER = (0.99, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Shares of energy that a search for a latency tries."""
_ROUNDING = 1e-12
"""Share of the energy that float32 weights have by rounding alone."""


class ByEnergy(Record, frozen=True, tag_field="kind", tag="energy"):
    """The smallest rank that keeps a share of a layer's squared singular values."""

    kept: Share = 0.9


class ByRank(Record, frozen=True, tag_field="kind", tag="rank"):
    """One rank for all layers."""

    rank: Positive


class BySpeed(Record, frozen=True, tag_field="kind", tag="latency"):
    """The most energy that makes the network so much faster, as measured on this machine.

    Nothing else should run on it meanwhile. A layer whose pair measures no faster stays whole.
    """

    speedup: Annotated[float, Meta(gt=1)]
    """Over the network that the step is given, batch 1, in float."""
    threads: Positive = 1
    """Threads to time with; use those of the device."""


class LowRank(Record, frozen=True, tag_field="kind", tag="low_rank"):
    """Put two thin layers in the place of a dense layer or convolution: a truncated SVD of its kernel.

    Nothing else is trained unless ``fine_tune`` says so. A layer for which two would be more work,
    or more weights, stays as it is.
    """

    by: ByEnergy | ByRank | BySpeed = ByEnergy()
    """What decides the ranks."""
    per_layer: dict[str, Positive] = {}
    """Ranks of single layers, by name."""
    skip: tuple[str, ...] = ()
    """Names of layers left alone; ``*``, ``?`` and ``[]`` match as in a shell."""
    scheme: Literal["auto", "channel", "spatial"] = "auto"
    """How a k×k convolution is split: ``channel`` into k×k with few outputs and 1×1 (Zhang et al.
    2015), ``spatial`` into k×1 and 1×k (Jaderberg et al. 2014), ``auto`` as is less work."""
    multiple_of: Positive = 1
    """Ranks are rounded up to multiples of this, which kernels may be faster with."""
    fine_tune: Fit | None = None
    """How the model trains afterwards; None leaves it as the SVD gives it."""
    distill: Distillation | bool = Distillation()
    """How the fine-tuning listens to the baseline beside the truth; false leaves the baseline out."""


@dataclass(frozen=True, slots=True)
class Split:
    """How a layer becomes two."""

    scheme: Scheme
    rank: int


def low_rank(
    model: Any,
    step: LowRank,
    task: Task,
    *,
    seed: int,
    measure: Speedup | None = None,
    teacher: Teacher | None = None,
    on_epoch: OnEpoch | None = None,
    files: TrainingFiles | None = None,
) -> tuple[Any, History | None]:
    """Return a model with layers split in two, and how its fine-tuning went.

    The second of two layers keeps the name, bias and activation; the first is ``NAME_basis``.
    Models inside the model are opened up: their layers are called ``inner/layer``.

    Args:
        model: a functional or Sequential tf-keras model that was trained; left alone.
        step: what to split and how.
        task: what to fine-tune on.
        seed: of the fine-tuning.
        measure: how a latency is measured; needed for that alone.
        teacher: whose answers the fine-tuning listens to.
        on_epoch: told about the end of each epoch.
        files: what the fine-tuning leaves on disk meanwhile.

    Raises:
        UserError: if a name fits no layer, no layer is left to split, the latency cannot be
            reached, or the fine-tuning fails (see ``fit``).
    """
    require_built(model)
    check_low_rank_names(model, step)
    if isinstance(step.by, BySpeed):
        if measure is None:
            raise ValueError("a latency needs a way to measure it")
        plan = _fast_enough(model, step, step.by.speedup, measure)
    else:
        plan, _ = splits(model, step)
    if not plan:
        raise UserError(f"low_rank: nothing is left to split ({_listed(splits(model, step)[1])})")
    made = split_layers(model, plan)
    if step.fine_tune is None:
        return made, None
    history = fit(
        made, task, step.fine_tune, seed=seed, teacher=teacher, on_epoch=on_epoch, files=files
    )
    return made, history


def splits(
    model: Any, step: LowRank, *, kept: float | None = None
) -> tuple[dict[str, Split], dict[str, str]]:
    """Return which layers become two and how, and why the other layers with weights do not.

    Args:
        model: the trained model.
        step: the step.
        kept: the share of energy, where the step leaves it open.
    """
    plan: dict[str, Split] = {}
    reasons: dict[str, str] = {}
    layers = dict(named_layers(model))
    for name, layer in layers.items():
        if not layer.weights:
            continue
        why_not = why_not_split(name, layer, step, layers)
        found = why_not or _cheapest(name, layer, step, kept)
        if isinstance(found, Split):
            plan[name] = found
        else:
            reasons[name] = found
    return plan, reasons


def reasons_whole(original: Any, step: LowRank, made: Any) -> dict[str, str]:
    """Say of every layer with weights that was not split why not.

    Args:
        original: the model that the step was given.
        step: the step.
        made: the model that it gave.
    """
    there = {name for name, _ in named_layers(made)}
    least = _LADDER[-1] if isinstance(step.by, BySpeed) else None
    plan, reasons = splits(original, step, kept=least)
    slow = {
        name: "two layers in its place are no less work at the energy kept, or measured no faster"
        for name in plan
        if _basis(name) not in there
    }
    return reasons | slow


def ranks_said(original: Any, made: Any) -> dict[str, str]:
    """Say of the first of the two layers in the place of each that was split what its rank is.

    Args:
        original: the model that the step was given.
        made: the model that it gave.
    """
    before, now = dict(named_layers(original)), dict(named_layers(made))
    split = [name for name in before if _basis(name) in now and _basis(name) not in before]
    ranks = {name: now[_basis(name)].output_shape[-1] for name in split}
    return {_basis(name): f"rank {rank}, before {name}" for name, rank in ranks.items()}


def why_not_split(
    name: str, layer: Any, step: LowRank, layers: Mapping[str, Any] | None = None
) -> str | None:
    """Say why a layer cannot be split, or is not to be, whatever its weights; None if it may.

    Args:
        name: its name, ``inner/layer`` in a model inside the model.
        layer: the layer.
        step: the step.
        layers: the layers of the model by name.
    """
    pattern = next((p for p in step.skip if fnmatchcase(name, p)), None)
    if pattern is not None:
        return f"skipped: '{pattern}'"
    kind = type(layer).__name__
    if not type(layer).__module__.startswith("tf_keras.") or kind not in {"Dense", "Conv2D"}:
        return f"layers of type {kind} are not split"
    if kind == "Conv2D" and layer.groups != 1:
        return f"its channels are in {layer.groups} groups, each thin already"
    if kind == "Conv2D" and layer.data_format != "channels_last":
        return "its channels come first"
    if layer.kernel_constraint is not None:
        return "its kernel has a constraint, which two kernels would not keep"
    if layers is not None and _basis(name) in layers:
        return "was split before"
    return None


def check_low_rank_names(model: Any, step: LowRank) -> None:
    """Raise a UserError if the step names layers that cannot be meant, or leaves none to split.

    Asked before a long training, of the untrained network.
    """
    layers = dict(named_layers(model))
    for pattern in step.skip:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise UserError(f"skip: no layer is named '{pattern}'; there are {', '.join(layers)}")
    for name, rank in step.per_layer.items():
        if name not in layers:
            raise UserError(f"per_layer: no layer is named '{name}'; there are {', '.join(layers)}")
        why_not = why_not_split(name, layers[name], step, layers)
        found = why_not or _cheapest(name, layers[name], step, None)
        if isinstance(found, str):
            raise UserError(f"per_layer: '{name}' cannot be split at rank {rank}: {found}")
    # How much energy a rank keeps is known of trained weights alone.
    whatever = ByRank(rank=1) if not isinstance(step.by, ByRank) else step.by
    plan, reasons = splits(model, msgspec.structs.replace(step, by=whatever))
    if not plan:
        raise UserError(f"low_rank: nothing is left to split ({_listed(reasons)})")


def split_layers(model: Any, plan: Mapping[str, Split]) -> Any:
    """Return a model in which each layer of a plan is two, with weights of its own.

    At full rank it gives the same numbers but for rounding.
    """
    made: list[tuple[Any, list[Array]]] = []

    def make(layer: Any, name: str) -> Callable[..., Any]:
        split = plan.get(name)
        if split is None:
            twin: Callable[..., Any] = copied(layer, name)
            made.append((twin, layer.get_weights()))
            return twin
        first, second = _thin_layers(layer, name, split)
        basis, mixing = factors(layer.get_weights()[0], split)
        made.append((first, [basis]))
        made.append((second, [mixing, *layer.get_weights()[1:]]))
        return lambda x, **_: second(first(x))

    result = rewired(model, make)
    for layer, weights in made:
        layer.set_weights(weights)
    return result


def factors(kernel: Array, split: Split) -> tuple[Array, Array]:
    """Return the kernels of two layers whose product is nearest to a kernel in least squares.

    A dense kernel is a matrix ``(inputs, outputs)``. ``channel`` takes a convolution's
    ``(height, width, inputs, outputs)`` as one of ``(height · width · inputs, outputs)``: Zhang et
    al., "Accelerating very deep convolutional networks for classification and detection" (2015),
    section 3.1, without its regard for what the layer reads; for 1×1 and dense layers Denton et
    al., "Exploiting linear structure within convolutional networks for efficient evaluation"
    (2014). ``spatial`` takes it as ``(height · inputs, width · outputs)``: scheme 2
    of Jaderberg et al., "Speeding up convolutional neural networks with low rank expansions"
    (2014), whose best fit of the filters this SVD is (Tai et al. 2016, theorem 1).

    Returns:
        Kernels in float32; the singular values are shared alike by both.
    """
    left, values, right = _svd(kernel, split.scheme)
    rank, root = split.rank, np.sqrt(values[: split.rank])
    basis, mixing = left[:, :rank] * root, root[:, None] * right[:rank]
    if kernel.ndim == 4:
        height, width, inputs, outputs = kernel.shape
        if split.scheme == "channel":
            basis = basis.reshape(height, width, inputs, rank)
            mixing = mixing.reshape(1, 1, rank, outputs)
        else:
            basis = basis.reshape(height, 1, inputs, rank)
            mixing = mixing.reshape(1, rank, width, outputs).transpose(0, 2, 1, 3)
    return basis.astype(np.float32), mixing.astype(np.float32)


def rank_for(values: Array, kept: float) -> int:
    """Return the smallest rank that keeps a share of the energy, the sum of squares.

    Args:
        values: singular values, descending.
        kept: the share.

    >>> rank_for(np.array([3.0, 1.0, 0.0]), 0.9), rank_for(np.array([3.0, 1.0, 0.0]), 1.0)
    (1, 2)
    """
    energy = np.square(values.astype(np.float64))
    lost = np.append(np.cumsum(energy[::-1])[::-1], 0.0)  # by rank, from 0
    allowed = (1 - kept + _ROUNDING) * lost[0]
    return max(1, int(np.argmax(lost <= allowed)))


def _basis(name: str) -> str:
    return f"{name}_basis"


def _listed(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in reasons.items())


def _svd(kernel: Array, scheme: Scheme) -> tuple[Array, Array, Array]:
    wide = kernel.astype(np.float64)
    if kernel.ndim == 4 and scheme == "spatial":
        height, width, inputs, outputs = kernel.shape
        matrix = wide.transpose(0, 2, 1, 3).reshape(height * inputs, width * outputs)
    else:
        matrix = wide.reshape(-1, kernel.shape[-1])
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return left, values, right


def _cheapest(name: str, layer: Any, step: LowRank, kept: float | None) -> Split | str:
    """Return how a layer is split for the least work, or why not at all."""
    kernel = layer.kernel.numpy()
    one_by_one = kernel.ndim == 2 or kernel.shape[:2] == (1, 1)
    schemes: tuple[Scheme, ...] = ("channel", "spatial")
    if step.scheme != "auto" or one_by_one:
        schemes = ("channel",) if one_by_one or step.scheme == "channel" else ("spatial",)
    whole = kernel.size
    refused = []
    found: list[tuple[float, Split]] = []
    for scheme in schemes:
        full, rank = _rank(name, kernel, step, scheme, kept)
        rank = min(full, math.ceil(rank / step.multiple_of) * step.multiple_of)
        work, weights = _costs(layer, scheme, rank)
        if work < whole and weights < whole:
            found.append((work, Split(scheme, rank)))
        else:
            refused.append(
                f"at rank {rank} of {full} two layers ({scheme}) would take "
                f"{work / whole:.2f}× its multiplications and {weights / whole:.2f}× its weights"
            )
    return min(found, key=lambda one: one[0])[1] if found else "; ".join(refused)


def _rank(
    name: str, kernel: Array, step: LowRank, scheme: Scheme, kept: float | None
) -> tuple[int, int]:
    """Return the full rank of a kernel's matrix, and the rank that is asked of it."""
    height, width = kernel.shape[:2] if kernel.ndim == 4 else (1, 1)
    inputs, outputs = kernel.shape[-2:]
    if scheme == "spatial":
        full = min(height * inputs, width * outputs)
    else:
        full = min(height * width * inputs, outputs)
    if name in step.per_layer:
        return full, min(full, step.per_layer[name])
    match step.by:
        case ByRank(rank=rank):
            return full, min(full, rank)
        case ByEnergy(kept=share):
            return full, rank_for(_svd(kernel, scheme)[1], share)
        case BySpeed():
            return full, rank_for(_svd(kernel, scheme)[1], 1.0 if kept is None else kept)
        case _:
            assert_never(step.by)


def _costs(layer: Any, scheme: Scheme, rank: int) -> tuple[float, int]:
    """Return multiplications for each pixel that comes out, and weights, of two layers."""
    shape = tuple(layer.kernel.shape)
    inputs, outputs = shape[-2:]
    height, width = shape[:2] if len(shape) == 4 else (1, 1)
    if scheme == "channel":
        weights = rank * (height * width * inputs + outputs)
        return weights, weights
    first, second = rank * height * inputs, rank * width * outputs
    # The first of two steps down the image alone, so that it computes more columns.
    columns = layer.strides[1]
    wide, narrow = (at(0)[2] for at in (layer.get_input_shape_at, layer.get_output_shape_at))
    if wide and narrow:
        columns = wide / narrow
    return first * columns + second, first + second


def _thin_layers(layer: Any, name: str, split: Split) -> tuple[Any, Any]:
    """Return the two layers in place of one, their weights still to be set."""
    # An initializer may fit only the shape that was.
    fresh = {"kernel_initializer": "glorot_uniform"}
    first: dict[str, Any] = {
        **fresh,
        "use_bias": False,
        "activation": "linear",
        "activity_regularizer": None,
    }
    second: dict[str, Any] = dict(fresh)
    if type(layer).__name__ == "Dense":
        first["units"] = split.rank
    elif split.scheme == "channel":
        first["filters"] = split.rank
        second |= {"kernel_size": (1, 1), "strides": (1, 1), "dilation_rate": (1, 1)}
    else:
        first["filters"] = split.rank
        for key in ("kernel_size", "strides", "dilation_rate"):
            down, across = getattr(layer, key)
            first[key], second[key] = (down, 1), (1, across)
    return copied(layer, _basis(name), **first), copied(layer, name, **second)


def _fast_enough(model: Any, step: LowRank, speedup: float, measure: Speedup) -> dict[str, Split]:
    """Return the splits that keep most energy and are fast enough, as measured.

    Energy is halved for on a ladder; then each layer that is faster whole is left whole.
    """
    measured: dict[float, float] = {}

    def faster(kept: float) -> float:
        if kept not in measured:
            plan, _ = splits(model, step, kept=kept)
            measured[kept] = measure(split_layers(model, plan)) if plan else 1.0
        return measured[kept]

    low, high = 0, len(_LADDER) - 1  # the answer lies between, if there is one
    if faster(_LADDER[high]) < speedup:
        raise UserError(
            f"by.speedup: {speedup:g}× was not reached: with {_LADDER[high]:.0%} of each layer's "
            f"energy it measured {faster(_LADDER[high]):.2f}×; ask for less, or take channels out"
        )
    while low < high:
        middle = (low + high) // 2
        if faster(_LADDER[middle]) < speedup:
            low = middle + 1
        else:
            high = middle
    plan, _ = splits(model, step, kept=_LADDER[high])
    best = faster(_LADDER[high])
    for name in [name for name in plan if len(plan) > 1 and name not in step.per_layer]:
        without = {other: split for other, split in plan.items() if other != name}
        if without and (seen := measure(split_layers(model, without))) >= best:
            plan, best = without, seen
    return plan
