"""How many examples the laws are held to that cost a network or a packed model each."""

import os

THOROUGH = os.environ.get("LIGHTSHIP_THOROUGH") == "1"


def examples(count: int) -> int:
    """Return how many of ``count`` examples to draw: a fifth, or all where scripts/slow asks for them."""
    return count if THOROUGH else count // 5
