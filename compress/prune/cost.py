"""What a network costs: multiplications and parameters, counted without building it."""

from __future__ import annotations

import math

from compress.prune.groups import Coupling, Keep, Wiring


def macs(coupling: Coupling, keep: Keep) -> int:
    """Return the multiply-accumulates of all kernels for one sample, when only some units stay.

    Normalisations, activations and biases are not counted, as is usual; an axis of unknown length
    counts as 1.
    """
    return sum(_macs(wiring, keep) for wiring in coupling.wiring.values())


def parameters(coupling: Coupling, keep: Keep) -> int:
    """Return how many weights there are, those that are not trained too."""
    return sum(
        math.prod(shape)
        for wiring in coupling.wiring.values()
        for shape in wiring.narrowed_shapes(keep)
    )


def _macs(wiring: Wiring, keep: Keep) -> int:
    kind = type(wiring.layer).__name__
    if kind == "Embedding" or not ("Conv" in kind or kind == "Dense"):
        return 0
    # A transposed convolution uses each weight once for each place of its input.
    shape = wiring.in_shape if "Transpose" in kind else wiring.out_shape
    places = math.prod(length or 1 for length in shape[:-1])
    kernels = [s for s in wiring.narrowed_shapes(keep) if len(s) > 1]
    return wiring.calls * places * sum(math.prod(shape) for shape in kernels)
