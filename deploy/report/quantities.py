"""How numbers are written for people: units, signs, digits."""

from __future__ import annotations

_THIN = "\u202f"  # narrow no-break space: between a number and its unit


def times(ratio: float) -> str:
    """Write a ratio; near 1 two decimals tell more from less.

    >>> times(1.021), times(1.84), times(11.93), times(0.25), times(120.4)
    ('1.02×', '1.8×', '11.9×', '0.25×', '120×')
    """
    return f"{ratio:.{_decimals_of_ratio(ratio)}f}×"


def times_bounds(ratio: float, low: float, high: float) -> str:
    """Write the interval of a ratio with the digits of the ratio.

    >>> times_bounds(1.8, 1.47, 1.94)
    '[1.5, 1.9]'
    """
    decimals = _decimals_of_ratio(ratio)
    return f"[{low:.{decimals}f}, {high:.{decimals}f}]"


def percent(fraction: float, decimals: int = 1) -> str:
    r"""Write a fraction as a percentage.

    >>> percent(0.9)
    '90.0\u202f%'
    """
    return f"{100 * fraction:.{decimals}f}{_THIN}%"


def file_size(size_bytes: float) -> str:
    r"""Write a size with three digits and a decimal unit.

    >>> [file_size(n).replace("\u202f", " ") for n in (512, 45_123, 1_726_648, 999_999)]
    ['512 B', '45.1 kB', '1.73 MB', '1.00 MB']
    """
    unit, scale = _unit_of(size_bytes, (("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9)))
    return f"{_digits(size_bytes / scale, whole=unit == 'B')}{_THIN}{unit}"


def memory_size(size_bytes: float) -> str:
    r"""Write an amount of memory with a binary unit, as ``lightship doctor`` does.

    >>> [memory_size(n).replace("\u202f", " ") for n in (71_544_832, 25_276_502_016)]
    ['68.2 MiB', '23.5 GiB']
    """
    unit, scale = ("GiB", 2**30) if size_bytes >= 1000 * 2**20 else ("MiB", 2**20)
    return f"{_digits(size_bytes / scale)}{_THIN}{unit}"


def duration(ms: float) -> str:
    r"""Write a time with three digits, in the unit that keeps it readable.

    >>> [duration(ms).replace("\u202f", " ") for ms in (0.0891, 0.9996, 12.34, 1500)]
    ['89.1 µs', '1.00 ms', '12.3 ms', '1.50 s']
    """
    unit, scale = _unit_of(ms, _TIMES)
    return f"{_digits(ms / scale)}{_THIN}{unit}"


def duration_bounds(ms: float, low_ms: float, high_ms: float) -> str:
    """Write the interval of a time in the unit of the time itself.

    >>> duration_bounds(0.5, 0.4, 1.2)
    '[400, 1200]'
    """
    _, scale = _unit_of(ms, _TIMES)
    return f"[{_digits(low_ms / scale)}, {_digits(high_ms / scale)}]"


def count(number: float) -> str:
    r"""Write a count, thousands apart.

    >>> count(431080).replace("\u202f", " ")
    '431 080'
    """
    return f"{number:,.0f}".replace(",", _THIN)


def p_value(p: float) -> str:
    """Write a p-value; below a thousandth only that.

    >>> p_value(0.0421), p_value(1e-9), p_value(1.0)
    ('p = 0.042', 'p < 0.001', 'p = 1')
    """
    if p < 0.001:
        return "p < 0.001"
    return "p = 1" if p > 0.9995 else f"p = {p:.3f}"


_TIMES = (("µs", 1e-3), ("ms", 1.0), ("s", 1e3))


def _unit_of(number: float, units: tuple[tuple[str, float], ...]) -> tuple[str, float]:
    """Return the first unit that leaves three digits or fewer before the point, or the last."""
    return next((unit for unit in units if number / unit[1] < 999.5), units[-1])


def _digits(number: float, *, whole: bool = False) -> str:
    decimals = 0 if whole or number >= 99.95 else 1 if number >= 9.995 else 2
    return f"{number:.{decimals}f}"


def _decimals_of_ratio(ratio: float) -> int:
    return 2 if ratio < 1.5 else 1 if ratio < 100 else 0
