"""What a data set is called, and the one function that reads it by that name."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from compress.data.arrays import read_idx, read_npy, read_npz
from compress.data.augment import Augment, Mixup
from compress.data.clean import Clean
from compress.data.fit_preprocess import Step
from compress.data.images import read_images
from compress.data.known import KNOWN, read_known
from compress.data.labelled import Labelled
from compress.data.tables import read_csv
from deploy.errors import UserError
from deploy.goals import default_metric, why_not_metric
from deploy.preprocess import ImageSize, Table
from deploy.record import Goal, TaskKind

FILE_KINDS = {"npz": "PATH", "npy": "FOLDER", "idx": "FOLDER", "images": "FOLDER", "csv": "PATH"}
"""The sources that are files of the user's: ``npz:PATH`` and so on."""


Pixels = Annotated[int, Meta(ge=1)]


class Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the samples come from, how they are split, how they become model inputs."""

    source: str
    """``mnist-sample``, ``mnist``, ``fashion_mnist``, ``cifar10``; of scikit-learn ``digits``,
    ``breast_cancer``, ``diabetes`` (a regression); or ``npz:PATH``, ``npy:FOLDER``, ``idx:FOLDER``,
    ``images:FOLDER``, ``csv:PATH``. In a recipe, a place is looked for beside the recipe first, then
    in the working folder."""
    validation_fraction: Annotated[float, Meta(gt=0, lt=1)] = 0.1
    """Fraction of what is not test that becomes the validation part."""
    test_fraction: Annotated[float, Meta(gt=0, lt=1)] = 0.2
    """Fraction that becomes the test part; used only where the source has no test part."""
    calibration_samples: Annotated[int, Meta(gt=0)] | None = None
    """Number of training samples that also calibrate a quantization; None takes 500, or all if
    there are fewer."""
    train_samples: Annotated[int, Meta(gt=0)] | None = None
    """Number of training samples to keep, for quick runs; None keeps all."""
    task: TaskKind = "classification"
    """What is learned: ``classification``, ``multi_label`` (several labels a sample, or none),
    ``regression``, or ``reconstruction`` of normal samples, by whose errors anomalies are told."""
    metric: str | None = None
    """What decides: ``accuracy``, ``top_K``, ``precision``, ``recall``, ``f1`` (of the second of two
    classes; with ``_macro``, ``_micro`` or ``_weighted`` over classes or labels), ``roc_auc``,
    ``mae``, ``mse``, ``r2``. None: accuracy, ``f1_macro`` of labels, ``mae``, or ``roc_auc``."""
    unit: str = ""
    """Unit of a regression's targets, as ``mm``, for whoever reads its errors."""
    label_column: str | None = None
    """Column of a ``csv:`` that holds the labels, or the one target of a regression."""
    label_columns: tuple[str, ...] | None = None
    """Columns of a ``csv:`` that hold the targets of a regression, or a 0 or 1 for each label."""
    normal: tuple[str, ...] | None = None
    """Of a reconstruction, the labels of the classes that count as normal: training sees these
    alone, the test part has all others too, as anomalies."""
    standardise_targets: bool = True
    """Learn the targets of a regression in standard deviations from their mean in the training
    part. The model brings them back into their unit itself."""
    categorical: tuple[str, ...] = ()
    """Columns of a ``csv:`` that hold one of a few texts each."""
    image_size: tuple[Pixels, Pixels] | None = None
    """Height and width that the ``images:`` of a folder are brought to, here and on a device; None
    demands that all have one size."""
    clean: Clean = Clean()
    preprocess: tuple[Step, ...] | None = None
    """How samples become model inputs; ``standardize``, ``scale_to`` and ``one_hot_categories`` get
    their numbers from the training part. None: uint8 images become ``(height, width, channels)``
    from 0 to 1, categories become zeros and ones, everything else is cast to float32."""
    augment: tuple[Augment, ...] = ()
    """What training does to its batches, after ``preprocess``; nothing else sees it."""
    memory_mb: Annotated[int, Meta(ge=1)] = 1024
    """Samples that need more megabytes than this are read from disk and preprocessed batch by batch."""

    def __post_init__(self) -> None:
        why_not = why_not_a_source(self.source)
        if why_not is not None:
            raise ValueError(why_not)
        self._require_labels()
        self._require_samples()

    def _require_labels(self) -> None:
        """Refuse what does not go together in what is to be learned."""
        given = [self.label_column is not None, self.label_columns is not None]
        if self.source.startswith("csv:") and not any(given):
            raise ValueError(f"source {self.source!r} needs label_column, the column of the labels")
        if not self.source.startswith("csv:") and any(given):
            raise ValueError(f"label_column is for csv: sources, source is {self.source!r}")
        if all(given):
            raise ValueError("label_column and label_columns exclude each other; give one")
        if self.label_columns is not None and self.task not in {"multi_label", "regression"}:
            raise ValueError(f"label_columns is for multi_label and regression, not {self.task}")
        if (self.normal is None) is (self.task == "reconstruction"):
            raise ValueError(
                "task reconstruction and normal, the labels that count as normal, need each other"
            )
        if self.unit and self.task != "regression":
            raise ValueError(f"unit is for regression, task is {self.task}")
        why_not = why_not_metric(self.task, self.metric or default_metric(self.task))
        if why_not is not None:
            raise ValueError(why_not)

    def _require_samples(self) -> None:
        """Refuse what does not go together in what it is learned from."""
        if not self.source.startswith("csv:") and self.categorical:
            raise ValueError(f"categorical is for csv: sources, source is {self.source!r}")
        for name in self.columns:
            if name in self.categorical:
                raise ValueError(f"categorical: {name!r} is the label_column; leave it out")
        if not self.source.startswith("images:") and self.image_size is not None:
            raise ValueError(
                f"image_size is for images: sources, source is {self.source!r}; "
                f"add {{ op = 'resize' }} to preprocess"
            )
        if self.image_size not in {None, self.size}:
            raise ValueError(
                f"image_size = {self.image_size} and the image_size that preprocess begins with, "
                f"{self.size}, must be one; leave one of them out"
            )
        if self.table is not None and (self.clean.fills or self.clean.outliers is not None):
            raise ValueError(
                "preprocess begins with table, so it has its own rules on missing values and "
                "outliers; leave clean.missing and clean.outliers out"
            )
        if self.task == "reconstruction" and not all(isinstance(a, Mixup) for a in self.augment):
            raise ValueError(
                "augment: a reconstruction is compared with the sample as it was; of all kinds only "
                "mixup fits it"
            )

    @property
    def goal(self) -> Goal:
        """The task and what decides."""
        metric = self.metric or default_metric(self.task)
        return Goal(task=self.task, metric=metric, unit=self.unit)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a ``csv:`` that are no feature."""
        return self.label_columns or ((self.label_column,) if self.label_column else ())

    @property
    def table(self) -> Table | None:
        """The table that the preprocessing of a finished model begins with, if it does."""
        first = self.preprocess[0] if self.preprocess else None
        return first if isinstance(first, Table) else None

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that images are brought to, from a finished model's preprocessing too."""
        first = self.preprocess[0] if self.preprocess else None
        if isinstance(first, ImageSize):
            return first.height, first.width
        return self.image_size


