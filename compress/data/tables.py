"""Labelled samples that lie in a text file as a table."""

from __future__ import annotations

import contextlib
import csv
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from compress.data.labelled import Labelled
from deploy.errors import UserError
from deploy.evalset import EvalSet
from deploy.preprocess import MISSING_MARKS, Column
from deploy.streams import MEMORY_BYTES, Spool
from deploy.tables import value_of

_BLOCK_ROWS = 1024


def read_csv(
    path: Path,
    *,
    label_column: str,
    categorical: Collection[str] = (),
    marks: Collection[str] = MISSING_MARKS,
    missing: bool = False,
    memory_bytes: int = MEMORY_BYTES,
) -> Labelled:
    """Read a comma-separated table with a header line: one column of labels, the others features.

    Samples are float32 ``(n, columns - 1)``. Labels are any texts; classes are numbered in their
    order, by value if all are integers.

    Args:
        path: the file.
        label_column: name of the column of labels.
        categorical: names of columns of texts, which become codes in the order in which they occur.
        marks: texts that stand for a missing value, which becomes NaN.
        missing: whether values may be missing.
        memory_bytes: more than this is kept on disk.

    Raises:
        UserError: if the file is missing or no such table, the label column or one of
            ``categorical`` is not in it, or a feature is no number.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            column = _label_index(header, label_column, path)
            names = header[:column] + header[column + 1 :]
            features = _Features(names, categorical, tuple(marks) if missing else (), path)
            spool = Spool(memory_bytes)
            rows: list[npt.NDArray[np.float32]] = []
            texts: list[str] = []
            for row in reader:
                if not row:  # an empty line
                    continue
                where = f"{path}: line {reader.line_num}"
                if len(row) != len(header):
                    raise UserError(f"{where} has {len(row)} columns, the header has {len(header)}")
                texts.append(sys.intern(row.pop(column).strip()))
                if not texts[-1]:
                    raise UserError(
                        f"{where}: column {label_column!r} holds no label; fill or remove it"
                    )
                rows.append(features.read(row, where))
                if len(rows) == _BLOCK_ROWS:
                    spool.add(np.stack(rows))
                    rows = []
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a .csv file with a header line") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable .csv file in UTF-8 ({error})") from error
    if not texts:
        raise UserError(f"{path}: holds no lines below its header")
    if rows:
        spool.add(np.stack(rows))
    labels = _in_order(set(texts))
    number = {label: index for index, label in enumerate(labels)}
    y = np.array([number[text] for text in texts], np.int64)
    return Labelled(
        train=EvalSet(x=spool.finish(), y=y),
        test=None,
        labels=labels,
        columns=features.columns,
    )


def _label_index(header: Sequence[str], label_column: str, path: Path) -> int:
    if header.count(label_column) != 1:
        raise UserError(
            f"{path}: label_column = {label_column!r} must name one column, "
            f"the header has {', '.join(header) or 'none'}"
        )
    if len(header) == 1:
        raise UserError(
            f"{path}: needs columns of numbers beside the label column {label_column!r}"
        )
    return header.index(label_column)


class _Features:
    """Turns the texts of rows into numbers, and learns the categories as they come."""

    def __init__(
        self, names: Sequence[str], categorical: Collection[str], marks: tuple[str, ...], path: Path
    ) -> None:
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(
                f"{path}: two columns are called {twice[0]!r}; give each a name of its own"
            )
        for name in categorical:
            if names.count(name) != 1:
                raise UserError(
                    f"{path}: categorical: {name!r} must name one column of features, there are "
                    f"{', '.join(names)}"
                )
        self._names = names
        self._codes: list[dict[str, int] | None] = [
            {} if name in categorical else None for name in names
        ]
        self._marks = marks

    def read(self, row: Sequence[str], where: str) -> npt.NDArray[np.float32]:
        """Return one sample, ``(columns,)``."""
        # A number beyond float32 becomes infinity, which is refused with the other unusable samples.
        with np.errstate(over="ignore"):
            if not any(codes is not None for codes in self._codes):
                with contextlib.suppress(ValueError):
                    return np.array(row, dtype=np.float32)
            return np.array(
                [self._value(place, text, where) for place, text in enumerate(row)], np.float32
            )

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns with the categories seen so far, in the order of their codes."""
        return tuple(
            Column(name=name, categories=None if codes is None else tuple(codes))
            for name, codes in zip(self._names, self._codes, strict=True)
        )

    def _value(self, place: int, text: str, where: str) -> float:
        codes = self._codes[place]
        if codes is not None and text.strip() not in self._marks:
            if not text.strip():
                raise UserError(
                    f"{where}: column {self._names[place]!r} holds nothing; set data.clean.missing"
                )
            return float(codes.setdefault(text.strip(), len(codes)))
        value = value_of(text, None, self._marks)
        if isinstance(value, str):
            advice = (
                "name it in data.categorical if it holds one of a few texts"
                if value and value not in MISSING_MARKS
                else "set data.clean.missing to drop or fill what is missing"
            )
            raise UserError(
                f"{where}: column {self._names[place]!r} must hold numbers, got {text!r}; {advice}"
            )
        return value


def _in_order(labels: set[str]) -> tuple[str, ...]:
    try:
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    except ValueError:
        return tuple(sorted(labels))
