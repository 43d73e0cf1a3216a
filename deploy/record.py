"""What is written down: Artifact (facts about a file) and Measurement (facts about one machine)."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path
from typing import Literal

import msgspec

from deploy.errors import UserError
from deploy.preprocess import Op

_LARGEST_RECORD = 1 << 24


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen value that goes to JSON and back without loss."""


class Interval(Record, frozen=True):
    """An estimate and its 95 % interval, all three in the unit of the field that holds it."""

    value: float
    low: float
    high: float

    def excludes(self, point: float) -> bool:
        """Say whether the interval lies wholly on one side of ``point``.

        >>> Interval(value=1.8, low=1.7, high=1.9).excludes(1.0)
        True
        """
        return self.low > point or self.high < point


TaskKind = Literal["classification", "multi_label", "regression", "reconstruction"]


class Goal(Record, frozen=True):
    """What a model answers, and by what its answers are judged."""

    task: TaskKind = "classification"
    metric: str = "accuracy"
    """A name in ``deploy.metrics``."""
    unit: str = ""
    """Of a regression's targets, as ``mm``; empty where there is none or nobody said."""


class LayerFacts(Record, frozen=True):
    """One layer that has weights, as read from the bytes of the model file."""

    name: str
    kind: str
    parameters: int
    zeros: int
    bits: int
    """Width of the stored weights: 32, 16, 8 or 4."""
    note: str | None = None
    """Why a technique left this layer alone, in the technique's own words."""
    distinct: int | None = None
    """Different values among the stored weights; None in records of before they were counted."""

    @property
    def shares_values(self) -> bool:
        """Whether the weights share few values: a quarter of what fits 8 bits, or of the weights."""
        few = min(2 ** min(self.bits, 8), self.parameters) // 4
        return self.distinct is not None and self.distinct <= few

    @property
    def sparsity(self) -> float:
        """Fraction of the layer's weights that are exactly zero."""
        return self.zeros / self.parameters if self.parameters else 0.0


class Artifact(Record, frozen=True):
    """A model file: what its bytes are, and how they came to be."""

    format: Literal["keras", "onnx", "tflite"]
    sha256: str
    size_bytes: int
    gzip_bytes: int
    parent: str | None
    """sha256 of the file this one was made from."""
    step: dict[str, object]
    """The step that made it, as data; ``kind`` names it."""
    seed: int
    versions: dict[str, str]
    parameters: int
    """Weights of all kernels; biases are not counted, in any variant, because nothing here prunes
    them and some forms of a model fold them into other nodes."""
    nonzero_parameters: int
    layers: tuple[LayerFacts, ...]
    preprocess: tuple[Op, ...]
    labels: tuple[str, ...]
    data: str = ""
    """Name of the data set that the model was trained on."""
    data_licence: str = ""
    goal: Goal = Goal()
    keras_agreement: float | None = None
    """Of what was trained for int8 to choose a class: the share of samples, the test samples where
    there are some, on which this file chooses the class that the Keras model of that training
    chooses. None of all other files."""


class Confusion(Record, frozen=True, tag_field="kind", tag="confusion"):
    """How often each class was taken for which."""

    counts: tuple[tuple[int, ...], ...]
    """A row per true class, a column per predicted one, both in label order."""


class Roc(Record, frozen=True, tag_field="kind", tag="roc"):
    """What share of the positives is found at what share of false alarms, threshold by threshold."""

    false_positive_rate: tuple[float, ...]
    true_positive_rate: tuple[float, ...]


class Scatter(Record, frozen=True, tag_field="kind", tag="scatter"):
    """Predicted beside true values, in the target's unit; of many samples a few at even steps."""

    true: tuple[tuple[float, ...], ...]
    """One row a target, in label order."""
    predicted: tuple[tuple[float, ...], ...]


Answers = Confusion | Roc | Scatter


class Evaluation(Record, frozen=True):
    """How good one model is on one evaluation set, measured in the session that ships."""

    samples: int
    score: Interval
    """The goal's own metric: a fraction, or in the unit that the metric has."""
    metrics: dict[str, Interval]
    """Every metric of the task, by name."""
    per_label: tuple[float, ...]
    """By label, in label order: recall (classification), F1 (multi-label), mean absolute error
    (regression); NaN-free: a class that is absent counts as 0. Empty for reconstruction."""
    answers: Answers | None
    """How the answers lie beside the truth; None where that would be too much to keep."""


class Comparison(Record, frozen=True):
    """One model against another on the same samples, paired sample by sample."""

    delta: Interval
    """Score of the candidate minus that of the reference: in percentage points where the metric is
    a fraction, else in the metric's unit."""
    mcnemar_p: float | None
    """Exact two-sided McNemar p-value; None where the metric is not a share of right answers."""
    agreement: float | None
    """Fraction of samples on which both give the same answer, right or wrong; None where answers
    are numbers."""
    per_label_delta: tuple[float, ...]
    """Change of each ``per_label``, in the unit of a difference of it."""


