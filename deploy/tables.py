"""Rows of a table as texts, and the samples that they stand for."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.errors import UserError
from deploy.preprocess import Column, Preprocess, Table

UNKNOWN = -1.0
"""The code of a category that training did not have."""


def table_of(preprocess: Preprocess) -> Table | None:
    """Return the table that samples are rows of, or None if they are something else."""
    first = preprocess[0] if preprocess else None
    return first if isinstance(first, Table) else None


def samples_of(
    rows: Sequence[Mapping[str, object]], table: Table, *, where: str
) -> npt.NDArray[np.float32]:
    """Return the samples ``(n, columns)`` of rows that name each value by its column.

    Columns that the table does not have, as that of the answer, are ignored.

    Args:
        rows: texts as a CSV file has them, or numbers; a missing value is None, NaN or a mark.
        table: the columns, their categories and what stands for a missing value.
        where: what an error begins with.

    Raises:
        UserError: if a row lacks a column, holds a text where a number belongs, or lacks a value
            that nothing fills.

    >>> table = Table(columns=(Column(name="a"), Column(name="b", categories=("x", "y"))))
    >>> samples_of([{"a": "1.5", "b": "y"}, {"b": "z", "a": 2}], table, where="rows").tolist()
    [[1.5, 1.0], [2.0, -1.0]]
    """
    codes = [code_table(column) for column in table.columns]
    found = np.empty((len(rows), len(table.columns)), np.float32)
    for number, row in enumerate(rows):
        for place, column in enumerate(table.columns):
            if column.name not in row:
                raise UserError(
                    f"{where}: row {number + 1} lacks column {column.name!r}; the model takes "
                    f"{', '.join(known.name for known in table.columns)}"
                )
            value = value_of(row[column.name], codes[place], table.marks)
            if isinstance(value, str) or (math.isnan(value) and not table.missing):
                raise UserError(
                    f"{where}: row {number + 1}: column {column.name!r} must hold "
                    f"{'numbers' if column.categories is None else 'a category'}, "
                    f"got {row[column.name]!r}"
                )
            with np.errstate(over="ignore"):  # beyond float32 is infinity, refused where it counts
                found[number, place] = value
    return found


def code_table(column: Column) -> dict[str, int] | None:
    """Return the code of each category, or None for a column of numbers."""
    if column.categories is None:
        return None
    return {text: code for code, text in enumerate(column.categories)}


def value_of(value: object, codes: Mapping[str, int] | None, marks: Sequence[str]) -> float | str:
    """Return the number that stands for a value, NaN if it is missing, its text if nothing does."""
    if value is None:
        return math.nan
    text = str(value).strip()
    if text in marks:
        return math.nan
    if codes is not None:
        return codes.get(text, UNKNOWN)
    if isinstance(value, bool):
        return text
    try:
        return float(text)
    except ValueError:
        return text


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a ``.csv`` file with a header line.

    Raises:
        UserError: if it is missing or no such table.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if len(set(header)) < len(header) or not header:
                raise UserError(f"{path}: needs a header line that names each column once")
            rows = []
            for row in reader:
                if not row:  # an empty line
                    continue
                if len(row) != len(header):
                    raise UserError(
                        f"{path}: line {reader.line_num} has {len(row)} columns, "
                        f"the header has {len(header)}"
                    )
                rows.append(dict(zip(header, row, strict=True)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable .csv file in UTF-8 ({error})") from error
    if not rows:
        raise UserError(f"{path}: holds no lines below its header")
    return rows
