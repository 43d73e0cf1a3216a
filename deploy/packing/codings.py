"""The ways in which weights can be written down, and the choice of the shortest.

A coding is tried by what it would cost in bits; the shortest is kept. Codings nest: a sparse tensor is
the gaps between its nonzeros and what those are, which is a tensor again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from deploy.packing.lanes import Decoder, Encoder
from deploy.packing.payloads import Kind
from deploy.packing.tables import (
    MOST_SYMBOLS,
    Table,
    from_weights,
    geometric,
    levels_of,
    most_levels,
    uniform,
    weights_of_levels,
)
from deploy.packing.text import deflate_symbols, inflate_symbols

Values = npt.NDArray[Any]
"""Elements as unsigned whole numbers of 1, 2, 4 or 8 bytes, little-endian, one axis."""


class Before(Protocol):
    """The tensors that come before one, which it may be told by."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Values: ...


_DEEPEST = 4
_GAPS = (63, 255, 1023)
"""The most zeros that one symbol of a gap stands for."""
_GAPS_AT_ONCE = 1 << 16
_DEFLATED, _DEFLATED_SINCE = 4, 2
"""In the place of a table: the symbols are deflated; and the version since when they may be."""
_INT_ORDER, _FLOAT_ORDER, _PLAIN_ORDER = range(3)
"""Of the bits of elements that are cut into bytes; see ``_turned``."""
_PLAIN_SINCE = 2
_JOINED_SINCE = 3
_MOST_JOINED = 1 << 10
"""Values of a tensor that is tried together with others like it."""
_LEAST_DEFLATED, _MANY = 256, 1 << 20
"""From so many symbols on, there are lanes enough for numpy."""
_PATIENCE = 1 + 1 / 64
"""How much longer may be what is decoded many times as fast: symbols by zlib, and few symbols in place of
many. Lanes themselves take three bytes of 464."""
_PATIENCE_WITH_SMALL = 1 + 1 / 32
"""The same for small tensors, which are a small part of a file and most of the time."""
_FINENESSES = (0, 1, 2)
_DELTA_STEPS = (6, 14, 22, 34)
"""How likely it is that the level of a symbol is that of the one before: steps of ``geometric``."""


class Coding(IntEnum):
    """How a run of values is written; the number is part of the format."""

    RAW = 0
    CONSTANT = 1
    RANGE = 2
    CODEBOOK = 3
    SPARSE = 4
    PLANES = 5
    SAME = 6
    PRODUCT = 7
    JOINED = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """A coding that was tried: what it costs, and how it is written."""

    bits: float
    write: Callable[[Writer], None]
    refers: bool = False
    """Whether it names one value, or another tensor, and so costs next to nothing."""


class Writer:
    """What the codings write to: symbols for the lanes, and bytes that no coding makes shorter."""

    def __init__(self) -> None:
        self.encoder = Encoder()
        self.raw = bytearray()
        self.deflated_bytes = 0
        """How many of the raw bytes are symbols that were deflated."""
        self.plain_planes = False
        """Whether elements were cut into bytes as they are."""
        self.pools = 0
        """How many runs of values were written that several tensors share."""

    @property
    def version(self) -> int:
        """The lowest version of the format that has all that was written."""
        return max(
            _DEFLATED_SINCE if self.deflated_bytes else 1,
            _PLAIN_SINCE if self.plain_planes else 1,
            _JOINED_SINCE if self.pools else 1,
        )

    def number(self, value: int) -> None:
        """Write a number, 7 bits a symbol."""
        while value > 0x7F:
            self.encoder.put(np.array([value & 0x7F | 0x80]), uniform(256))
            value >>= 7
        self.encoder.put(np.array([value]), uniform(256))

    def nibble(self, value: int) -> None:
        """Write a number below 16."""
        self.encoder.put(np.array([value]), uniform(16))


