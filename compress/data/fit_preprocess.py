"""Preprocessing whose numbers come from the training part: fitted here, data from then on."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from compress.data.clean import Clean, Outliers
from deploy.errors import UserError
from deploy.preprocess import (
    Cast,
    Clip,
    Column,
    Fill,
    Normalize,
    OneHot,
    OneHotColumns,
    Op,
    Preprocess,
    Reshape,
    Scale,
    Table,
    apply,
)
from deploy.streams import Mapped, Samples, Stream, blocks, choose
from deploy.tables import UNKNOWN

Array = npt.NDArray[Any]
Per = Literal["channel", "feature", "all"]

_MOST_CATEGORIES = 1000
_MOST_FEATURES = 1 << 16
_MOST_VALUES = 1 << 26
"""Values that a median or quantile looks at: of more samples, as many as hold these, evenly spaced."""
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class _Fitted(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op"
):
    """A step that becomes steps with numbers once it has seen the training part."""


class Standardize(_Fitted, frozen=True, tag="standardize"):
    """Becomes ``normalize`` to mean 0 and standard deviation 1; constant values become 0.

    Columns of categories are left alone.
    """

    per: Per = "channel"
    """``channel``: each entry of the last axis, which in a table is a column; ``feature``: each
    value of a sample; ``all``: all values together."""


class ScaleTo(_Fitted, frozen=True, tag="scale_to"):
    """Becomes ``normalize``, and ``scale`` where need be: from smallest to largest value to a range.

    Constant values become ``low``. Columns of categories are left alone. What lies outside of what
    training saw leaves the range: ``clean.outliers`` prevents it.
    """

    low: float = 0.0
    high: float = 1.0
    per: Per = "channel"
    """As in ``standardize``."""

    def __post_init__(self) -> None:
        if not -_FLOAT32_MAX <= self.low < self.high <= _FLOAT32_MAX:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")


class OneHotCategories(_Fitted, frozen=True, tag="one_hot_categories"):
    """Becomes ``one_hot_columns`` for the columns of categories of a table."""

    columns: tuple[str, ...] | None = None
    """Their names; None takes all. The others stay codes."""


Step: TypeAlias = Op | Standardize | ScaleTo | OneHotCategories
"""A step of ``[data] preprocess``: with its numbers, or to be fitted."""


def fit_table(columns: Sequence[Column], raw: Samples, clean: Clean) -> Table:
    """Return how rows become samples, with the categories that the training part has.

    Args:
        columns: of the samples as they were read; their categories are those of all parts.
        raw: the training part, ``(n, columns)``.
        clean: says whether values may be missing, and what marks one.

    Raises:
        UserError: if a column has more categories than can be learned from.
    """
    seen: list[set[int]] = [set() for _ in columns]
    for block in blocks(raw):
        for place, column in enumerate(columns):
            if column.categories is not None:
                codes = np.unique(block[:, place])
                seen[place] |= set(codes[~np.isnan(codes)].astype(int).tolist())
    fitted = []
    for column, codes_seen in zip(columns, seen, strict=True):
        if column.categories is None:
            fitted.append(column)
            continue
        if not 0 < len(codes_seen) <= _MOST_CATEGORIES:
            raise UserError(
                f"categorical: column {column.name!r} has {len(codes_seen)} different texts in the "
                f"training part, needs 1 to {_MOST_CATEGORIES}; leave it out of the table"
            )
        texts = tuple(sorted(column.categories[code] for code in codes_seen))
        fitted.append(Column(name=column.name, categories=texts))
    return Table(columns=tuple(fitted), missing=clean.fills, marks=clean.missing_marks)


def recoded(samples: Samples, columns: Sequence[Column], table: Table) -> Samples:
    """Return samples with the columns and codes of ``table`` in place of those they were read with.

    Args:
        samples: ``(n, columns)``.
        columns: what they were read with.
        table: what the model takes. A category that it does not have becomes −1.

    Raises:
        UserError: if a column is not there, or is one of categories in one and of numbers in the other.
    """
    if tuple(columns) == table.columns:
        return samples
    by_name = {column.name: place for place, column in enumerate(columns)}
    order: list[int] = []
    lookups: dict[int, Array] = {}
    for place, column in enumerate(table.columns):
        found = by_name.get(column.name)
        if found is None or (columns[found].categories is None) != (column.categories is None):
            kind = "numbers" if column.categories is None else "categories"
            raise UserError(
                f"csv: the model takes a column {column.name!r} of {kind}, the table has "
                f"{', '.join(by_name)}"
            )
        order.append(found)
        if column.categories is not None:
            codes = {text: code for code, text in enumerate(column.categories)}
            texts = columns[found].categories or ()
            lookups[place] = np.array([codes.get(text, UNKNOWN) for text in texts], np.float32)

    def recode(block: Array) -> Array:
        block = block[:, order]
        for place, lookup in lookups.items():
            known = ~np.isnan(block[:, place])
            block[known, place] = lookup[block[known, place].astype(np.int64)]
        return block

    return Mapped(samples, recode) if isinstance(samples, Stream) else recode(samples)


def fit_preprocess(
    steps: tuple[Step, ...] | None, raw: Samples, *, clean: Clean, front: Preprocess = ()
) -> Preprocess:
    """Return the preprocessing with all its numbers, from the training part alone.

    Args:
        steps: what the recipe states; None takes what fits the samples.
        raw: the training part, ``(n, ...)``.
        clean: its rules on missing values and outliers come after ``front``.
        front: what samples are: a table, images of one size, or nothing.

    Raises:
        UserError: if a step does not fit what reaches it; the line names it.
    """
    fitting = _Fitting(raw, clean)
    for op in front:
        fitting.add(op)
    if clean.outliers is not None:
        fitting.clip(clean.outliers)
    if clean.fills:
        fitting.fill()
    for index, step in enumerate(_default(raw, front) if steps is None else steps):
        with _at(index):
            fitting.step(step)
    return tuple(fitting.ops)


@contextlib.contextmanager
def _at(index: int) -> Iterator[None]:
    """Call a step by its place among the user's own, whatever was put in front of them."""
    try:
        yield
    except UserError as error:
        place, _, reason = str(error).partition(": ")
        known = place.startswith("preprocess[")
        raise UserError(f"preprocess[{index}]: {reason if known else error}") from error