def why_not_a_source(source: str) -> str | None:
    """Say why a text names no source, or None if it names one.

    >>> why_not_a_source("npz:digits.npz")
    >>> why_not_a_source("csv:")
    "source 'csv:' lacks its place: write csv:PATH"
    """
    kind, colon, where = source.partition(":")
    if source in KNOWN or (kind in FILE_KINDS and where):
        return None
    if kind in FILE_KINDS:
        return f"source {source!r} lacks its place: write {kind}:{FILE_KINDS[kind]}"
    places = {f"{kind}:": f"{kind}:{place}" for kind, place in FILE_KINDS.items()}
    close = difflib.get_close_matches(kind + colon, [*KNOWN, *places], n=1)
    meant = f", did you mean {close[0]}?" if close else ";"
    known = ", ".join([*KNOWN, *places.values()])
    return f"source {source!r} is unknown{meant} known are {known}"


def read_source(data: Data) -> Labelled:
    """Read a data set whole, as its source gives it.

    Raises:
        UserError: if it is missing or damaged; the line names the file and the place.
    """
    kind, _, where = data.source.partition(":")
    memory_bytes = data.memory_mb * 1_000_000
    # Which samples are normal is told by classes.
    truth: TaskKind = "classification" if data.task == "reconstruction" else data.task
    match kind:
        case "npz":
            return read_npz(Path(where), truth, memory_bytes=memory_bytes)
        case "npy":
            return read_npy(Path(where), truth, memory_bytes=memory_bytes)
        case "csv":
            known = data.table.columns if data.table is not None else ()
            filled = data.table.missing if data.table is not None else data.clean.fills
            texts = {column.name for column in known if column.categories is not None}
            return read_csv(
                Path(where),
                label_columns=data.columns,
                task=truth,
                categorical=texts | set(data.categorical),
                marks=data.table.marks if data.table else data.clean.missing_marks,
                missing=filled or data.clean.missing == "drop",
                memory_bytes=memory_bytes,
            )
        case _ if truth != _truth_of(kind):
            raise UserError(
                f"{data.source}: is no data set for a {data.task} task; "
                f"set its task to {_truth_of(kind)}"
            )
        case "idx":
            return read_idx(Path(where), memory_bytes=memory_bytes)
        case "images":
            return read_images(Path(where), size=data.size, memory_bytes=memory_bytes)
        case _:
            return read_known(kind)


def _truth_of(source: str) -> TaskKind:
    """Return what kind of truth a source without a choice comes with."""
    return KNOWN[source].task if source in KNOWN else "classification"
