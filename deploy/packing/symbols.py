"""How a run of symbols is written: by a table that says how often each comes, or by zlib."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.packing.streams import DEFLATED_SINCE, Plan, Reader, Writer
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

PATIENCE = 1 + 1 / 64
"""How much longer may be what is decoded many times as fast: symbols by zlib here, gaps in place of symbols
in ``codings``. Lanes themselves take three bytes of 464."""
_DEFLATED = 4
"""In the place of a table: the symbols are deflated."""
_LEAST_DEFLATED, _MANY = 256, 1 << 20
"""From so many symbols on, there are lanes enough for numpy."""
_FINENESSES = (0, 1, 2)
_DELTA_STEPS = (6, 14, 22, 34)
"""How likely it is that the level of a symbol is that of the one before: steps of ``geometric``."""


@dataclass(frozen=True, slots=True)
class _TablePlan:
    """A table that was chosen: it, what it costs with all its symbols, and how it is written."""

    table: Table
    bits: float
    write: Callable[[Writer], None]


def symbols_plan(symbols: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> Plan:
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
    return deflated if deflated.bits < PATIENCE * by_lanes.bits else by_lanes


def _may_be_deflated(count: int, size: int) -> bool:
    """Say whether a run of so many symbols, each below ``size``, is tried with zlib."""
    return _LEAST_DEFLATED <= count < _MANY and size <= 256


def read_symbols(reader: Reader, count: int, size: int) -> npt.NDArray[Any]:
    """Return symbols below ``size``, as ``symbols_plan`` wrote them."""
    kind = reader.nibble()
    if kind != _DEFLATED or reader.version < DEFLATED_SINCE:
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
