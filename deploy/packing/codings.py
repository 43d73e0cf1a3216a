"""The ways in which weights can be written down, and the choice of the shortest.

A coding is tried by what it would cost in bits; the shortest is kept. Codings nest: a sparse tensor is
the gaps between its nonzeros and what those are, which is a tensor again.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from deploy.packing.payloads import Kind
from deploy.packing.streams import JOINED_SINCE, PLAIN_SINCE, Plan, Reader, Values, Writer
from deploy.packing.symbols import PATIENCE, read_symbols, symbols_plan
from deploy.packing.tables import MOST_SYMBOLS


class Before(Protocol):
    """The tensors that come before one, which it may be told by."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Values: ...


_DEEPEST = 4
_GAPS = (63, 255, 1023)
"""The most zeros that one symbol of a gap stands for."""
_GAPS_AT_ONCE = 1 << 16
_INT_ORDER, _FLOAT_ORDER, _PLAIN_ORDER = range(3)
"""Of the bits of elements that are cut into bytes; see ``_turned``."""
_MOST_JOINED = 1 << 10
"""Values of a tensor that is tried together with others like it."""
_PATIENCE_WITH_SMALL = 1 + 1 / 32
"""``PATIENCE`` with small tensors, which are a small part of a file and most of the time."""


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
    if sparse is not None and mostly and sparse.bits < PATIENCE * shortest.bits:
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
            symbols = read_symbols(reader, count, size).astype(dtype)
            symbols += np.uint8(low)
            return symbols
        case Coding.CODEBOOK if width > 1:
            size = reader.number() + 1
            if size > MOST_SYMBOLS:
                raise ValueError(f"a codebook of {size:,} values")
            book = np.frombuffer(reader.raw(size * width), dtype)
            chosen: Values = book[read_symbols(reader, count, size)]
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
        case Coding.JOINED if not depth and reader.version >= JOINED_SINCE:
            return _read_joined(reader, count, width)
        case Coding.PRODUCT if width == 4:
            found = _referred(reader, before)
            factor = np.frombuffer(reader.raw(4), "<f4")
            if found.dtype != dtype or len(found) != count:
                raise ValueError("weights that are said to follow from another tensor do not")
            return _times(found, factor)
    raise ValueError(f"a coding {coding} of elements of {width} bytes")


def _read_joined(reader: Reader, count: int, width: int) -> Values:
    """Return values of those that several tensors share; the first of these brings them all."""
    index = reader.nibble()
    if index == reader.pools:
        size = reader.number()
        reader.allow_pool(size, width)
        reader.add_pool(read_values(reader, size, width, depth=1))
    return reader.take_shared(index, count, width)


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
    plan = symbols_plan(symbols, np.bincount(symbols, minlength=high - low + 1))

    def write(writer: Writer) -> None:
        writer.nibble(Coding.RANGE)
        writer.number(low)
        writer.number(high - low)
        plan.write(writer)

    return Plan(4 + 8 + 8 + plan.bits, write)


def _codebook(values: Values, found: Values, counts: npt.NDArray[np.int64]) -> Plan:
    plan = symbols_plan(np.searchsorted(found, values), counts)

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
        tried.append((symbols_plan(symbols, counts), most, len(symbols)))
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
    there = _places(read_symbols(reader, length, most + 1), most, count)
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
    if order > _PLAIN_ORDER or (order == _PLAIN_ORDER and reader.version < PLAIN_SINCE):
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
