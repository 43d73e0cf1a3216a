"""What runs in int8, what does not and why, and where the time goes."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from deploy.errors import UserError, needs_extra
from deploy.graph import (
    Weighted,
    array_of,
    constants,
    consumers,
    depthwise,
    macs_by_node,
    producers,
    weighted_nodes,
)
from deploy.kernels import INT8_OPERATORS, can_saturate, kernels_of, obstacle, optimized
from deploy.machine import this_target
from deploy.record import Record, SessionOptions
from deploy.session import open_model, profiling, start_session
from deploy.tflite import computes_in_int8, is_tflite, layer_name, macs_of, read_tflite

_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_LAYOUT = frozenset({"Transpose", "ReorderInput", "ReorderOutput"})
# These hand on what they get: int8 stays int8, float stays float.
_MOVING = _LAYOUT | {
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "MaxPool", "NhwcMaxPool", "Slice",
    "Gather", "Split", "Resize",
}  # fmt: skip
_FLOAT_RESULT = frozenset({"DynamicQuantizeMatMul", "MatMulIntegerToFloat"})

_ONE_CHANNEL = "1-channel Conv"
_SESSIONS, _RUNS, _WARM_UP = 3, 60, 10
_SLOWER = 1.1
"""Profiled times that differ by less are called equal."""


class AuditedLayer(Record, frozen=True):
    """One layer with stored weights, as ONNX Runtime runs it on this machine."""

    name: str
    kind: str
    macs: int | None
    """Multiply-accumulates for one sample; None where the file's shapes do not tell."""
    kernel: str | None
    """Operator of the optimised graph that computes it; None if it cannot be told."""
    int8: bool
    why_not: str | None
    """The pattern that keeps it out of int8; None if it is int8."""
    remedy: str | None
    time_us: float | None
    """Of its own kernel, from ONNX Runtime's profiler; None if nothing was timed."""
    reference_us: float | None
    """The same layer's time in the model it is held against."""


class Times(Record, frozen=True):
    """Where one model's kernel time goes, in µs a sample, from ONNX Runtime's profiler."""

    total_us: float
    layers_us: float
    """Layers with stored weights."""
    conversions_us: float
    """QuantizeLinear, DequantizeLinear, and changes of layout."""
    other_us: float