def _default(raw: Samples, front: Preprocess) -> tuple[Step, ...]:
    """Return the preprocessing for samples whose user states none."""
    table = front[0] if front and isinstance(front[0], Table) else None
    if table is not None:
        codes = any(column.categories is not None for column in table.columns)
        return (OneHotCategories(),) if codes else ()
    if raw.dtype != np.uint8 or raw.ndim not in (3, 4):
        return (Cast(dtype="float32"),)
    if raw.ndim == 3:
        return (Reshape(shape=(*raw.shape[1:], 1)), Scale())
    return (Scale(),)


@dataclass(slots=True)
class _Moments:
    """Count, mean, sum of squares around it, smallest and largest of each entry, ``(entries,)``."""

    count: Array
    mean: Array
    squares: Array
    low: Array
    high: Array

    def add(self, values: Array) -> None:
        """Take in values ``(n, entries)``, NaN apart (Chan et al., "Updating Formulae", 1979, eq. 2.1)."""
        there = ~np.isnan(values)
        count = there.sum(axis=0)
        some = np.maximum(count, 1)
        mean = np.where(there, values, 0.0).sum(axis=0) / some
        squares = np.where(there, (values - mean) ** 2, 0.0).sum(axis=0)
        total = np.maximum(self.count + count, 1)
        apart = mean - self.mean
        self.squares = self.squares + squares + apart**2 * self.count * count / total
        self.mean = self.mean + apart * count / total
        self.count = self.count + count
        self.low = np.minimum(self.low, np.where(there, values, np.inf).min(axis=0))
        self.high = np.maximum(self.high, np.where(there, values, -np.inf).max(axis=0))

    @property
    def std(self) -> Array:
        """Standard deviation of the population, ``(entries,)``."""
        return np.asarray(np.sqrt(self.squares / np.maximum(self.count, 1)))


