"""``manifest.json``: what a bundle says of itself."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from deploy.errors import BundleError
from deploy.preprocess import Op
from deploy.record import Goal, Interval, Record, SessionOptions

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
SemanticVersion = Annotated[
    str,
    Meta(
        pattern=r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$",
        max_length=64,
    ),
]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Meta(ge=1)]
Size = Annotated[int, Meta(ge=0)]


class FileFacts(Record, frozen=True):
    """The bytes of one file of the bundle."""

    size_bytes: Size
    sha256: Sha256


class Tensor(Record, frozen=True):
    """An array that goes in or out, the batch axis in front left out."""

    shape: tuple[Count, ...]
    dtype: Literal["bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64",
                   "uint8", "uint16", "uint32", "uint64"]  # fmt: skip


class Port(Tensor, frozen=True):
    """The input or the output of the graph."""

    name: str
    batch: Literal[1] | None
    """1 if the model takes one sample at a time, null if as many as are given."""


class Lineage(Record, frozen=True):
    """How the model came to be."""

    recipe: str | None
    variant: str | None
    step: dict[str, object]
    """The step that made it, as data; ``kind`` names it."""
    parent: Sha256 | None
    """sha256 of the model that it was made from."""
    seed: int | None
    versions: dict[str, str]


class Quality(Record, frozen=True):
    """How good the model was on the test samples, in the session that ships."""

    data: str
    samples: Count
    score: Interval
    """By the metric of ``Manifest.goal``."""
    delta: Interval | None
    """Score minus that of the run's baseline, in percentage points where the metric is a fraction;
    null for the baseline itself."""


class Timing(Record, frozen=True):
    """The latency of one sample, where it was measured."""

    p50_ms: Interval
    speedup: Interval
    """p50 of the baseline of the run over that of this model."""
    threads: Count
    cpu: str
    architecture: str
    onnxruntime: str
    litert: str | None = None
    """Release of LiteRT, where that ran the model."""


Release = Annotated[str, Meta(pattern=r"^\d{1,4}\.\d{1,4}$")]


class Requirements(Record, frozen=True):
    """What the graph asks of its runtime, ONNX Runtime or LiteRT."""

    onnxruntime: Release | None
    """The oldest release that is known to read the model; null where LiteRT runs it."""
    ir_version: Count | None
    """Of an ONNX model, or the one that an ORT model was made from; null for LiteRT."""
    opsets: dict[str, int]
    """By domain; ``""`` is ONNX's own; empty for LiteRT."""
    litert: Release | None = None
    """The oldest release of LiteRT (``ai-edge-litert``) that is known to read the model."""
    operators: dict[str, int] = {}
    """Of a LiteRT model: the operators in it, each with its version."""


class Licences(Record, frozen=True):
    """Under what terms model and data may be used."""

    model: str
    data: str


class GoldenFacts(Record, frozen=True):
    """What ``golden.npz`` is good for."""

    samples: Count
    tolerance: Annotated[float, Meta(gt=0)]
    """By how much a score may differ from the one that the host saw."""


class Manifest(Record, frozen=True):
    """The whole of ``manifest.json``."""

    schema: Literal[2]
    name: Name
    version: SemanticVersion
    lightship: str
    """Version of lightship that made the bundle."""
    lineage: Lineage
    goal: Goal
    """The task, and the metric of ``quality``."""
    quality: Quality | None
    latency: Timing | None
    raw: Tensor
    """One sample as a user gives it, before preprocessing."""
    preprocess: tuple[Op, ...]
    input: Port
    output: Port
    scores: Literal["probabilities", "logits", "values", "reconstruction"]
    """What comes out: a softmax turns logits into probabilities; values are in the target's unit;
    the mean square of a reconstruction minus the preprocessed sample is its anomaly score."""
    labels: tuple[str, ...]
    """One name a class, label or target, in the order of the scores; of a reconstruction the names
    of a normal and of an anomalous sample."""
    session: SessionOptions
    requires: Requirements
    licences: Licences
    golden: GoldenFacts
    files: dict[str, FileFacts]
    """Every file but this one and ``SHA256SUMS``, which lists this one too."""
    unpacked: FileFacts | None = None
    """The ONNX file in ``model.lsp``; null where the model is not packed."""


class _Version(msgspec.Struct):
    schema: int


def encode(manifest: Manifest) -> bytes:
    """Return ``manifest.json``."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode(text: bytes, where: str) -> Manifest:
    """Read a ``manifest.json``; nothing unknown, missing or of another type passes.

    Raises:
        BundleError: if it is not what ``Manifest`` says.
    """
    try:
        version = msgspec.json.decode(text, type=_Version).schema
        if version != 2:
            raise BundleError(
                f"{where}: its schema must be 2, got {version}; use the lightship that made it"
            )
        return msgspec.json.decode(text, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{where}: manifest.json: {error}") from error
