"""``MODEL_CARD.md``: what a person wants to know of a bundle, in the spirit of Mitchell et al. 2019.

"Model Cards for Model Reporting", FAT*.
"""

from __future__ import annotations

import re

import msgspec

from deploy.bundle.manifest import FileFacts, Manifest, Tensor, Timing
from deploy.goals import bounds, delta, delta_bounds, metric_of, score
from deploy.record import Interval, TaskKind

_KINDS: dict[TaskKind, str] = {
    "classification": "classifier",
    "multi_label": "multi-label classifier",
    "regression": "regression",
    "reconstruction": "detector of anomalies by their reconstruction",
}
_OUTPUTS: dict[TaskKind, tuple[str, str]] = {
    "classification": ("Classes", "one score a class"),
    "multi_label": ("Labels", "one score a label; half or more is a yes"),
    "regression": ("Targets", "one number a target"),
    "reconstruction": ("Kinds", "the sample anew; the mean square of the difference is its score"),
}
_LIMITS_OF_USE: dict[TaskKind, str] = {
    "classification": "It answers with one of its classes, whatever it is shown: a sample of none "
    "of them gets a label too.",
    "multi_label": "It judges each of its labels, whatever it is shown, and knows no other.",
    "regression": "It answers with a number, whatever it is shown, also far from all it has seen.",
    "reconstruction": "It tells how unlike its normal samples a sample is, not what is wrong with "
    "it; from which score on a sample is an anomaly is for its user to choose.",
}
_LIMITS = "What was measured holds for samples like those it was measured on."


def to_card(manifest: Manifest, model: FileFacts) -> str:
    """Return the card of a bundle, from its manifest and the size of its model."""
    said, lineage = manifest, manifest.lineage
    kind = str(lineage.step.get("kind", "not known")).replace("_", " ")
    task = said.goal.task
    unit = f" ({said.goal.unit})" if said.goal.unit else ""
    rows = [
        (_OUTPUTS[task][0], f"{len(said.labels)}: {', '.join(said.labels)}"),
        ("A sample", f"{_shape(said.raw)}, as it is read; preprocessing is part of the bundle"),
        ("Preprocessing", " → ".join(_op(op) for op in said.preprocess) or "none"),
        ("Model", f"{model.size_bytes:,} bytes, input {_shape(said.input)}"),
        ("Answers", f"{said.scores}, {_OUTPUTS[task][1]}{unit}"),
        ("Needs", _needs(said)),
    ]
    parts = [
        f"# {_plain(said.name)} {_plain(said.version)}",
        f"A {_KINDS[task]}, made and measured by lightship " + _plain(said.lightship) + ".",
        _table(rows),
        "## How good it is",
        _quality(said),
        "## How fast it is",
        _latency(said),
        "## Where it comes from",
        _table([
            ("Recipe", lineage.recipe or "none: a single model"),
            ("Variant", lineage.variant or "–"),
            ("Made by", kind),
            ("Made from", f"the model with sha256 {lineage.parent}" if lineage.parent else "–"),
            ("Seed", "not known" if lineage.seed is None else str(lineage.seed)),
            ("Versions", ", ".join(f"{k} {v}" for k, v in lineage.versions.items()) or "not known"),
        ]),
        "## What to know before using it",
        f"{_LIMITS_OF_USE[task]} {_LIMITS}",
        "## Licences",
        _table([("Model", said.licences.model), ("Data", said.licences.data)]),
        "## Check it",
        _check(said),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _check(manifest: Manifest) -> str:
    return (
        f"`lightship selftest` compares the answers to {manifest.golden.samples} samples with "
        f"those of the machine that measured it, to within {manifest.golden.tolerance:g}. "
        "`sha256sum -c SHA256SUMS` checks the files without lightship."
    )


def _quality(manifest: Manifest) -> str:
    seen, goal = manifest.quality, manifest.goal
    if seen is None:
        return "Not measured in a run."
    title = metric_of(goal).title
    text = (
        f"{title[0].upper()}{title[1:]} {score(goal, seen.score.value)} "
        f"{bounds(goal, seen.score.low, seen.score.high)} on {seen.samples:,} test samples of "
        f"{_plain(seen.data)}, in the session that ships."
    )
    if seen.delta is not None:
        ends = seen.delta.value, seen.delta.low, seen.delta.high
        text += (
            f" Against the baseline of the run: {delta(goal, *ends)} {delta_bounds(goal, *ends)}."
        )
    return text + " In brackets: the 95 % interval."


def _latency(manifest: Manifest) -> str:
    seen = manifest.latency
    if seen is None:
        return "Not measured in a run."
    threads = f"{seen.threads} thread" + ("" if seen.threads == 1 else "s")
    return (
        f"One sample takes {_bounds(seen.p50_ms, '.4f')} ms (median), {_bounds(seen.speedup, '.2f')} "
        f"times as fast as the baseline of the run, on {_plain(seen.cpu)} "
        f"({_plain(seen.architecture)}), {threads}, {_timed_in(seen)}. "
        "`lightship bench` measures it on another machine."
    )


def _bounds(interval: Interval, form: str) -> str:
    return f"{interval.value:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def _shape(tensor: Tensor) -> str:
    return f"{' × '.join(map(str, tensor.shape)) or 'one number'} {tensor.dtype}"


def _op(op: object) -> str:
    fields = msgspec.to_builtins(op)
    name = fields.pop("op")
    return f"{name} " + ", ".join(f"{key} {value}" for key, value in fields.items())


def _needs(manifest: Manifest) -> str:
    needs = manifest.requires
    if needs.litert is not None:
        return f"LiteRT (ai-edge-litert) {needs.litert} or newer: {', '.join(needs.operators)}"
    opsets = (f"{name or 'ai.onnx'} opset {number}" for name, number in needs.opsets.items())
    return f"ONNX Runtime {needs.onnxruntime} or newer, {', '.join(opsets)}"


def _timed_in(timing: Timing) -> str:
    if timing.litert is not None:
        return f"LiteRT {_plain(timing.litert)}"
    return f"ONNX Runtime {_plain(timing.onnxruntime)}"


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {name} | {_plain(text)} |" for name, text in rows)]
    )


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#&$~])", r"\\\1", " ".join(text.split()))