class Reader:
    """What a writer wrote, in its order."""

    def __init__(self, decoder: Decoder, raw: memoryview, most: int, version: int) -> None:
        self.decoder = decoder
        self.version = version
        self._raw = raw
        self._most = max(most, 255)  # a byte's value, in a model of fewer bytes than that
        self._unpooled = most
        self._pools: list[Values] = []

    def number(self) -> int:
        """Read a number.

        Raises:
            ValueError: if it is larger than anything in this model can be.
        """
        value = 0
        for shift in range(0, 35, 7):
            byte = self.decoder.one(uniform(256))
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        if value > self._most:
            raise ValueError(f"it says {value:,} where at most {self._most:,} can be")
        return value

    def nibble(self) -> int:
        """Read a number below 16."""
        return self.decoder.one(uniform(16))

    def raw(self, size: int) -> memoryview:
        """Read bytes as they are.

        Raises:
            ValueError: if there are not so many left.
        """
        if size > len(self._raw):
            raise ValueError("it is cut off: its raw bytes end before its weights do")
        taken, self._raw = self._raw[:size], self._raw[size:]
        return taken

    def joined(self, count: int, width: int) -> Values:
        """Return the next values of those that several tensors share.

        Raises:
            ValueError: if there are not so many left, of that width, or all together more than the
                model has bytes.
        """
        index = self.nibble()
        if index == len(self._pools):
            size = self.number()
            self._unpooled -= size * width
            if self._unpooled < 0 or not size:
                raise ValueError(f"{size:,} values of {width} bytes are said to be shared")
            self._pools.append(read_values(self, size, width, depth=1))
        if index >= len(self._pools):
            raise ValueError(f"refers to shared values {index} of {len(self._pools)}")
        pool = self._pools[index]
        if pool.dtype.itemsize != width or count > len(pool):
            raise ValueError(f"{count:,} values of {width} bytes are not left of those shared")
        taken, self._pools[index] = pool[:count], pool[count:]
        return taken

    @property
    def left(self) -> int:
        """How many raw bytes and shared values have not been read."""
        return len(self._raw) + sum(map(len, self._pools))


