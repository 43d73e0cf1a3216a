"""Look at the graph that ONNX Runtime runs in place of a model."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort

from deploy.audit.found import ONE_CHANNEL, Audit, AuditedLayer, Times
from deploy.audit.leftovers import CONVERSIONS, LAYOUT, graph_facts
from deploy.audit.profile import Profile, profiles
from deploy.audit.tflite_file import audit_tflite
from deploy.audit.verdict import verdict
from deploy.bench import Bench, log_p50, noise, speedups, timed_together
from deploy.bench_child import Timed
from deploy.errors import UserError, needs_extra
from deploy.graph import Weighted, array_of, constants, depthwise, macs_by_node, weighted_nodes
from deploy.kernels import INT8_OPERATORS, can_saturate, kernels_of, obstacle, optimized
from deploy.machine import this_environment, this_target
from deploy.record import Interval, SessionOptions
from deploy.session import open_model
from deploy.tflite import is_tflite

RACE = Bench(processes=10, sessions_per_process=2, rounds=10, block_ms=4.0, batch=1)
"""How long two models are timed beside each other: some 8 s for small ones."""
_SLOWER, _SLOWER_US = 1.1, 1.0
"""Layers whose times differ by a smaller share, or by less than they are known to, are called equal."""


def audit(
    path: Path,
    options: SessionOptions = SessionOptions(),
    *,
    against: Path | None = None,
    timed: bool = True,
    race_settings: Bench | None = RACE,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Look at the graph that ONNX Runtime runs in place of a model, and time its layers.

    Layers are timed by ONNX Runtime's profiler, on random inputs, in several sessions of both models
    interleaved; what the profiler adds is taken off. Whether the model is faster than ``against`` is
    no sum of such times: whole calls are timed for it, without the profiler, as ``bench`` does, and
    the times of layers are scaled to what a call took there.

    Of a ``.tflite`` file the graph is that of the file: LiteRT shows neither another nor times.

    Args:
        path: an ONNX or ``.tflite`` file with one input and one output.
        options: how the model is opened.
        against: a second model to time beside it, as its float form; layers are paired by name.
        timed: whether to run the model at all; reading the graph takes milliseconds.
        race_settings: how whole calls are timed against ``against``, but for threads, arena and mmap,
            which are those of ``options``; None to time layers alone.
        seed: of the random inputs and the order in which models run.
        on_progress: called with processes done and processes in all, of the timing of whole calls.

    Raises:
        UserError: if a file is missing or no model that ``open_model`` takes, or ``against`` is
            given and one of the two is a ``.tflite`` file or they take samples of other shapes.
        MissingExtraError: if ``onnx`` is not installed, as on a device.
    """
    if any(
        f is not None and f.is_file() and is_tflite(f.read_bytes()[:8]) for f in (path, against)
    ):
        if against is not None:
            raise UserError(
                f"{path}, {against}: LiteRT has no profiler to time layers with; audit a .tflite file "
                "alone, and compare whole models with lightship bench"
            )
        return audit_tflite(path, options)
    model = _load(path, options)
    reference = None
    if against is not None:
        reference = _load(against, options)
        _require_same_samples(path, against, options)
    running = optimized(model, options=options)
    kernels = kernels_of(model, running)
    seen = profiles([m for m in (model, reference) if m], options, seed=seed) if timed else []
    raced: list[Timed] = []
    environment = this_environment()
    settings = msgspec.structs.replace(
        race_settings or RACE, threads=options.threads, arena=options.arena, mmap=options.mmap
    )
    if timed and against is not None and race_settings is not None:
        raced = timed_together([path, against], settings, seed=seed, on_progress=on_progress)
        seen = [_scaled(one, raced, index) for index, one in enumerate(seen)]
    layers_us = _by_layer(kernels, seen[0]) if timed else []
    reference_us: list[dict[str, float]] = []
    reference_times = reference_int8 = None
    if reference is not None:
        graph = optimized(reference, options=options)
        theirs = kernels_of(reference, graph)
        reference_int8 = sum(kernel.op_type in INT8_OPERATORS for kernel in theirs.values())
        if timed:
            reference_us = _by_layer(theirs, seen[1])
            reference_times = _times(seen[1], graph, reference_us)
    macs, weighted = macs_by_node(model), weighted_nodes(model.graph)
    layers = [
        _layer(
            model,
            found,
            kernels.get(found.node.name),
            macs=macs,
            layers_us=layers_us,
            reference_us=reference_us,
        )
        for found in weighted
    ]
    saturating = [
        found.node.name
        for found, layer in zip(weighted, layers, strict=True)
        if layer.int8 and can_saturate(model, found)
    ]
    stored = constants(running.graph)
    exact = [_unsigned_weights(kernels[name], stored) for name in saturating]
    known = [layer.macs for layer in layers]
    total = None if None in known else sum(n or 0 for n in known)
    unjudged = Audit(
        model=str(path),
        against=str(against) if against else None,
        onnxruntime=ort.__version__,
        target=this_target(),
        session=options,
        layers=tuple(layers),
        macs=total,
        int8_macs=None if total is None else sum(n.macs or 0 for n in layers if n.int8),
        int8_layers=sum(layer.int8 for layer in layers),
        times=_times(seen[0], running, layers_us) if timed else None,
        reference_times=reference_times,
        speedup=_speedup(raced, seed=seed) if raced else None,
        reference_int8_layers=reference_int8,
        warnings=tuple(noise(environment, settings, raced)) if raced else (),
        saturating=tuple(saturating),
        exact_sums=bool(exact) and all(exact),
        verdict="",
        **graph_facts(model, running),
    )
    return msgspec.structs.replace(unjudged, verdict=verdict(unjudged))


