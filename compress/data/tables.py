"""Labelled samples that lie in a text file as a table."""

from __future__ import annotations

import contextlib
import csv
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.data.labelled import Labelled
from deploy.errors import UserError
from deploy.evalset import EvalSet, pair
from deploy.preprocess import MISSING_MARKS, Column
from deploy.record import TaskKind
from deploy.streams import MEMORY_BYTES, Spool
from deploy.tables import value_of

_BLOCK_ROWS = 1024
_LARGEST_EXACT = 2.0**53


def read_csv(
    path: Path,
    *,
    label_columns: Sequence[str],
    task: TaskKind = "classification",
    categorical: Collection[str] = (),
    marks: Collection[str] = MISSING_MARKS,
    missing: bool = False,
    memory_bytes: int = MEMORY_BYTES,
) -> Labelled:
    """Read a comma-separated table with a header line: columns of labels, the others features.

    Samples are float32 ``(n, features)``. Labels of classes are any texts; classes are numbered in
    their order, by value if all are integers. Targets of a regression are numbers, labels of a
    multi-label task 0 or 1 a column.

    Args:
        path: the file.
        label_columns: names of the columns of labels or targets; of classes one.
        task: what they hold.
        categorical: names of columns of texts, which become codes in the order in which they occur.
        marks: texts that stand for a missing value, which becomes NaN.
        missing: whether values may be missing.
        memory_bytes: more than this is kept on disk.

    Raises:
        UserError: if the file is missing or no such table, a label column or one of ``categorical``
            is not in it, or a feature, target or label is no number.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            columns = _label_indices(header, label_columns, path)
            places = [index for index in range(len(header)) if index not in columns]
            names = [header[index] for index in places]
            features = _Features(names, categorical, tuple(marks) if missing else (), path)
            spool = Spool(memory_bytes)
            rows: list[npt.NDArray[np.float32]] = []
            truths: list[list[str]] = []
            for row in reader:
                if not row:  # an empty line
                    continue
                where = f"{path}: line {reader.line_num}"
                if len(row) != len(header):
                    raise UserError(f"{where} has {len(row)} columns, the header has {len(header)}")
                truths.append(_truth(row, header, columns, task, where))
                rows.append(features.read([row[place] for place in places], where))
                if len(rows) == _BLOCK_ROWS:
                    spool.add(np.stack(rows))
                    rows = []
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a .csv file with a header line") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable .csv file in UTF-8 ({error})") from error
    if not truths:
        raise UserError(f"{path}: holds no lines below its header")
    if rows:
        spool.add(np.stack(rows))
    x = spool.finish()
    if task != "classification":
        part = pair(x, _values(truths, task), where=str(path), task=task)
        return Labelled(
            train=part, test=None, labels=tuple(label_columns), columns=features.columns
        )
    texts = [truth[0] for truth in truths]
    labels = _in_order(set(texts))
    number = {label: index for index, label in enumerate(labels)}
    y = np.array([number[text] for text in texts], np.int64)
    return Labelled(train=EvalSet(x=x, y=y), test=None, labels=labels, columns=features.columns)


def _truth(
    row: Sequence[str], header: Sequence[str], columns: Sequence[int], task: TaskKind, where: str
) -> list[str]:
    """Return the texts of the columns of labels, of targets once they are known to be numbers."""
    truth = [sys.intern(row[column].strip()) for column in columns]
    for text, column in zip(truth, columns, strict=True):
        if not text:
            raise UserError(f"{where}: column {header[column]!r} holds no label; fill or remove it")
        if task != "classification" and not _is_number(text):
            raise UserError(f"{where}: column {header[column]!r} must hold numbers, got {text!r}")
    return truth


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _values(truths: Sequence[Sequence[str]], task: TaskKind) -> npt.NDArray[Any]:
    """Return what the texts of targets or labels say, ``(n, columns)``."""
    values = np.array([[float(text) for text in truth] for truth in truths])
    whole = (np.abs(values) <= _LARGEST_EXACT) & (values == np.round(values))
    # Written as 1 or as 1.0: which numbers a label may be is for ``pair`` to say.
    return values.astype(np.int64) if task == "multi_label" and whole.all() else values


def _label_indices(header: Sequence[str], label_columns: Sequence[str], path: Path) -> list[int]:
    for name in label_columns:
        if header.count(name) != 1 or list(label_columns).count(name) != 1:
            raise UserError(
                f"{path}: label_column = {name!r} must name one column, "
                f"the header has {', '.join(header) or 'none'}"
            )
    if len(header) == len(label_columns):
        raise UserError(
            f"{path}: needs columns of numbers beside the label column "
            f"{', '.join(map(repr, label_columns))}"
        )
    return [header.index(name) for name in label_columns]


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