def best_plan(values: Values, kind: Kind, before: Sequence[Values] = (), depth: int = 0) -> Plan:
    """Return the shortest coding of values.

    Args:
        values: at least one.
        kind: what they are.
        before: the tensors that the decoder knows already.
        depth: how many codings lie around this one.
    """
    same = _same(values, before)
    if same is not None:
        return same
    found, counts = np.unique(values, return_counts=True)
    if len(found) == 1:
        return _constant(values)
    plans = [_raw(values)]
    width = values.dtype.itemsize
    if width == 1:
        plans.append(_range(values, int(found[0]), int(found[-1])))
    elif len(found) <= min(MOST_SYMBOLS, len(values) // 2):
        plans.append(_codebook(values, found, counts))
    sparse = None
    if depth < _DEEPEST:
        if _is_sparse(int(counts.max()), len(values)):
            sparse = _sparse(values, found[counts.argmax()], kind, depth)
            plans.append(sparse)
        if width > 1:
            plans += [_planes(values, order, depth) for order in _orders(kind)]
    if kind == "float" and width == 4:
        plans += _products(values, before)
    shortest = min(plans, key=lambda plan: plan.bits)
    # Of a tensor that is mostly zeros, gaps are a fraction of the symbols, and of the time.
    mostly = 4 * int(counts.max()) > 3 * len(values)
    if sparse is not None and mostly and sparse.bits < _PATIENCE * shortest.bits:
        return sparse
    return shortest


def joined_plans(tensors: Sequence[tuple[Values, Kind, Plan]]) -> list[Plan]:
    """Return plans for all tensors, in which small ones like each other are written together.

    Scales and biases are some dozen values a layer, all of one sort: together they need one table
    instead of dozens, in the file and in time.

    Args:
        tensors: values, what they are, and the plan for each alone, in the order of the file.
    """
    alike: dict[tuple[int, Kind], list[int]] = {}
    for index, (values, kind, plan) in enumerate(tensors):
        if not plan.refers and len(values) <= _MOST_JOINED:
            alike.setdefault((values.dtype.itemsize, kind), []).append(index)
    plans, pools = [plan for _, _, plan in tensors], 0
    for (_, kind), members in alike.items():
        if len(members) < 2:
            continue
        values = np.concatenate([tensors[index][0] for index in members])
        pool = best_plan(values, kind, depth=1)
        apart = sum(plans[index].bits for index in members)
        if pool.bits + 8 * len(members) + 16 > _PATIENCE_WITH_SMALL * apart:
            continue
        for index in members:
            plans[index] = _joined(pools, len(values), pool if index == members[0] else None)
        pools += 1
    return plans


def _joined(index: int, size: int, pool: Plan | None) -> Plan:
    """Return the plan of a tensor that shares values; the first one writes the plan of them all."""

    def write(writer: Writer) -> None:
        writer.nibble(Coding.JOINED)
        writer.nibble(index)  # four widths of two kinds: never more than eight
        if pool is not None:
            writer.pools += 1
            writer.number(size)
            pool.write(writer)

    return Plan(8 + (16 + pool.bits if pool else 0), write)


def read_values(  # noqa: C901  # one case a coding
    reader: Reader, count: int, width: int, before: Before = (), depth: int = 0
) -> Values:
    """Return values as ``best_plan`` wrote them.

    Raises:
        ValueError: if they were not written so.
    """
    dtype = np.dtype(f"<u{width}")
    coding = reader.nibble()
    match coding:
        case Coding.RAW:
            return np.frombuffer(reader.raw(count * width), dtype)
        case Coding.CONSTANT:
            return np.full(count, np.frombuffer(reader.raw(width), dtype)[0])
        case Coding.RANGE if width == 1:
            low, size = reader.number(), reader.number() + 1
            if low + size > 256:
                raise ValueError("a byte has more than 256 values")
            symbols = _read_symbols(reader, count, size).astype(dtype)
            symbols += np.uint8(low)
            return symbols
        case Coding.CODEBOOK if width > 1:
            size = reader.number() + 1
            if size > MOST_SYMBOLS:
                raise ValueError(f"a codebook of {size:,} values")
            book = np.frombuffer(reader.raw(size * width), dtype)
            chosen: Values = book[_read_symbols(reader, count, size)]
            return chosen
        case Coding.SPARSE if depth < _DEEPEST:
            return _read_sparse(reader, count, width, depth)
        case Coding.PLANES if width > 1 and depth < _DEEPEST:
            return _read_planes(reader, count, width, depth)
        case Coding.SAME:
            found = _referred(reader, before)
            if found.dtype != dtype or len(found) != count:
                raise ValueError("weights that are said to be those of another tensor are not")
            return found
        case Coding.JOINED if not depth and reader.version >= _JOINED_SINCE:
            return reader.joined(count, width)
        case Coding.PRODUCT if width == 4:
            found = _referred(reader, before)
            factor = np.frombuffer(reader.raw(4), "<f4")
            if found.dtype != dtype or len(found) != count:
                raise ValueError("weights that are said to follow from another tensor do not")
            return _times(found, factor)
    raise ValueError(f"a coding {coding} of elements of {width} bytes")


def _raw(values: Values) -> Plan:
    def write(writer: Writer) -> None:
        writer.nibble(Coding.RAW)
        writer.raw += values.tobytes()

    return Plan(4 + 8 * values.nbytes, write)


def _constant(values: Values) -> Plan:
    def write(writer: Writer) -> None:
        writer.nibble(Coding.CONSTANT)
        writer.raw += values[:1].tobytes()

    return Plan(4 + 8 * values.itemsize, write, refers=True)


def _range(values: Values, low: int, high: int) -> Plan:
    symbols = values - np.uint8(low)
    plan = _symbols_plan(symbols, np.bincount(symbols, minlength=high - low + 1))

    def write(writer: Writer) -> None:
        writer.nibble(Coding.RANGE)
        writer.number(low)
        writer.number(high - low)
        plan.write(writer)

    return Plan(4 + 8 + 8 + plan.bits, write)


def _codebook(values: Values, found: Values, counts: npt.NDArray[np.int64]) -> Plan:
    plan = _symbols_plan(np.searchsorted(found, values), counts)

    def write(writer: Writer) -> None:
        writer.nibble(Coding.CODEBOOK)
        writer.number(len(found) - 1)
        writer.raw += found.tobytes()
        plan.write(writer)

    return Plan(4 + 16 + 8 * found.nbytes + plan.bits, write)


def _sparse(values: Values, common: Any, kind: Kind, depth: int) -> Plan:
    places = np.flatnonzero(values != common)
    rest = best_plan(values[places], kind, depth=depth + 1)
    gaps = np.diff(places, prepend=-1) - 1
    tried = []
    for most in _GAPS:
        skips, last = np.divmod(gaps, most)
        ends = np.cumsum(skips + 1)
        symbols = np.full(ends[-1], most, np.uint16)
        symbols[ends - 1] = last
        counts = np.bincount(symbols, minlength=most + 1)
        tried.append((_symbols_plan(symbols, counts), most, len(symbols)))
    plan, most, length = min(tried, key=lambda one: one[0].bits)

    def write(writer: Writer) -> None:
        writer.nibble(Coding.SPARSE)
        writer.raw += np.asarray(common).tobytes()
        writer.nibble(_GAPS.index(most))
        writer.number(length)
        plan.write(writer)
        writer.number(len(places))
        rest.write(writer)

    return Plan(4 + 8 * values.itemsize + 4 + 40 + plan.bits + rest.bits, write)


def _read_sparse(reader: Reader, count: int, width: int, depth: int) -> Values:
    common = np.frombuffer(reader.raw(width), f"<u{width}")[0]
    choice = reader.nibble()
    if choice >= len(_GAPS):
        raise ValueError(f"gaps of kind {choice}")
    most, length = _GAPS[choice], reader.number()
    if length > count:
        raise ValueError(f"{length:,} gaps in {count:,} weights")
    there = _places(_read_symbols(reader, length, most + 1), most, count)
    others = int(np.count_nonzero(there))
    if others != reader.number() or not others or not _is_sparse(count - others, count):
        raise ValueError("its gaps do not fit its weights")
    found = read_values(reader, others, width, depth=depth + 1)
    values = np.full(count, common)
    values[there] = found
    return values


def _is_sparse(often: int, count: int) -> bool:
    """Say whether an element that comes so often is left out.

    Codings nest, and each that lies around others keeps its place in memory while those are read:
    that they shrink each time bounds what a file may take.
    """
    return 4 * often > count


def _places(symbols: npt.NDArray[Any], most: int, count: int) -> npt.NDArray[np.bool_]:
    """Return which of ``count`` elements the gaps end at, in little more than their bytes.

    Raises:
        ValueError: if they go beyond the last.
    """
    there = np.zeros(count, bool)
    reached = 0
    for start in range(0, len(symbols), _GAPS_AT_ONCE):
        gaps = symbols[start : start + _GAPS_AT_ONCE].astype(np.int64)
        ends = gaps < most
        behind = reached + np.cumsum(gaps + ends)
        reached = int(behind[-1])
        if reached > count:
            raise ValueError("its gaps do not fit its weights")
        there[behind[ends] - 1] = True
    return there


def _orders(kind: Kind) -> tuple[int, ...]:
    """Return the orders of bits that are tried.

    Bytes as they are hold the last bit of the exponent beside the first of the mantissa: where small
    floats were pruned, what is left are few binades, and the one says much of the other.
    """
    return (_FLOAT_ORDER, _PLAIN_ORDER) if kind == "float" else (_INT_ORDER,)


def _planes(values: Values, order: int, depth: int) -> Plan:
    turned = _turned(values, order)
    width = values.itemsize
    parts = turned.view(np.uint8).reshape(-1, width)
    plans = [
        best_plan(np.ascontiguousarray(parts[:, i]), "int", depth=depth + 1) for i in range(width)
    ]

    def write(writer: Writer) -> None:
        writer.nibble(Coding.PLANES)
        writer.nibble(order)
        writer.plain_planes |= order == _PLAIN_ORDER
        for plan in plans:
            plan.write(writer)

    return Plan(8 + sum(plan.bits for plan in plans), write)


def _read_planes(reader: Reader, count: int, width: int, depth: int) -> Values:
    order = reader.nibble()
    if order > _PLAIN_ORDER or (order == _PLAIN_ORDER and reader.version < _PLAIN_SINCE):
        raise ValueError(f"planes in an order {order}")
    parts = np.empty((count, width), np.uint8)
    for plane in range(width):
        parts[:, plane] = read_values(reader, count, 1, depth=depth + 1)
    return _turned_back(parts.reshape(-1).view(f"<u{width}"), order)


def _turned(values: Values, order: int) -> Values:
    """Put the sign last, so that what small numbers have in common fills whole bytes.

    A float keeps its bits but for the sign; of a whole number, −1, 1, −2 become 1, 2, 3.
    """
    if order == _PLAIN_ORDER:
        return values
    top = values >> (8 * values.itemsize - 1)
    if order == _FLOAT_ORDER:
        return values << 1 | top
    return values << 1 ^ (0 - top)


def _turned_back(values: Values, order: int) -> Values:
    if order == _PLAIN_ORDER:
        return values
    last = values & 1
    if order == _FLOAT_ORDER:
        return values >> 1 | last << (8 * values.itemsize - 1)
    return values >> 1 ^ (0 - last)


def _same(values: Values, before: Sequence[Values]) -> Plan | None:
    for index, other in enumerate(before):
        if other.dtype == values.dtype and np.array_equal(other, values) and len(values) > 1:

            def write(writer: Writer, index: int = index) -> None:
                writer.nibble(Coding.SAME)
                writer.number(index)

            return Plan(12, write, refers=True)
    return None


def _products(values: Values, before: Sequence[Values]) -> list[Plan]:
    """Try whether values are those of another tensor times one number: a bias' scales often are."""
    for index, other in enumerate(before):
        if other.dtype != values.dtype or len(other) != len(values):
            continue
        with np.errstate(all="ignore"):
            ratio = values[:1].view("<f4").astype(np.float64) / other[:1].view("<f4")
            near = ratio.astype(np.float32)
        if not np.isfinite(near).all():
            continue
        for factor in (
            near,
            np.nextafter(near, np.float32(0)),
            np.nextafter(near, np.float32(np.inf)),
        ):
            if np.array_equal(_times(other, factor), values):

                def write(writer: Writer, index: int = index, factor: Any = factor) -> None:
                    writer.nibble(Coding.PRODUCT)
                    writer.number(index)
                    writer.raw += factor.astype("<f4").tobytes()

                return [Plan(44, write, refers=True)]
    return []


def _times(values: Values, factor: npt.NDArray[np.float32]) -> Values:
    with np.errstate(all="ignore"):
        return (values.view("<f4") * factor).astype("<f4").view("<u4")


def _referred(reader: Reader, before: Before) -> Values:
    index = reader.number()
    if index >= len(before):
        raise ValueError(f"refers to tensor {index} of {len(before)}")
    return before[index]


@dataclass(frozen=True, slots=True)
class _TablePlan:
    """A table that was chosen: it, what it costs with all its symbols, and how it is written."""

    table: Table
    bits: float
    write: Callable[[Writer], None]


def _symbols_plan(symbols: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> Plan:
    """Return the shortest way to write symbols, or one that is little longer and read at once."""
    plan = _table_plan(counts)

    def write(writer: Writer) -> None:
        plan.write(writer)
        writer.encoder.put(symbols, plan.table)

    by_lanes = Plan(plan.bits, write)
    if not _may_be_deflated(len(symbols), len(counts)):
        return by_lanes
    data = deflate_symbols(symbols.astype(np.uint8).tobytes())

    def write_deflated(writer: Writer) -> None:
        writer.nibble(_DEFLATED)
        writer.number(len(data))
        writer.raw += data
        writer.deflated_bytes += len(data)

    deflated = Plan(4 + 16 + 8 * len(data), write_deflated)
    return deflated if deflated.bits < _PATIENCE * by_lanes.bits else by_lanes


def _may_be_deflated(count: int, size: int) -> bool:
    """Say whether a run of so many symbols, each below ``size``, is tried with zlib."""
    return _LEAST_DEFLATED <= count < _MANY and size <= 256


def _read_symbols(reader: Reader, count: int, size: int) -> npt.NDArray[Any]:
    """Return symbols below ``size``, as ``_symbols_plan`` wrote them."""
    kind = reader.nibble()
    if kind != _DEFLATED or reader.version < _DEFLATED_SINCE:
        return reader.decoder.take(count, _read_table(reader, kind, size))
    if not _may_be_deflated(count, size):
        raise ValueError(f"a run of {count:,} symbols of {size:,} kinds is deflated")
    symbols = np.frombuffer(inflate_symbols(reader.raw(reader.number()), count), np.uint8)
    if symbols.max(initial=0) >= size:
        raise ValueError(f"a symbol {symbols.max()} where {size:,} are possible")
    return symbols


def _table_plan(counts: npt.NDArray[np.int64]) -> _TablePlan:
    """Return the table that is cheapest for symbols that come so often."""
    mean = float((counts * np.arange(len(counts))).sum() / counts.sum())
    likely = round(16 * np.log2(1 + mean)) - 1
    steps = range(max(0, likely - 4), min(255, likely + 4) + 1)
    tried = [_geometric_plan(counts, step) for step in steps]
    for fineness in _FINENESSES:
        tried += _level_plans(counts, fineness)
    return min(tried, key=lambda plan: plan.bits)


def _geometric_plan(counts: npt.NDArray[np.int64], step: int) -> _TablePlan:
    table = geometric(step, len(counts))

    def write(writer: Writer) -> None:
        writer.nibble(0)
        writer.encoder.put(np.array([step]), uniform(256))

    return _TablePlan(table, 12 + table.bits(counts), write)


def _level_plans(counts: npt.NDArray[np.int64], fineness: int) -> list[_TablePlan]:
    levels = levels_of(counts, fineness)
    table = from_weights(weights_of_levels(fineness)[levels])
    deltas = np.diff(levels, prepend=0)
    zigzag = np.where(deltas < 0, -2 * deltas - 1, 2 * deltas)
    size = 2 * most_levels(fineness)
    told = np.bincount(zigzag, minlength=size)
    bits = 4 + 4 + table.bits(counts)
    plans = []
    for choice, step in enumerate(_DELTA_STEPS):

        def write(writer: Writer, choice: int = choice, step: int = step) -> None:
            writer.nibble(1 + fineness)
            writer.nibble(choice)
            writer.encoder.put(zigzag, geometric(step, size))

        plans.append(_TablePlan(table, bits + geometric(step, size).bits(told), write))
    return plans


def _read_table(reader: Reader, kind: int, symbols: int) -> Table:
    if kind == 0:
        return geometric(reader.decoder.one(uniform(256)), symbols)
    fineness, choice = kind - 1, reader.nibble()
    if fineness not in _FINENESSES or choice >= len(_DELTA_STEPS) or symbols > MOST_SYMBOLS:
        raise ValueError(f"a table of kind {kind}, {choice} of {symbols:,} symbols")
    most = most_levels(fineness)
    zigzag = reader.decoder.take(symbols, geometric(_DELTA_STEPS[choice], 2 * most))
    turned = zigzag.astype(np.int64)
    levels = np.cumsum(np.where(turned & 1, -(turned + 1) // 2, turned // 2))
    if levels.min() < 0 or levels.max() >= most:
        raise ValueError("the levels of a table lie outside their range")
    return from_weights(weights_of_levels(fineness)[levels])
