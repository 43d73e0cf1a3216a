"""``results.json``: what a run found, as one value, and how it is read back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from deploy.errors import UserError
from deploy.goals import metric_of
from deploy.record import (
    Answers,
    Environment,
    Goal,
    Interval,
    LayerFacts,
    Record,
    read_capped,
)

_LARGEST_RESULTS = 1 << 26

Fraction = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]


class Variant(Record, frozen=True):
    """One model of the run and everything that was found out about it.

    Intervals are 95 % intervals. ``score`` is by the metric of ``Results.goal``. ``delta*``,
    ``mcnemar_p`` and ``agreement`` compare with the variant named in ``from``, the same names with
    ``baseline_`` in front with the first variant; both are null for the first variant. A delta is
    the score of this variant minus that of the other, in percentage points where the metric is a
    fraction. Latencies are null where nothing was timed.
    """

    name: str
    parent: str | None = msgspec.field(name="from")
    """The variant this one was made from; ``from`` in the file."""
    step: dict[str, Any]
    """The step that made it, as data; ``kind`` names it."""
    seed: int
    format: Literal["keras", "onnx", "tflite"]
    path: str
    """Where the model file lies, relative to the folder of ``results.json``."""
    sha256: str
    size_bytes: Count
    gzip_bytes: Count
    parameters: Count
    """Weights of all kernels; biases are not counted."""
    nonzero_parameters: Count
    score: float
    score_low: float
    score_high: float
    delta: float | None
    delta_low: float | None
    delta_high: float | None
    mcnemar_p: Fraction | None
    """Null also where the metric is not the share of right answers."""
    agreement: Fraction | None
    """Null also where the answers are numbers."""
    baseline_delta: float | None
    baseline_delta_low: float | None
    baseline_delta_high: float | None
    baseline_mcnemar_p: Fraction | None
    baseline_agreement: Fraction | None
    p50_ms: Positive | None
    p50_low_ms: Positive | None
    p50_high_ms: Positive | None
    p90_ms: Positive | None
    p99_ms: Positive | None
    speedup: Positive | None
    """p50 of the first variant over p50 of this one."""
    speedup_low: Positive | None
    speedup_high: Positive | None
    throughput_per_s: Positive | None
    load_ms: Positive | None
    peak_rss_bytes: Count | None
    pareto: bool
    """On the front of score, size, gzipped size and median time: see ``pareto_front``."""
    layers: tuple[LayerFacts, ...]
    macs: Count | None = None
    """Multiply-accumulates for one sample in layers with stored weights; null where the shapes do
    not tell, and in results of a lightship that did not count them."""
    int8_macs_share: Fraction | None = None
    """Share of ``macs`` that int8 kernels do, in the graph that the runtime runs."""
    int8_layers: Count | None = None
    """Layers with stored weights that run as int8 kernels."""
    weighted_layers: Count | None = None
    """Layers with stored weights; two that share their weights count as two."""
    float_islands: Count | None = None
    """Groups of nodes that compute in float between int8 kernels."""
    keras_agreement: Fraction | None = None
    """Share of samples on which a file that was trained for int8 to choose a class chooses that of the
    Keras model of that training; null for all other files."""
    metrics: dict[str, Interval] = {}
    """Every metric of the task, by name."""
    per_label: tuple[float, ...] = ()
    """By label, in the order of ``data.labels``: recall (classification), F1 (multi-label), mean
    absolute error (regression)."""
    per_label_delta: tuple[float, ...] = ()
    """Change of each against the variant named in ``from``, in points or in the targets' unit."""
    baseline_per_label_delta: tuple[float, ...] = ()
    """Change of each against the first variant."""
    answers: Answers | None = None
    """How the answers lie beside the truth; null where that would be too much to keep."""
    packed_bytes: Count | None = None
    """Of the file as ``lightship pack`` writes it, exactly; null in results of a lightship that did
    not pack."""
    entropy_bound_bytes: Count | None = None
    """Order-0 entropy of the weights, and the text as it is packed: see docs/packing.md."""


