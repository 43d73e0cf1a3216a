"""What a data set is called, and the one function that reads it by that name."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from compress.data.arrays import read_idx, read_npy, read_npz
from compress.data.augment import Augment
from compress.data.clean import Clean
from compress.data.fit_preprocess import Step
from compress.data.images import read_images
from compress.data.known import KNOWN, read_known
from compress.data.labelled import Labelled
from compress.data.tables import read_csv
from deploy.preprocess import ImageSize, Table

FILE_KINDS = {"npz": "PATH", "npy": "FOLDER", "idx": "FOLDER", "images": "FOLDER", "csv": "PATH"}
"""The sources that are files of the user's: ``npz:PATH`` and so on."""


Pixels = Annotated[int, Meta(ge=1)]


class Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the samples come from, how they are split, how they become model inputs."""

    source: str
    """``mnist-sample``, ``mnist``, ``fashion_mnist``, ``cifar10``; or ``npz:PATH``, ``npy:FOLDER``,
    ``idx:FOLDER``, ``images:FOLDER``, ``csv:PATH``. In a recipe, a place is looked for beside the
    recipe first, then in the working folder."""
    validation_fraction: Annotated[float, Meta(gt=0, lt=1)] = 0.1
    """Fraction of what is not test that becomes the validation part."""
    test_fraction: Annotated[float, Meta(gt=0, lt=1)] = 0.2
    """Fraction that becomes the test part; used only where the source has no test part."""
    calibration_samples: Annotated[int, Meta(gt=0)] | None = None
    """Number of training samples that also calibrate a quantization; None takes 500, or all if
    there are fewer."""
    train_samples: Annotated[int, Meta(gt=0)] | None = None
    """Number of training samples to keep, for quick runs; None keeps all."""
    label_column: str | None = None
    """Column of a ``csv:`` that holds the labels."""
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
        if self.source.startswith("csv:") and self.label_column is None:
            raise ValueError(f"source {self.source!r} needs label_column, the column of the labels")
        if not self.source.startswith("csv:") and self.label_column is not None:
            raise ValueError(f"label_column is for csv: sources, source is {self.source!r}")
        if not self.source.startswith("csv:") and self.categorical:
            raise ValueError(f"categorical is for csv: sources, source is {self.source!r}")
        if self.label_column in self.categorical:
            raise ValueError(
                f"categorical: {self.label_column!r} is the label_column; leave it out"
            )
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
    match kind:
        case "npz":
            return read_npz(Path(where), memory_bytes=memory_bytes)
        case "npy":
            return read_npy(Path(where), memory_bytes=memory_bytes)
        case "idx":
            return read_idx(Path(where), memory_bytes=memory_bytes)
        case "images":
            return read_images(Path(where), size=data.size, memory_bytes=memory_bytes)
        case "csv" if data.label_column is not None:
            known = data.table.columns if data.table is not None else ()
            filled = data.table.missing if data.table is not None else data.clean.fills
            texts = {column.name for column in known if column.categories is not None}
            return read_csv(
                Path(where),
                label_column=data.label_column,
                categorical=texts | set(data.categorical),
                marks=data.table.marks if data.table else data.clean.missing_marks,
                missing=filled or data.clean.missing == "drop",
                memory_bytes=memory_bytes,
            )
        case _:
            return read_known(kind)