class SessionOptions(Record, frozen=True):
    """How a model is opened. What was timed with these options ships with these options."""

    threads: int = 1
    disabled_optimizers: tuple[str, ...] = ("WeightBiasQuantization",)
    """ONNX Runtime >= 1.23 re-quantises excluded float layers at load unless this one is off."""
    exact_sums: bool = True
    """Add int8 products without overflow everywhere: ``session.x64quantprecision`` of ONNX Runtime where
    its fast kernels overflow. An x86 with AVX2 and without VNNI then takes slower kernels for layers whose
    weights need them, and for no others."""
    arena: bool = True
    """Keep memory that a run gave back for the next one; without, a run takes and returns its own."""
    mmap: bool = False
    """Map a file in ORT format in place of reading it; its weights stay in the file's pages."""


class Environment(Record, frozen=True):
    """The machine and the software that a measurement was made with."""

    cpu: str
    architecture: str
    isa: tuple[str, ...]
    """The instruction sets that matter to int8 kernels, such as ``avx512_vnni`` or ``dotprod``."""
    target: str
    """The quantization target this machine is: ``x86-vnni``, ``x86-avx2`` or ``arm64``."""
    cores: int
    memory_bytes: int
    """Physical memory; 0 where the system does not say."""
    governor: str | None
    """CPU frequency governor, or None where the system does not say."""
    load_average: float | None
    """One-minute load average when the measurement began."""
    os: str
    python: str
    versions: dict[str, str]


class Latency(Record, frozen=True):
    """What one machine saw of one model."""

    p50_ms: Interval
    p90_ms: float
    p99_ms: float
    speedup: Interval
    """p50 of the first model of the bench over p50 of this one; exactly 1 for the first itself."""
    throughput_per_s: float
    """Samples per second at ``batch`` samples a call."""
    batch: int
    load_ms: float
    """Time to open the model in a new process, median over processes."""
    peak_rss_bytes: int
    """Peak resident memory of a new process that opened the model and ran it once."""
    empty_rss_bytes: int = 0
    """The same before it opened the model; 0 where nobody measured it."""


class Measurement(Record, frozen=True):
    """One bench of several models, interleaved, on one machine."""

    environment: Environment
    session: SessionOptions
    processes: int
    sessions_per_process: int
    latencies: tuple[Latency, ...]
    """In the order in which the models were given; the first is the reference of every speed-up."""
    measured_at: str = ""
    """ISO 8601 time of the measurement; empty where nobody wrote it down."""
    warnings: tuple[str, ...] = ()
    """What made this machine hard to measure on, if anything did."""


class BundleId(Record, frozen=True):
    """Which bundle it is."""

    name: str
    version: str
    digest: str
    """sha256 of the bundle's ``SHA256SUMS``: the same for the file and the folder."""


class Benched(Record, frozen=True):
    """One model that was timed."""

    path: str
    """The file or bundle, as its user wrote it."""
    sha256: str
    """Of the model file, also where it came in a bundle."""
    bundle: BundleId | None


class MachineBench(Record, frozen=True):
    """What ``lightship bench --json`` prints: which models, and what this machine saw of them."""

    models: tuple[Benched, ...]
    """In the order of ``measurement.latencies``."""
    measurement: Measurement


def read_capped(path: Path, most_bytes: int) -> bytes:
    """Return the bytes of a file that may come from a stranger; no more are read than it may have.

    Raises:
        OSError: if it cannot be read.
        UserError: if it has more than ``most_bytes``, or is no regular file: a pipe may never end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise UserError(f"{path}: is no regular file")
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise UserError(f"{path}: has more than the {most_bytes:,} bytes that any such file has")
    return content


def record_path(path: Path) -> Path:
    """Return where the record of a model file lies.

    >>> record_path(Path("model.onnx")).name
    'model.onnx.json'
    """
    return path.with_name(path.name + ".json")


def read_record(path: Path) -> Artifact:
    """Return the record beside a model file.

    Raises:
        UserError: if there is none, it is far too large or does not decode, or it is of other
            bytes than the file's.
    """
    beside = record_path(path)
    try:
        record = msgspec.json.decode(read_capped(beside, _LARGEST_RECORD), type=Artifact)
    except OSError as error:
        raise UserError(
            f"{beside}: cannot be read ({error.strerror}); it is the record of {path.name} and "
            f"has to lie beside it"
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{beside}: not a record of lightship's ({error})") from error
    if record.sha256 != sha256_of(path):
        raise UserError(f"{beside}: is the record of other bytes than those of {path.name}")
    return record


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def gzip_bytes_of(path: Path) -> int:
    """Return the size of a file after ``gzip -9`` without name and time, in bytes."""
    import gzip  # here: a device that opens a bundle has no use for it

    return len(gzip.compress(path.read_bytes(), compresslevel=9, mtime=0))


def notes_beside(path: Path) -> dict[str, str]:
    """Return what the record beside a model file notes of layers, by name; nothing without a record.

    Raises:
        UserError: as ``read_record`` does where there is one.
    """
    if not record_path(path).exists():
        return {}
    return {layer.name: layer.note for layer in read_record(path).layers if layer.note}
