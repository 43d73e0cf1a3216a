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
from deploy.bench import Bench, race
from deploy.errors import UserError, needs_extra
from deploy.graph import Weighted, array_of, constants, depthwise, macs_by_node, weighted_nodes
from deploy.kernels import INT8_OPERATORS, can_saturate, kernels_of, obstacle, optimized
from deploy.machine import this_target
from deploy.record import SessionOptions
from deploy.session import open_model
from deploy.tflite import is_tflite

RACE = Bench(processes=10, sessions_per_process=2, rounds=10, block_ms=4.0, batch=1)
"""How long two models are timed beside each other: some 8 s for small ones."""
_SLOWER = 1.1
"""Layers whose times differ by less are called equal."""


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
    no sum of such times: whole calls are timed for it, without the profiler, as ``bench`` does.

    Of a ``.tflite`` file the graph is that of the file: LiteRT shows neither another nor times.

    Args:
        path: an ONNX or ``.tflite`` file with one input and one output.
        options: how the model is opened.
        against: a second model to time beside it, as its float form; layers are paired by name.
        timed: whether to run the model at all; reading the graph takes milliseconds.
        race_settings: how whole calls are timed against ``against``, but for the threads, which are
            those of ``options``; None to time layers alone.
        seed: of the random inputs and the order in which models run.
        on_progress: called with processes done and processes in all, of the timing of whole calls.

    Raises:
        UserError: if a file is missing or no model that ``open_model`` takes, or ``against`` is
            given and one of the two is a ``.tflite`` file.
        MissingExtraError: if ``onnx`` is not installed, as on a device.
    """
    for file in (path, against):
        if file is not None and file.is_file() and is_tflite(file.read_bytes()[:8]):
            if against is not None:
                raise UserError(
                    f"{file}: LiteRT has no profiler to time layers with; audit it alone, and "
                    "compare whole models with lightship bench"
                )
            return audit_tflite(path, options)
    model = _load(path, options)
    running = optimized(model, options=options)
    reference = _load(against, options) if against else None
    kernels = kernels_of(model, running)
    seen = profiles([m for m in (model, reference) if m], options, seed=seed) if timed else []
    layers_us = _by_layer(kernels, seen[0]) if timed else []
    reference_us: list[dict[str, float]] = []
    reference_times = speedup = None
    if timed and reference is not None and against is not None:
        graph = optimized(reference, options=options)
        reference_us = _by_layer(kernels_of(reference, graph), seen[1])
        reference_times = _times(seen[1], graph, reference_us)
        if race_settings is not None:
            settings = msgspec.structs.replace(race_settings, threads=options.threads)
            speedup = race([against, path], settings, seed=seed, on_progress=on_progress)[1]
    macs = macs_by_node(model)
    layers, saturating, exact = [], [], []
    stored = constants(running.graph)
    for found in weighted_nodes(model.graph):
        name, kernel = found.node.name, kernels.get(found.node.name)
        int8 = kernel is not None and kernel.op_type in INT8_OPERATORS
        why = None if int8 else obstacle(model, found)
        if int8 and can_saturate(model, found):
            saturating.append(name)
            exact.append(_unsigned_weights(kernel, stored))
        layers.append(
            AuditedLayer(
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
        )
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
        speedup=speedup,
        saturating=tuple(saturating),
        exact_sums=bool(exact) and all(exact),
        verdict="",
        **graph_facts(model, running),
    )
    return msgspec.structs.replace(unjudged, verdict=verdict(unjudged))


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
    return bool(both) and all(ours > _SLOWER * theirs for ours, theirs in both)


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
