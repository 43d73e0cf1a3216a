"""The text of a model, deflated with the words that models are made of at hand."""

from __future__ import annotations

import zlib
from functools import cache
from pathlib import Path


@cache
def dictionary() -> bytes:
    """Return the preset dictionary: part of the format, so that it never changes within a version."""
    return (Path(__file__).parent / "dictionary.bin").read_bytes()


def deflate(text: bytes) -> bytes:
    """Return a text in few bytes: raw deflate (RFC 1951) with the preset dictionary."""
    tried = []
    for memory in (8, 9):
        packer = zlib.compressobj(9, zlib.DEFLATED, -15, memory, zdict=dictionary())
        tried.append(packer.compress(text) + packer.flush())
    return min(tried, key=len)


def inflate(data: bytes | memoryview, most_bytes: int) -> bytes:
    """Return the text that was deflated.

    Raises:
        ValueError: if it does not inflate, to as many bytes at most, or anything follows it.
    """
    unpacker = zlib.decompressobj(-15, zdict=dictionary())
    try:
        text = unpacker.decompress(data, most_bytes + 1)
    except zlib.error as error:
        raise ValueError(f"its text does not inflate ({error})") from error
    if len(text) > most_bytes:
        raise ValueError(f"its text inflates to more than the {most_bytes:,} bytes of the model")
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("its text is cut off, or something follows it")
    return text