class Audit(Record, frozen=True):
    """What ``lightship audit`` found."""

    model: str
    against: str | None
    onnxruntime: str | None
    """Release of the runtime that was asked; null where ``litert`` is told."""
    target: str
    session: SessionOptions
    layers: tuple[AuditedLayer, ...]
    macs: int | None
    """Of all layers with stored weights; None if one of them is not known."""
    int8_macs: int | None
    int8_layers: int
    conversions: int
    """QuantizeLinear and DequantizeLinear nodes left in the optimised graph."""
    pairs_left: int
    """QuantizeLinear nodes whose result is dequantized at once: work for nothing."""
    layout_changes: int
    """Transposes and reorderings in the optimised graph beyond the Transposes of the file."""
    float_islands: tuple[tuple[str, ...], ...]
    """Nodes between int8 kernels that compute in float, group by connected group."""
    times: Times | None
    reference_times: Times | None
    verdict: str
    saturating: tuple[str, ...] = ()
    """Layers in int8 whose weights have a bit more than the fast kernels of this machine add without
    overflow, as in a file that was made for another machine."""
    exact_sums: bool = False
    """Whether ONNX Runtime runs all of these with kernels that add exactly, as the session asks."""
    litert: str | None = None
    """Release of LiteRT, for a ``.tflite`` file: then int8 is read from the types in the file, by
    which LiteRT chooses its kernels, and nothing is timed layer by layer."""

    @property
    def int8_macs_share(self) -> float | None:
        """Fraction of the multiply-accumulates that int8 kernels do."""
        if self.macs is None or self.int8_macs is None:
            return None
        return self.int8_macs / self.macs if self.macs else 0.0

    @property
    def saturation(self) -> str | None:
        """What to know of sums that can be wrong here, in a sentence; None if there are none."""
        if not self.saturating:
            return None
        seen = (
            "added exactly here, by slower kernels, and wrong where a program opens the file without "
            'session.x64quantprecision = "1"'
            if self.exact_sums
            else "wrong here: other answers than elsewhere"
        )
        return (
            f"int8 sums of {len(self.saturating)} of {self.int8_layers} layers "
            f"({', '.join(self.saturating[:3])}{' …' if len(self.saturating) > 3 else ''}) overflow in "
            f"the fast kernels of {self.target}, which are exact for weights of 7 bits: {seen}; "
            f'quantize with target = "{self.target}"'
        )


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
            return _audit_tflite(path, options)
    model = _load(path, options)
    running = optimized(model, options=options)
    reference = _load(against, options) if against else None
    kernels = kernels_of(model, running)
    profiles: list[dict[str, float]] = [{}, {}]
    if timed:
        profiles = _profiles([m for m in (model, reference) if m], options, seed=seed)
    reference_us: dict[str, float] = {}
    reference_times = None
    if reference is not None and timed:
        graph = optimized(reference, options=options)
        theirs = kernels_of(reference, graph)
        reference_us = {n: profiles[1][k.name] for n, k in theirs.items() if k.name in profiles[1]}
        reference_times = _times(profiles[1], graph, reference_us)
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
                time_us=profiles[0].get(kernel.name) if kernel is not None else None,
                reference_us=reference_us.get(name),
            )
        )
    known = [layer.macs for layer in layers]
    total = None if None in known else sum(n or 0 for n in known)
    own = {layer.name: layer.time_us for layer in layers if layer.time_us is not None}
    times = _times(profiles[0], running, own) if timed else None
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
        **_graph_facts(model, running),
    )
    return Audit(**{**_fields(unjudged), "verdict": _verdict(unjudged)})


def _audit_tflite(path: Path, options: SessionOptions) -> Audit:
    opened = open_model(path, options)
    model = read_tflite(path.read_bytes())
    layers = []
    for op, weight in model.weighted():
        int8 = computes_in_int8(model, op, weight)
        layers.append(
            AuditedLayer(
                name=layer_name(op, model, weight),
                kind=op.kind,
                macs=macs_of(model, op, weight),
                kernel=op.kind,
                int8=int8,
                why_not=None if int8 else f"its weights are {weight.dtype} where it multiplies",
                remedy=None if int8 else 'convert with form = "int8"',
                time_us=None,
                reference_us=None,
            )
        )
    macs = sum(layer.macs or 0 for layer in layers)
    in_int8 = sum(layer.macs or 0 for layer in layers if layer.int8)
    count, share = sum(layer.int8 for layer in layers), in_int8 / macs if macs else 0.0
    return Audit(
        model=str(path),
        against=None,
        onnxruntime=None,
        litert=opened.runtime_version,
        target=this_target(),
        session=options,
        layers=tuple(layers),
        macs=macs,
        int8_macs=in_int8,
        int8_layers=count,
        conversions=sum(op.kind in {"QUANTIZE", "DEQUANTIZE"} for op in model.operators),
        pairs_left=0,
        layout_changes=0,
        float_islands=(),
        times=None,
        reference_times=None,
        verdict=(
            f"{count} of {len(layers)} layers with weights multiply int8 ({share:.1%} of the "
            "MACs), by the types in the file; LiteRT does not tell its kernels or their times: "
            "see lightship bench"
        ),
    )


def _kind(found: Weighted) -> str:
    """Return the operator, and of a convolution what makes it slow in int8."""
    if depthwise(found):
        return "depthwise Conv"
    if found.node.op_type == "Conv" and found.weight.dims[1] == 1:
        return _ONE_CHANNEL
    return str(found.node.op_type)


