"""Look at the graph that ONNX Runtime runs in place of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort

from deploy.audit.found import ONE_CHANNEL, Audit, AuditedLayer, Times
from deploy.audit.leftovers import CONVERSIONS, LAYOUT, graph_facts
from deploy.audit.profile import profiles
from deploy.audit.tflite_file import audit_tflite
from deploy.audit.verdict import verdict
from deploy.errors import UserError, needs_extra
from deploy.graph import Weighted, array_of, constants, depthwise, macs_by_node, weighted_nodes
from deploy.kernels import INT8_OPERATORS, can_saturate, kernels_of, obstacle, optimized
from deploy.machine import this_target
from deploy.record import SessionOptions
from deploy.session import open_model
from deploy.tflite import is_tflite


def audit(
    path: Path,
    options: SessionOptions = SessionOptions(),
    *,
    against: Path | None = None,
    timed: bool = True,
    seed: int = 0,
) -> Audit:
    """Look at the graph that ONNX Runtime runs in place of a model, and time its layers.

    Times are those of ONNX Runtime's profiler: they say where time goes, not how long an answer
    takes. Both models run interleaved on random inputs, in several sessions. A speed-up with an
    interval comes from ``bench``.

    Of a ``.tflite`` file the graph is that of the file: LiteRT shows neither another nor times.

    Args:
        path: an ONNX or ``.tflite`` file with one input and one output.
        options: how the model is opened.
        against: a second model to time beside it, as its float form; layers are paired by name.
        timed: whether to run the model at all; reading the graph takes milliseconds.
        seed: of the random inputs.

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
    took: list[dict[str, float]] = [{}, {}]
    if timed:
        took = profiles([m for m in (model, reference) if m], options, seed=seed)
    reference_us: dict[str, float] = {}
    reference_times = None
    if reference is not None and timed:
        graph = optimized(reference, options=options)
        theirs = kernels_of(reference, graph)
        reference_us = {n: took[1][k.name] for n, k in theirs.items() if k.name in took[1]}
        reference_times = _times(took[1], graph, reference_us)
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
                time_us=took[0].get(kernel.name) if kernel is not None else None,
                reference_us=reference_us.get(name),
            )
        )
    known = [layer.macs for layer in layers]
    total = None if None in known else sum(n or 0 for n in known)
    own = {layer.name: layer.time_us for layer in layers if layer.time_us is not None}
    times = _times(took[0], running, own) if timed else None
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
        times=times,
        reference_times=reference_times,
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


def _times(profile: Mapping[str, float], running: Any, layers_us: Mapping[str, float]) -> Times:
    kinds = {node.name: node.op_type for node in running.graph.node}
    conversions = sum(
        took for name, took in profile.items() if kinds.get(name) in CONVERSIONS | LAYOUT
    )
    total, layers = sum(profile.values()), sum(layers_us.values())
    return Times(
        total_us=total,
        layers_us=layers,
        conversions_us=conversions,
        other_us=total - layers - conversions,
    )
