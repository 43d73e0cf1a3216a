"""What a data set is called, and the one function that reads it by that name."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from compress.data.arrays import read_idx, read_npz
from compress.data.images import read_images
from compress.data.known import KNOWN, read_known
from compress.data.labelled import Labelled
from compress.data.tables import read_csv
from deploy.preprocess import Op

FILE_KINDS = {"npz": "PATH", "idx": "FOLDER", "images": "FOLDER", "csv": "PATH"}
"""The sources that are files of the user's: ``npz:PATH`` and so on."""


class Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the samples come from, how they are split, how they become model inputs."""

    source: str
    """``mnist-sample``, ``mnist``, ``fashion_mnist``, ``cifar10``; or ``npz:PATH``,
    ``idx:FOLDER``, ``images:FOLDER``, ``csv:PATH``."""
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
    preprocess: tuple[Op, ...] | None = None
    """How samples become model inputs. None: uint8 images become ``(height, width, channels)`` from
    0 to 1, everything else is cast to float32."""

    def __post_init__(self) -> None:
        why_not = why_not_a_source(self.source)
        if why_not is not None:
            raise ValueError(why_not)
        if self.source.startswith("csv:") and self.label_column is None:
            raise ValueError(f"source {self.source!r} needs label_column, the column of the labels")
        if not self.source.startswith("csv:") and self.label_column is not None:
            raise ValueError(f"label_column is for csv: sources, source is {self.source!r}")


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
    match kind:
        case "npz":
            return read_npz(Path(where))
        case "idx":
            return read_idx(Path(where))
        case "images":
            return read_images(Path(where))
        case "csv" if data.label_column is not None:
            return read_csv(Path(where), label_column=data.label_column)
        case _:
            return read_known(kind)