def _layer(
    model: Any,
    found: Weighted,
    kernel: Any,
    *,
    macs: Mapping[str, int | None],
    layers_us: Sequence[Mapping[str, float]],
    reference_us: Sequence[Mapping[str, float]],
) -> AuditedLayer:
    name = found.node.name
    int8 = kernel is not None and kernel.op_type in INT8_OPERATORS
    why = None if int8 else obstacle(model, found)
    return AuditedLayer(
        name=name,
        kind=_kind(found),
        macs=macs[name],
        kernel=kernel.op_type if kernel is not None else None,
        int8=int8,
        why_not=why.pattern if why else None,
        remedy=why.remedy if why else None,
        time_us=_median(layers_us, name),
        reference_us=_median(reference_us, name),
        slower=_slower(layers_us, reference_us, name),
    )


def _kind(found: Weighted) -> str:
    """Return the operator, and of a convolution what makes it slow in int8."""
    if depthwise(found):
        return "depthwise Conv"
    if found.node.op_type == "Conv" and found.weight.dims[1] == 1:
        return ONE_CHANNEL
    return str(found.node.op_type)


def _load(path: Path, options: SessionOptions) -> Any:
    """Return the ``ModelProto`` of a file, each weighted node with a name of its own.

    A node without one is called after its result.
    """
    with needs_extra("compress"):
        import onnx
    open_model(path, options)  # says in one line what is wrong with a file
    model = onnx.load(str(path))
    taken = {""}
    for node in model.graph.node:
        if node.name in taken:
            node.name = next(
                name
                for n in range(len(model.graph.node) + 1)
                if (name := f"{node.op_type}:{node.output[0]}" + n * "'") not in taken
            )
        taken.add(node.name)
    return model


def _unsigned_weights(kernel: Any, stored: Mapping[str, Any]) -> bool:
    """Say whether ONNX Runtime has turned the weights of a layer into unsigned bytes."""
    weights = [array_of(stored[name]) for name in kernel.input if name in stored]
    return max(weights, key=np.size).dtype == np.uint8


def _require_same_samples(path: Path, against: Path, options: SessionOptions) -> None:
    """Refuse to hold a model against one that takes other samples."""
    ours, theirs = (open_model(file, options).input_shape for file in (path, against))
    if ours != theirs:
        raise UserError(
            f"{against}: takes samples of shape {theirs} and {path} of {ours}; a model is held against "
            "another form of the same network"
        )


def _scaled(seen: Sequence[Profile], raced: Sequence[Timed], index: int) -> tuple[Profile, ...]:
    """Return profiles of a pace at which a call takes what it took where it was timed for longer."""
    call_us = 1000 * float(np.exp(log_p50(raced, index).mean()))
    by = call_us / statistics.median(one.call_us for one in seen)
    return tuple(
        Profile(by * one.call_us, {name: by * took for name, took in one.nodes_us.items()})
        for one in seen
    )


def _speedup(raced: Sequence[Timed], *, seed: int) -> Interval:
    """Return how many times faster the first model was than the second."""
    _, other = speedups(raced, seed=seed)
    return Interval(value=1 / other.value, low=1 / other.high, high=1 / other.low)


def _by_layer(kernels: Mapping[str, Any], seen: Sequence[Profile]) -> list[dict[str, float]]:
    """Return the time of the kernel of each layer, of each opening of a model."""
    return [
        {name: one.nodes_us[k.name] for name, k in kernels.items() if k.name in one.nodes_us}
        for one in seen
    ]


def _median(layers_us: Sequence[Mapping[str, float]], name: str) -> float | None:
    took = [one[name] for one in layers_us if name in one]
    return statistics.median(took) if took else None


def _slower(
    layers_us: Sequence[Mapping[str, float]],
    reference_us: Sequence[Mapping[str, float]],
    name: str,
) -> bool:
    """Say whether a layer took longer than its like in each opening: once is noise."""
    both = [
        (ours[name], theirs[name])
        for ours, theirs in zip(layers_us, reference_us, strict=False)
        if name in ours and name in theirs
    ]
    return bool(both) and all(
        ours > max(_SLOWER * theirs, theirs + _SLOWER_US) and theirs > 0 for ours, theirs in both
    )


def _times(
    seen: Sequence[Profile], running: Any, layers_us: Sequence[Mapping[str, float]]
) -> Times:
    """Return where the time of a model goes, medians over its openings."""
    between = {node.name for node in running.graph.node if node.op_type in CONVERSIONS | LAYOUT}
    calls = statistics.median(one.call_us for one in seen)
    layers = statistics.median(sum(one.values()) for one in layers_us)
    conversions = statistics.median(
        sum(took for name, took in one.nodes_us.items() if name in between) for one in seen
    )
    return Times(
        total_us=calls,
        layers_us=layers,
        conversions_us=conversions,
        other_us=max(0.0, calls - layers - conversions),
    )
