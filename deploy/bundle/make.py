"""How a bundle is made: from a variant of a run, or from a model and samples to test it with."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from deploy.bundle import golden as golden_room
from deploy.bundle.card import to_card
from deploy.bundle.container import (
    CARD,
    GOLDEN,
    MANIFEST,
    MODEL,
    MODELS,
    ORT,
    PACKED,
    TFLITE,
    write_container,
)
from deploy.bundle.manifest import (
    GoldenFacts,
    Licences,
    Lineage,
    Manifest,
    Port,
    Quality,
    Requirements,
    Tensor,
    Timing,
    encode,
)
from deploy.bundle.opened import Bundle, file_facts, open_bundle
from deploy.errors import UserError
from deploy.evalset import EvalSet
from deploy.evaluate import answers_of, require_known_truth
from deploy.litert import litert_version
from deploy.needs import (
    graph_facts,
    least_litert,
    least_onnxruntime,
    operator_versions,
)
from deploy.ort_format import is_ort, to_ort
from deploy.packing.packed import pack
from deploy.record import Goal, Interval, SessionOptions, read_record, record_path
from deploy.report.results import Results, Variant, read_results
from deploy.report.verdict import best_variant
from deploy.session import Model, open_model
from deploy.tflite import is_tflite, read_tflite

_NOT_STATED = "not stated"
_SUMS_TO_ONE = 0.05
_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")
_WAYS: Mapping[str, str] = {"ort": "has an ORT form", "packed": "goes packed into a bundle"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What the maker of a bundle says of it; None leaves it to what is known.

    Attributes:
        name: letters, digits, ``.``, ``_`` and ``-``; by default run and variant, or the file's.
        version: the semantic version of the model.
        licence: the licence of the model.
    """

    name: str | None = None
    version: str = "1.0.0"
    licence: str = _NOT_STATED


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What is known of a model beside its bytes."""

    name: str
    recipe: str | None = None
    variant: str | None = None
    quality: Quality | None = None
    latency: Timing | None = None
    data_licence: str = ""
    session: SessionOptions = SessionOptions()


@dataclass(frozen=True, slots=True)
class _Shipped:
    """A model as it goes into the bundle.

    Attributes:
        name: what its file is called there.
        content: its bytes, as a session takes them.
        requires: what it asks of its runtime.
        quantized: whether it rounds to few bits while it runs.
    """

    name: str
    content: bytes
    requires: Requirements
    quantized: bool


Form = Literal["as-is", "ort", "packed"]
"""The form in which a model goes into a bundle: as it is; an ONNX model in ORT format, or packed."""


def bundle_run(
    run: Path,
    out: Path,
    *,
    variant: str | None = None,
    label: Label = Label(),
    form: Form = "as-is",
) -> Bundle:
    """Make a bundle of one variant of a finished run, with what was measured of it.

    Args:
        run: the run folder.
        out: where it goes: a ``.lship`` file, or else a folder.
        variant: its name; None for the one that the run's verdict chose.
        label: what its maker says of it.
        form: in "ort", the latency of the run is left out: it was that of the ONNX file.

    Returns:
        The bundle, opened from ``out``.

    Raises:
        UserError: if the run lacks a file, has no such variant or no choice, or the model's bytes
            are not those that were measured.
    """
    results = read_results(run / "results.json")
    chosen = _chosen(results, variant, run)
    model = run / chosen.path
    content = _read(model)
    if file_facts(content).sha256 != chosen.sha256:
        raise UserError(
            f"{model}: is not the file that was measured; run the recipe again, then bundle it"
        )
    known = _Known(
        name=f"{results.name}-{chosen.name}",
        recipe=results.name,
        variant=chosen.name,
        quality=_quality(results, chosen),
        latency=_timing(results, chosen) if form != "ort" else None,
        data_licence=results.data.licence,
        session=SessionOptions(
            threads=results.session.threads,
            disabled_optimizers=results.session.disabled_optimizers,
            arena=results.session.arena,
        ),
    )
    data = run / "test.npz"
    return _make(model, content, data, results.goal, known=known, label=label, out=out, form=form)


def bundle_model(
    model: Path, data: Path, out: Path, *, label: Label = Label(), form: Form = "as-is"
) -> Bundle:
    """Make a bundle of a single ONNX or ``.tflite`` model, about whose measurements nothing is known.

    Args:
        model: the file.
        data: an ``.npz`` with raw samples ``x`` and the truth ``y`` about them.
        out: where it goes: a ``.lship`` file, or else a folder.
        label: what its maker says of it.
        form: as it is, in ORT format, or packed.

    Returns:
        The bundle, opened from ``out``.

    Raises:
        UserError: if a file is missing or is not what it should be, or the two do not fit.
    """
    name = model.parent.name if model.name in MODELS and model.parent.name else model.stem
    content = _read(model)
    goal = open_model(model).metadata.goal
    known = _Known(name=name)
    return _make(model, content, data, goal, known=known, label=label, out=out, form=form)


def _chosen(results: Results, name: str | None, run: Path) -> Variant:
    if name is None:
        best = best_variant(results)
        if best is None:
            raise UserError(f"{run}: its verdict chose no variant; name one with --variant")
        return best
    for variant in results.variants:
        if variant.name == name:
            return variant
    names = ", ".join(variant.name for variant in results.variants)
    raise UserError(f"{run}: has no variant {name!r}; it has {names}")


def _make(
    path: Path,
    content: bytes,
    data: Path,
    goal: Goal,
    *,
    known: _Known,
    label: Label,
    out: Path,
    form: Form,
) -> Bundle:
    samples = EvalSet.load(data, goal.task)
    try:
        shipped = _shipped(content, known.session, form)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    model = open_model(shipped.content, known.session)
    model.where = str(path)
    golden, allowed = _golden(model, samples, data, quantized=shipped.quantized)
    about = model.metadata
    _require_raw(golden.x, path)
    seed = read_record(path).seed if record_path(path).exists() else None
    outputs = golden.scores.shape[1]
    labels = about.labels or tuple(str(number) for number in range(outputs))
    if about.goal.task != "reconstruction" and len(labels) != outputs:
        raise UserError(f"{path}: has {len(labels)} labels but {outputs} scores a sample")
    draft = Manifest(
        schema=2,
        name=label.name or (_UNFIT.sub("-", known.name).strip("-._") or "model")[:64],
        version=label.version,
        lightship=importlib.metadata.version("lightship"),
        lineage=Lineage(
            recipe=known.recipe,
            variant=known.variant,
            step=about.step,
            parent=about.parent,
            seed=seed,
            versions=about.versions,
        ),
        goal=about.goal,
        quality=known.quality,
        latency=known.latency,
        raw=_tensor(golden.x),
        preprocess=about.preprocess,
        input=Port(
            name=model.input_name,
            shape=model.input_shape,
            dtype=cast("Any", str(model.input_dtype)),
            batch=_one(model.fixed_batch),
        ),
        output=Port(
            name=model.output_name,
            shape=golden.scores.shape[1:],
            dtype=cast("Any", str(golden.scores.dtype)),
            batch=_one(model.fixed_batch),
        ),
        scores=_scores(about.goal, golden.scores),
        labels=labels,
        session=known.session,
        requires=shipped.requires,
        licences=Licences(
            model=label.licence, data=known.data_licence or about.data_licence or _NOT_STATED
        ),
        golden=GoldenFacts(samples=len(golden.x), tolerance=allowed),
        files={},
    )
    facts = file_facts(shipped.content)
    files = {shipped.name: shipped.content, GOLDEN: golden_room.encode(golden)}
    if form == "packed":
        files[PACKED] = pack(files.pop(shipped.name))
        draft = msgspec.structs.replace(draft, unpacked=facts)
    files[CARD] = to_card(draft, facts).encode()
    listed = {name: file_facts(files[name]) for name in sorted(files)}
    files[MANIFEST] = encode(_checked(msgspec.structs.replace(draft, files=listed)))
    write_container(files, out)
    return open_bundle(out)


def _shipped(content: bytes, options: SessionOptions, form: Form) -> _Shipped:
    if is_ort(content[:8]):
        raise UserError("is in ORT format, which tells too little; give the ONNX model")
    if is_tflite(content[:8]):
        if form != "as-is":
            raise UserError(f"is a LiteRT model: only an ONNX model {_WAYS[form]}")
        model = read_tflite(content)
        requires = Requirements(
            onnxruntime=None,
            ir_version=None,
            opsets={},
            litert=least_litert(model, litert_version() or "0.0"),
            operators=operator_versions(model),
        )
        return _Shipped(TFLITE, content, requires, model.quantized)
    graph = graph_facts(content)
    least = least_onnxruntime(graph, ort.__version__)
    if form != "ort":
        requires = Requirements(onnxruntime=least, ir_version=graph.ir_version, opsets=graph.opsets)
        return _Shipped(MODEL, content, requires, graph.quantized)
    requires = Requirements(
        # The operators of an optimised graph are ONNX Runtime's own, and of its release.
        onnxruntime=".".join(ort.__version__.split(".")[:2]),
        ir_version=graph.ir_version,
        opsets=graph.opsets,
    )
    return _Shipped(ORT, to_ort(content, options), requires, graph.quantized)


def _checked(manifest: Manifest) -> Manifest:
    """Refuse a name or version that the manifest could not be read back with."""
    try:
        return msgspec.convert(msgspec.to_builtins(manifest), Manifest)
    except msgspec.ValidationError as error:
        raise UserError(f"bundle: {error}") from error


def _golden(
    model: Model, samples: EvalSet, data: Path, *, quantized: bool
) -> tuple[golden_room.Golden, float]:
    """Choose samples and return them with the outputs of the session that ships."""
    classification = model.metadata.goal.task == "classification"
    among = (
        golden_room.candidates(samples.y)
        if classification
        else golden_room.at_even_steps(len(samples.y))
    )
    answers = answers_of(model, samples.x[among])  # refuses what is no answer to the task, and NaN
    require_known_truth(answers, samples.y, model.metadata.goal, data=data, model=model.where)
    scores = model.scores(samples.x[among])
    allowed = golden_room.tolerance(scores, quantized=quantized)
    if classification:
        among = among[golden_room.choose(samples.y[among], scores, allowed=allowed)]
    x = np.ascontiguousarray(samples.x[among])
    # Run anew, as the device will: all at once, and nothing else in the batch.
    return golden_room.Golden(x=x, scores=model.scores(x)), allowed


def _require_raw(x: npt.NDArray[Any], path: Path) -> None:
    if x.ndim < 2 or 0 in x.shape:
        raise UserError(f"{path}: needs samples with one axis or more, got {x.shape[1:]} a sample")


def _scores(goal: Goal, scores: npt.NDArray[Any]) -> Any:
    match goal.task:
        case "classification":
            return "probabilities" if _are_probabilities(scores) else "logits"
        case "multi_label":
            return "probabilities"
        case "regression":
            return "values"
        case "reconstruction":
            return "reconstruction"


def _are_probabilities(scores: npt.NDArray[Any]) -> bool:
    """Say whether every row adds up to 1, as far as rounded probabilities do."""
    rows = scores.astype(np.float64)
    in_range = rows.min() >= 0 and rows.max() <= 1 + _SUMS_TO_ONE
    return bool(in_range and (np.abs(rows.sum(axis=1) - 1) <= _SUMS_TO_ONE).all())


def _tensor(batch: npt.NDArray[Any]) -> Tensor:
    return Tensor(shape=batch.shape[1:], dtype=cast("Any", str(batch.dtype)))


def _one(batch: int | None) -> Any:
    return None if batch is None else 1


def _quality(results: Results, variant: Variant) -> Quality:
    ends = variant.baseline_delta, variant.baseline_delta_low, variant.baseline_delta_high
    return Quality(
        data=results.data.name,
        samples=results.data.test_samples,
        score=Interval(value=variant.score, low=variant.score_low, high=variant.score_high),
        delta=None if None in ends else _interval(*ends),
    )


def _timing(results: Results, variant: Variant) -> Timing | None:
    if variant.p50_ms is None or variant.speedup is None:
        return None
    here = results.environment
    return Timing(
        p50_ms=_interval(variant.p50_ms, variant.p50_low_ms, variant.p50_high_ms),
        speedup=_interval(variant.speedup, variant.speedup_low, variant.speedup_high),
        threads=results.session.threads,
        cpu=here.cpu,
        architecture=here.architecture,
        onnxruntime=here.versions.get("onnxruntime", "not known"),
        litert=here.versions.get("ai-edge-litert") if variant.format == "tflite" else None,
    )


def _interval(value: float | None, low: float | None, high: float | None) -> Interval:
    if value is None or low is None or high is None:
        raise ValueError("an estimate without its interval")
    return Interval(value=value, low=low, high=high)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a model") from error