def _fields(found: Audit) -> dict[str, Any]:
    return {name: getattr(found, name) for name in found.__struct_fields__}


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


def _graph_facts(model: Any, running: Any) -> dict[str, Any]:
    """Return what of the optimised graph is neither a layer nor a time."""
    graph = running.graph
    readers = consumers(graph)

    def count(nodes: Any, kinds: frozenset[str]) -> int:
        return sum(node.op_type in kinds for node in nodes)

    return {
        "conversions": count(graph.node, _CONVERSIONS),
        "pairs_left": sum(
            any(reader.op_type == "DequantizeLinear" for reader in readers.get(node.output[0], ()))
            for node in graph.node
            if node.op_type == "QuantizeLinear"
        ),
        "layout_changes": max(
            0, count(graph.node, _LAYOUT) - count(model.graph.node, frozenset({"Transpose"}))
        ),
        "float_islands": tuple(_islands(graph)),
    }


def _islands(graph: Any) -> Iterator[tuple[str, ...]]:
    """Yield the groups of float nodes that lie between int8 and int8, in graph order."""
    made_by, readers = producers(graph), consumers(graph)
    quantized: set[str] = set()
    floats: dict[str, Any] = {}  # by its first result: optimised nodes may lack names
    for node in graph.node:
        kind = node.op_type
        gives_int8 = (
            kind in {"QuantizeLinear", "DynamicQuantizeLinear"}
            or (
                (kind.startswith("QLinear") or kind == "QGemm")
                and not (kind == "QGemm" and len(node.input) < 8)
            )
            or (kind in _MOVING and bool(node.input) and node.input[0] in quantized)
        )
        if gives_int8:
            quantized.update(node.output)
        elif kind not in INT8_OPERATORS | _CONVERSIONS:
            floats[node.output[0]] = node

    def behind(node: Any) -> list[Any]:
        return [made_by[name] for name in node.input if name in made_by]

    def ahead(node: Any) -> list[Any]:
        return [reader for name in node.output for reader in readers.get(name, ())]

    seen: set[str] = set()
    for first in floats:
        group, left = [], [first]
        while left:
            name = left.pop()
            if name not in seen:
                seen.add(name)
                group.append(floats[name])
                near = (*behind(floats[name]), *ahead(floats[name]))
                left += [node.output[0] for node in near if node.output[0] in floats]
        comes = any(
            node.op_type == "DequantizeLinear" or node.op_type in INT8_OPERATORS
            for member in group
            for node in behind(member)
        )
        goes = any(node.op_type == "QuantizeLinear" for member in group for node in ahead(member))
        if comes and goes:
            inside = {node.output[0] for node in group}
            yield tuple(node.name for name, node in floats.items() if name in inside)


def _unsigned_weights(kernel: Any, stored: Mapping[str, Any]) -> bool:
    """Say whether ONNX Runtime has turned the weights of a layer into unsigned bytes."""
    weights = [array_of(stored[name]) for name in kernel.input if name in stored]
    return max(weights, key=np.size).dtype == np.uint8


def _profiles(
    models: Sequence[Any], options: SessionOptions, *, seed: int
) -> list[dict[str, float]]:
    """Return the time of every node of each model's optimised graph, by name, in µs."""
    means: list[dict[str, list[float]]] = [{} for _ in models]
    random = np.random.default_rng(seed)
    for _ in range(_SESSIONS):
        with tempfile.TemporaryDirectory() as folder:
            sessions = []
            for index, model in enumerate(models):
                profiled = profiling(Path(folder, str(index)))
                session = start_session(model.SerializeToString(), options, profiled)
                sessions.append((session, _random_inputs(session, random)))
            for _ in range(_WARM_UP + _RUNS):
                for index in random.permutation(len(sessions)):
                    session, inputs = sessions[index]
                    session.run(None, inputs)
            for seen, (session, _) in zip(means, sessions, strict=True):
                for name, took in _kernel_times(Path(session.end_profiling())).items():
                    seen.setdefault(name, []).append(took)
    return [{name: statistics.median(each) for name, each in seen.items()} for seen in means]