class Data(Record, frozen=True):
    """What the networks learned, and how many samples each part had."""

    name: str
    licence: str
    outputs: Count
    """How many classes, labels or targets there are; 1 for a reconstruction's anomaly score."""
    sample_shape: tuple[int, ...]
    """Shape of one preprocessed sample, as the network receives it."""
    test_samples: Count
    """The samples that every score here was measured on."""
    train_samples: Count | None = None
    validation_samples: Count | None = None
    calibration_samples: Count | None = None
    """Part of the training samples."""
    labels: tuple[str, ...] = ()
    """Names of the classes, labels or targets, in the order of every ``per_label``."""
    majority_share: Fraction | None = None
    """Share of the test samples that are of the most frequent class; null where there are none."""


class Session(Record, frozen=True):
    """How every model was opened; how it was timed, unless nothing was."""

    threads: Count
    disabled_optimizers: tuple[str, ...]
    processes: Count | None
    sessions_per_process: Count | None
    batch: Count | None
    """Samples a call when throughput was measured."""
    measured_at: str | None = None
    """ISO 8601 time at which it was timed, where that was written down."""
    arena: bool = True
    """Whether a run's memory was kept for the next."""


class Reproduce(Record, frozen=True):
    """What to type, and the whole experiment as text, to get these results again."""

    command: str
    recipe: str
    """The resolved recipe, every default written out."""


class Training(Record, frozen=True):
    """How one variant was trained, epoch by epoch."""

    epochs: tuple[dict[str, float | None], ...]
    """Metrics by name; null where a metric was not finite."""
    kept_epoch: Annotated[int, Meta(ge=1)]
    """The epoch whose weights were kept, counted from 1."""


class MachineTimes(Record, frozen=True):
    """What another machine saw of one variant."""

    variant: str
    p50_ms: Positive
    p50_low_ms: Positive
    p50_high_ms: Positive
    p90_ms: Positive
    p99_ms: Positive
    speedup: Positive | None
    """p50 of the first variant over p50 of this one, there; null where that was not timed first."""
    speedup_low: Positive | None
    speedup_high: Positive | None
    throughput_per_s: Positive
    batch: Count
    load_ms: Positive
    peak_rss_bytes: Count


class Machine(Record, frozen=True):
    """Another machine on which variants of this run were timed."""

    name: str
    """What its user calls it."""
    environment: Environment
    threads: Count
    processes: Count
    sessions_per_process: Count
    times: tuple[MachineTimes, ...]
    warnings: tuple[str, ...]


class Results(Record, frozen=True):
    """The whole of ``results.json``; the first variant is the baseline."""

    schema: Literal[2]
    name: str
    title: str
    description: str
    lightship: str
    """Version of lightship that wrote this."""
    created: str
    """ISO 8601 time."""
    verdict: str
    data: Data
    environment: Environment
    session: Session
    variants: Annotated[tuple[Variant, ...], Meta(min_length=1)]
    history: dict[str, Training]
    """By variant; empty where nothing was trained."""
    warnings: tuple[str, ...]
    reproduce: Reproduce
    goal: Goal = Goal()
    """The task, and the metric of every ``score``."""
    machines: tuple[Machine, ...] = ()
    """Other machines, as ``lightship report --add`` brought them home."""

    def __post_init__(self) -> None:
        if metric_of(self.goal).form != "share":
            return
        for index, variant in enumerate(self.variants):
            if not 0 <= variant.score <= 1:
                raise ValueError(
                    f"{self.goal.metric} is a fraction from 0 to 1, got {variant.score:g} as the "
                    f"score of variants[{index}]"
                )

    @property
    def baseline(self) -> Variant:
        """The first variant, with which every other is compared."""
        return self.variants[0]

    @property
    def timed(self) -> bool:
        """Whether the variants were timed."""
        return self.baseline.p50_ms is not None


class _Version(msgspec.Struct):
    schema: int


def read_results(path: Path) -> Results:
    """Read a ``results.json``.

    Raises:
        UserError: if the file is missing or far too large, is no JSON, or is not what ``Results``
            says.
    """
    try:
        text = read_capped(path, _LARGEST_RESULTS)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the run folder"
        ) from error
    try:
        version = msgspec.json.decode(text, type=_Version).schema
        if version != 2:
            raise UserError(
                f"{path}: schema must be 2, got {version}; "
                "read it with the version of lightship that wrote it"
            )
        return msgspec.json.decode(text, type=Results)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: not a results.json: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); give the run folder") from error


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of ``results.json``, as kept in ``docs/results.schema.json``."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "lightship results.json",
        **msgspec.json.decode(msgspec.json.encode(msgspec.json.schema(Results))),  # tuples: lists
    }
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(schema))  # tuples become lists
    return plain
