"""What zlib does for a model: its text, with the words that models are made of at hand, and symbols."""

from __future__ import annotations

import zlib
from functools import cache
from pathlib import Path

_MEMORY = (8, 9)
"""How much of what is deflated shares a table: which is shorter, is tried."""
_MANY_SYMBOLS = 1 << 16
"""From so many on, repeats are not looked for."""


@cache
def dictionary() -> bytes:
    """Return the preset dictionary: part of the format, so that it never changes within a version."""
    return (Path(__file__).parent / "dictionary.bin").read_bytes()


def deflate(text: bytes) -> bytes:
    """Return a text in few bytes: raw deflate (RFC 1951) with the preset dictionary."""
    tried = []
    for memory in _MEMORY:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15, memory, zdict=dictionary())
        tried.append(packer.compress(text) + packer.flush())
    return min(tried, key=len)


def inflate(data: bytes | memoryview, most_bytes: int) -> bytes:
    """Return the text that was deflated.

    Raises:
        ValueError: if it does not inflate, to as many bytes at most, or anything follows it.
    """
    text = _inflated(zlib.decompressobj(-15, zdict=dictionary()), data, most_bytes, "its text")
    if len(text) > most_bytes:
        raise ValueError(f"its text inflates to more than the {most_bytes:,} bytes of the model")
    return text


def deflate_symbols(symbols: bytes) -> bytes:
    """Return symbols of a byte each in few bytes: raw deflate, without a dictionary.

    Of many symbols, repeats are not looked for: zlib takes seconds for that where they are alike.
    """
    strategies = [zlib.Z_HUFFMAN_ONLY]
    if len(symbols) < _MANY_SYMBOLS:
        strategies.append(zlib.Z_DEFAULT_STRATEGY)
    tried = []
    for strategy in strategies:
        for memory in _MEMORY:
            packer = zlib.compressobj(9, zlib.DEFLATED, -15, memory, strategy)
            tried.append(packer.compress(symbols) + packer.flush())
    return min(tried, key=len)


def inflate_symbols(data: bytes | memoryview, count: int) -> bytes:
    """Return the ``count`` symbols that were deflated.

    Raises:
        ValueError: if it does not inflate, to exactly as many, or anything follows it.
    """
    symbols = _inflated(zlib.decompressobj(-15), data, count, "a run of symbols")
    if len(symbols) != count:
        raise ValueError(f"a run of symbols does not inflate to {count:,}")
    return symbols


def _inflated(unpacker: zlib._Decompress, data: bytes | memoryview, most: int, what: str) -> bytes:
    """Return what inflates; what is larger than ``most`` is cut off behind one byte more."""
    try:
        found = unpacker.decompress(data, most + 1)
    except zlib.error as error:
        raise ValueError(f"{what} does not inflate ({error})") from error
    if len(found) <= most and (not unpacker.eof or unpacker.unused_data):
        raise ValueError(f"{what} is cut off, or something follows it")
    return found
