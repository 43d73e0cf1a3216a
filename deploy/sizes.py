"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re

from deploy.errors import UserError

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(B|[kKMG]i?B?)?\s*")
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3}


def parse_size(text: str, *, what: str) -> int:
    """Return a size in bytes: ``100kB`` counts in thousands, ``100KiB`` in 1024s.

    Args:
        text: a number with a unit, or without one for bytes.
        what: the option that an error names.

    Raises:
        UserError: if it is none, or less than a byte.

    >>> parse_size("100kB", what="--max-size"), parse_size("1.5 MiB", what="--max-size")
    (100000, 1572864)
    """
    match = _SIZE.fullmatch(text)
    unit = (match[2] or "").lower().rstrip("b") if match else ""
    step = 1024 if unit.endswith("i") else 1000
    size = int(float(match[1]) * step ** _POWERS[unit.rstrip("i")]) if match else 0
    if size < 1:
        raise UserError(f"{what}: needs a size such as 100kB, 1.5MB or 64MiB, got {text!r}")
    return size


def format_size(size_bytes: float) -> str:
    """Return a size in the largest unit of thousands that leaves a whole digit.

    >>> format_size(999), format_size(99_950), format_size(48_230_000)
    ('999 B', '99.95 kB', '48.23 MB')
    """
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= one:
            return f"{size_bytes / one:.2f}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{size_bytes:.0f} B"
