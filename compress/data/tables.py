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
from deploy.evalset import EvalSet


def read_csv(path: Path, *, label_column: str) -> Labelled:
    """Read a comma-separated table with a header line: one column of labels, the others numbers.

    Samples are float32 ``(n, columns - 1)``. Labels are any texts; classes are numbered in their
    order, by value if all are integers.

    Raises:
        UserError: if the file is missing or no such table, the label column is not in it, or a
            feature is no number.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            column = _label_index(header, label_column, path)
            rows: list[npt.NDArray[np.float32]] = []
            texts: list[str] = []
            for row in reader:
                if not row:  # an empty line
                    continue
                where = f"{path}: line {reader.line_num}"
                if len(row) != len(header):
                    raise UserError(f"{where} has {len(row)} columns, the header has {len(header)}")
                texts.append(row.pop(column).strip())
                if not texts[-1]:
                    raise UserError(
                        f"{where}: column {label_column!r} holds no label; fill or remove it"
                    )
                rows.append(_numbers(row, header[:column] + header[column + 1 :], where))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a .csv file with a header line") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable .csv file in UTF-8 ({error})") from error
    if not rows:
        raise UserError(f"{path}: holds no lines below its header")
    labels = _in_order(set(texts))
    number = {label: index for index, label in enumerate(labels)}
    y = np.array([number[text] for text in texts], np.int64)
    return Labelled(train=EvalSet(x=np.stack(rows), y=y), test=None, labels=labels)


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
