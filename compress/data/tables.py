"""Labelled samples that lie in a text file as a table."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from compress.data.labelled import Labelled
from deploy.errors import UserError
from deploy.evalset import EvalSet, pair
from deploy.record import TaskKind


def read_csv(
    path: Path, *, label_columns: Sequence[str], task: TaskKind = "classification"
) -> Labelled:
    """Read a comma-separated table with a header line: columns of labels, the others numbers.

    Samples are float32 ``(n, features)``. Labels of classes are any texts; classes are numbered in
    their order, by value if all are integers. Targets of a regression are numbers, labels of a
    multi-label task 0 or 1 a column.

    Raises:
        UserError: if the file is missing or no such table, a label column is not in it, or a
            feature, target or label is no number.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            columns = _label_indices(header, label_columns, path)
            features = [index for index in range(len(header)) if index not in columns]
            rows: list[npt.NDArray[np.float32]] = []
            truths: list[list[str]] = []
            for row in reader:
                if not row:  # an empty line
                    continue
                where = f"{path}: line {reader.line_num}"
                if len(row) != len(header):
                    raise UserError(f"{where} has {len(row)} columns, the header has {len(header)}")
                truth = [row[column].strip() for column in columns]
                if "" in truth:
                    name = header[columns[truth.index("")]]
                    raise UserError(f"{where}: column {name!r} holds no label; fill or remove it")
                if task != "classification":
                    _numbers(truth, [header[column] for column in columns], where)
                truths.append(truth)
                rows.append(
                    _numbers([row[i] for i in features], [header[i] for i in features], where)
                )
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a .csv file with a header line") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable .csv file in UTF-8 ({error})") from error
    if not rows:
        raise UserError(f"{path}: holds no lines below its header")
    x = np.stack(rows)
    if task != "classification":
        values = np.array(truths, np.float64)
        # Written as 1 or as 1.0: which numbers a label may be is for ``pair`` to say.
        y = values.astype(np.int64) if (values == np.round(values)).all() else values
        return Labelled(
            train=pair(x, y, where=str(path), task=task),
            test=None,
            labels=tuple(header[column] for column in columns),
        )
    texts = [truth[0] for truth in truths]
    labels = _in_order(set(texts))
    number = {label: index for index, label in enumerate(labels)}
    y = np.array([number[text] for text in texts], np.int64)
    return Labelled(train=EvalSet(x=x, y=y), test=None, labels=labels)


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


def _numbers(row: Sequence[str], names: Sequence[str], where: str) -> npt.NDArray[np.float32]:
    # A number beyond float32 becomes infinity, which is refused with the other unusable samples.
    with contextlib.suppress(ValueError), np.errstate(over="ignore"):
        return np.array(row, dtype=np.float32)
    text, name = next(pair for pair in zip(row, names, strict=True) if not _is_number(pair[0]))
    raise UserError(f"{where}: column {name!r} must hold numbers, got {text!r}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _in_order(labels: set[str]) -> tuple[str, ...]:
    try:
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    except ValueError:
        return tuple(sorted(labels))