class _Fitting:
    """The steps that have their numbers, and what they make of the training part."""

    def __init__(self, raw: Samples, clean: Clean) -> None:
        self.raw = raw
        self.clean = clean
        self.ops: list[Op] = []
        self.first = np.asarray(raw[:1])
        self.columns: list[Column] = []
        self.numeric: npt.NDArray[np.bool_] | None = None
        """Which entries of the last axis are numbers, not codes; None where all are."""

    def add(self, *ops: Op) -> None:
        """Take in steps that have their numbers."""
        for op in ops:
            self.first = apply((op,), self.first)
            self.ops.append(op)
            match op:
                case Table():
                    self.columns = list(op.columns)
                    self.numeric = np.array([c.categories is None for c in op.columns])
                case OneHotColumns() if self.numeric is not None:
                    depths = dict(zip(op.columns, op.depths, strict=True))
                    kinds = [[k] * depths.get(i, 1) for i, k in enumerate(self.numeric.tolist())]
                    self.numeric = np.array([kind for several in kinds for kind in several])
                case Reshape() | OneHot():
                    self.numeric = None
                case _:
                    pass

    def step(self, step: Step) -> None:
        """Take in a step; give it its numbers first if it has none."""
        match step:
            case Standardize():
                seen = self._moments(step.per)
                self._normalize(seen.mean, seen.std, step.per)
            case ScaleTo():
                seen = self._moments(step.per)
                self._normalize(seen.low, seen.high - seen.low, step.per, to=(step.low, step.high))
            case OneHotCategories():
                self._one_hot(step.columns)
            case _:
                self.add(step)

    def clip(self, outliers: Outliers) -> None:
        """Bring outliers of the training part, and of all samples to come, into its range."""
        self._require_float("outliers")
        if outliers.sigma is not None:
            seen = self._moments("channel")
            low, high = seen.mean - outliers.sigma * seen.std, seen.mean + outliers.sigma * seen.std
        else:
            edge = outliers.quantile or 0.0
            low, high = self._of_entries(
                lambda x: np.nanquantile(x, [edge, 1 - edge], axis=0, method="linear")
            )
        numeric = self._numeric(len(low))
        self.add(
            Clip(
                low=_floats(np.where(numeric, low, -_FLOAT32_MAX)),
                high=_floats(np.where(numeric, high, _FLOAT32_MAX)),
            )
        )

    def fill(self) -> None:
        """Put a value where one is missing."""
        self._require_float("missing")
        numeric = self._numeric(self.first.shape[-1])
        if self.clean.missing_value is not None:
            values = np.full(len(numeric), self.clean.missing_value)
        elif self.clean.missing == "median":
            values = self._of_entries(lambda x: np.nanmedian(x, axis=0))
        else:
            values = self._moments("channel").mean
        for place in np.flatnonzero(~numeric).tolist():
            values[place] = self._most_frequent(place)
        self.add(Fill(values=_floats(values)))

    def _one_hot(self, names: tuple[str, ...] | None) -> None:
        if self.numeric is None or len(self.numeric) != len(self.columns):
            raise UserError("one_hot_categories needs the columns of a csv:, once; put it first")
        known = {c.name: i for i, c in enumerate(self.columns) if c.categories is not None}
        for name in names or ():
            if name not in known:
                raise UserError(
                    f"one_hot_categories: column {name!r} is none of data.categorical: "
                    f"{', '.join(known) or 'none'}"
                )
        chosen = sorted(known[name] for name in (known if names is None else names))
        depths = tuple(len(self.columns[place].categories or ()) for place in chosen)
        self.add(OneHotColumns(columns=tuple(chosen), depths=depths))

    def _normalize(
        self, shift: Array, width: Array, per: Per, *, to: tuple[float, float] = (0.0, 1.0)
    ) -> None:
        """Add ``(x - shift) / width * (high - low) + low``."""
        if not (np.isfinite(shift).all() and np.isfinite(width).all()):
            raise UserError("the training samples that reach it hold NaN or infinity")
        low, high = to
        width = np.where(width.astype(np.float32) > 0, width, 1.0)
        numeric = self._numeric(len(shift)) if per == "channel" else np.ones(len(shift), np.bool_)
        mixed = not numeric.all()
        # What every entry shares is one step more; columns of categories are not to take part in it.
        if to != (0.0, 1.0) and mixed:
            width = width / (high - low)
            shift = shift - low * width
        shift, width = np.where(numeric, shift, 0.0), np.where(numeric, width, 1.0)
        shape = tuple(self.first.shape[1:])
        flat = per == "feature" and len(shape) > 1
        ops: list[Op] = [Normalize(mean=_floats(shift), std=_floats(width))]
        if to != (0.0, 1.0) and not mixed:
            ops.append(Scale(factor=high - low, offset=low))
        if flat:
            ops = [Reshape(shape=(len(shift),)), *ops, Reshape(shape=shape)]
        self.add(*ops)

    def _numeric(self, entries: int) -> npt.NDArray[np.bool_]:
        return np.ones(entries, np.bool_) if self.numeric is None else self.numeric

    def _require_float(self, field: str) -> None:
        if self.first.dtype.kind != "f":
            raise UserError(
                f"clean.{field}: is for tables and arrays of float, samples are {self.first.dtype}"
            )

    def _prepared(self) -> Iterator[Array]:
        spec = tuple(self.ops)
        return (apply(spec, block) for block in blocks(self.raw))

    def _moments(self, per: Per) -> _Moments:
        entries = _per(self.first, per).shape[1]
        if entries > _MOST_FEATURES:
            raise UserError(
                f'per = "{per}" would keep {entries} values with the model, at most '
                f'{_MOST_FEATURES}; use "channel"'
            )
        zeros = np.zeros(entries)
        seen = _Moments(zeros, zeros, zeros, zeros + np.inf, zeros - np.inf)
        for block in self._prepared():
            seen.add(_per(block, per).astype(np.float64))
        if (seen.count == 0).any():
            raise UserError(self._why_not_any(int(np.argmin(seen.count))))
        return seen

    def _of_entries(self, statistic: Callable[[Array], Array]) -> Array:
        """Return a statistic of each entry of the last axis, over as many samples as memory allows."""
        most = max(1, _MOST_VALUES // max(1, math.prod(self.first.shape[1:])))
        count = len(self.raw)
        picked = np.unique(np.linspace(0, count - 1, min(most, count)).astype(np.int64))
        spec = tuple(self.ops)
        x = np.concatenate(
            [_per(apply(spec, block), "channel") for block in blocks(choose(self.raw, picked))]
        )
        if np.isnan(x).all(axis=0).any():
            raise UserError(self._why_not_any(int(np.argmax(np.isnan(x).all(axis=0)))))
        return np.asarray(statistic(x.astype(np.float64)))

    def _most_frequent(self, place: int) -> float:
        depth = len(self.columns[place].categories or ())
        counts = np.zeros(depth, np.int64)
        for block in self._prepared():
            codes = block[:, place]
            counts += np.bincount(codes[~np.isnan(codes)].astype(np.int64), minlength=depth)
        return float(counts.argmax())

    def _why_not_any(self, entry: int) -> str:
        known = self.numeric is not None and len(self.numeric) == len(self.columns)
        named = f"column {self.columns[entry].name!r}" if known else f"entry {entry}"
        return f"clean: {named} has no value at all in the training part; leave it out"


def _per(block: Array, per: Per) -> Array:
    """Return values ``(n, entries)``, one entry for each number that is fitted."""
    match per:
        case "channel":
            return block.reshape(-1, block.shape[-1])
        case "feature":
            return block.reshape(len(block), -1)
        case "all":
            return block.reshape(-1, 1)


def _floats(values: Array) -> tuple[float, ...]:
    if not (np.abs(values) <= _FLOAT32_MAX).all():  # false for NaN too
        raise UserError("the training samples that reach it hold numbers that float32 cannot hold")
    return tuple(np.asarray(values, np.float64).tolist())