def _random_inputs(session: Any, random: np.random.Generator) -> dict[str, Any]:
    (given,) = session.get_inputs()
    shape = [size if isinstance(size, int) else 1 for size in given.shape]
    kinds = {"float": np.float32, "float16": np.float16}
    kind = given.type.removeprefix("tensor(").removesuffix(")")
    if kind in kinds:
        return {given.name: random.random(shape, np.float32).astype(kinds[kind])}
    high = 127 if kind in {"int8", "uint8"} else 2  # an index must be valid for any table
    return {given.name: random.integers(0, high, shape).astype(kind)}


def _kernel_times(path: Path) -> dict[str, float]:
    """Return the mean of the faster three quarters of each node's times.

    The profiler counts whole microseconds; their mean tells more than any one of them.
    """
    took: dict[str, list[int]] = {}
    for event in json.loads(path.read_text(encoding="utf-8")):
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            took.setdefault(name.removesuffix("_kernel_time"), []).append(int(event["dur"]))
    return {
        name: statistics.fmean(sorted(each[_WARM_UP:])[: max(1, _RUNS * 3 // 4)])
        for name, each in took.items()
        if len(each) > _WARM_UP
    }


def _times(profile: Mapping[str, float], running: Any, layers_us: Mapping[str, float]) -> Times:
    kinds = {node.name: node.op_type for node in running.graph.node}
    conversions = sum(
        took for name, took in profile.items() if kinds.get(name) in _CONVERSIONS | _LAYOUT
    )
    total, layers = sum(profile.values()), sum(layers_us.values())
    return Times(
        total_us=total,
        layers_us=layers,
        conversions_us=conversions,
        other_us=total - layers - conversions,
    )


def _verdict(found: Audit) -> str:
    """Say in one sentence what the model gains from int8, and what it loses it to."""
    if not found.layers:
        return "no layer here has stored weights; there is nothing to run in int8"
    share = found.int8_macs_share
    of_macs = "" if share is None else f", {share:.0%} of the multiply-accumulates"
    coverage = f"{found.int8_layers} of {len(found.layers)} layers run in int8{of_macs}"
    if found.times is None:
        return coverage
    if found.reference_times is None:
        return f"{coverage}; {_share_of_time(found, found.times)}"
    ours, theirs = found.times.total_us, found.reference_times.total_us
    ratio = theirs / ours if ours else 1.0
    if ratio >= _SLOWER:
        slow = _slower_in_int8(found)
        lost = f"; slower in int8: {', '.join(n.name for n in slow)}" if slow else ""
        lost += f": try {hint}" if (hint := _layout_hint(slow)) else ""
        return (
            f"its kernels take {ratio:.1f}× less time than {found.against}'s here; {coverage}{lost}"
        )
    because = _culprit(found, found.times, found.reference_times)
    end = "will not speed up" if ratio > 1 / _SLOWER else f"is {1 / ratio:.1f}× slower"
    return f"{end} on this machine, because {because}; {coverage}"


def _slower_in_int8(found: Audit) -> list[AuditedLayer]:
    return [
        layer
        for layer in found.layers
        if layer.int8
        and layer.time_us is not None
        and layer.reference_us is not None
        and layer.time_us > _SLOWER * layer.reference_us
    ]


def _layout_hint(slower: Sequence[AuditedLayer]) -> str | None:
    """Say what may help a convolution of one channel among layers; None if there is none."""
    thin = next((layer.name for layer in slower if layer.kind == _ONE_CHANNEL), None)
    if thin is None:
        return None
    return (
        f"lightship quantize --kind layout, by which {thin!r} may compute several columns at once"
    )


def _culprit(found: Audit, times: Times, theirs: Times) -> str:
    """Name what takes the time that int8 should have saved.

    In a model that became slower that is what grew most, else what takes the largest share.
    """
    total = times.total_us or 1.0
    slower = _slower_in_int8(found)
    candidates = [
        (
            times.conversions_us,
            theirs.conversions_us,
            "quantizing, dequantizing and layout changes",
        ),
        (times.other_us, theirs.other_us, "outside the layers with weights"),
    ]
    if slower:
        ours = sum(layer.time_us or 0.0 for layer in slower)
        floats = sum(layer.reference_us or 0.0 for layer in slower)
        named = " and ".join(f"{layer.name!r}, a {layer.kind}" for layer in slower[:2])
        if len(slower) > 2:
            named += f", and {len(slower) - 2} more layers"
        told = f"{named}, slower in int8 ({ours:.1f} µs) than in float ({floats:.1f} µs): exclude"
        told += " it" if len(slower) == 1 else " them"
        told += f", or try {hint}" if (hint := _layout_hint(slower)) else ""
        candidates.append((ours, floats, told))
    candidates += [
        (layer.time_us, layer.reference_us or 0.0, f"{layer.name!r}, in float: {layer.why_not}")
        for layer in found.layers
        if layer.time_us is not None and not layer.int8
    ]
    grew = total > _SLOWER * theirs.total_us
    mine, _, told = max(candidates, key=lambda c: c[0] - c[1] if grew else c[0])
    return f"{mine / total:.0%} of the time is {told}"


def _share_of_time(found: Audit, times: Times) -> str:
    total = times.total_us or 1.0
    inside = sum(layer.time_us or 0.0 for layer in found.layers if layer.int8) / total
    return (
        f"{inside:.0%} of the kernel time is theirs, {times.conversions_us / total:.0%} goes to "
        "quantizing, dequantizing and changes of layout"
    )


def table(found: Audit) -> list[str]:
    """Return an audit as lines for a person, the verdict last."""
    head = ["layer", "kind", "MACs", "share", "kernel", "µs"]
    write: list[Callable[[AuditedLayer], str]] = [
        lambda layer: layer.name,
        lambda layer: layer.kind,
        lambda layer: "?" if layer.macs is None else f"{layer.macs:,}",
        lambda layer: f"{layer.macs / found.macs:.1%}" if layer.macs and found.macs else "",
        lambda layer: ("int8 " if layer.int8 else "float ") + (layer.kernel or "?"),
        lambda layer: "" if layer.time_us is None else f"{layer.time_us:.1f}",
    ]
    if found.against:
        head.append("against µs")
        write.append(lambda n: "" if n.reference_us is None else f"{n.reference_us:.1f}")
    rows = [head, *([w(layer) for w in write] for layer in found.layers)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    right = {2, 3, 5, 6}
    lines = [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    reasons: dict[tuple[str, str], list[str]] = {}
    for layer in found.layers:
        if layer.why_not and layer.remedy:
            reasons.setdefault((layer.why_not, layer.remedy), []).append(layer.name)
    for (why, remedy), names in reasons.items():
        lines.append(f"float: {', '.join(names)}: {why}; {remedy}")
    lines.append(
        f"left over: {found.conversions} Q/DQ nodes, {found.pairs_left} of them Q→DQ pairs; "
        f"{found.layout_changes} changes of layout inserted"
    )
    lines += [f"float island: {', '.join(island)}" for island in found.float_islands]
    for who, times in ((found.model, found.times), (found.against, found.reference_times)):
        if times is not None:
            lines.append(
                f"{who}: {times.total_us:.1f} µs in kernels: layers {times.layers_us:.1f}, "
                f"conversions and layout {times.conversions_us:.1f}, other {times.other_us:.1f}"
            )
    if found.saturation:
        lines.append(f"warning: {found.saturation}")
    return [*lines, found.verdict]
