"""How many weights of each layer go, where one number is asked of all layers together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Budget = Literal["uniform", "global", "lamp", "sensitivity"]
Kernels = Mapping[str, npt.NDArray[Any]]

_TRIED = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
"""Sparsities at which a layer's loss is measured."""
_HALVINGS = 60


def zeros_asked(kernels: Kernels, sparsity: float) -> int:
    """Return how many zeros a sparsity of all kernels together means; one weight of each stays.

    >>> zeros_asked({"a": np.ones(6), "b": np.ones(4)}, 0.5)
    5
    """
    room = sum(kernel.size - 1 for kernel in kernels.values())
    return min(room, round(sparsity * sum(kernel.size for kernel in kernels.values())))


def zeros_by_size(kernels: Kernels, sparsity: float, *, lamp: bool) -> dict[str, int]:
    """Return how many weights of each kernel are among the smallest of all.

    Args:
        kernels: the weights, by layer.
        sparsity: of all together.
        lamp: compare each weight with the larger ones of its layer, by equation 4 of Lee, Park, Mo,
            Ahn and Shin, "Layer-adaptive Sparsity for the Magnitude-based Pruning" (2021), so that
            no layer dies because its weights are small; otherwise sizes themselves are compared.

    >>> kernels = {"large": np.array([4.0, 3.0, 5.0, 6.0]), "small": np.array([1.0, 2.0])}
    >>> zeros_by_size(kernels, 0.5, lamp=False)
    {'large': 2, 'small': 1}
    """
    scores = {name: _scores(kernel, lamp=lamp) for name, kernel in kernels.items()}
    for score in scores.values():
        score[np.argmax(score)] = np.inf  # one weight of each layer stays
    order = np.argsort(np.concatenate(list(scores.values())), kind="stable")
    owners = np.repeat(np.arange(len(scores)), [score.size for score in scores.values()])
    going = owners[order[: zeros_asked(kernels, sparsity)]]
    counts = np.bincount(going, minlength=len(scores))
    return dict(zip(scores, counts.tolist(), strict=True))


def zeros_by_sensitivity(
    kernels: Kernels, sparsity: float, *, loss_without: Callable[[str, float], float]
) -> dict[str, int]:
    """Return how many weights of each kernel go, so that each layer alone costs the same loss.

    The loss of one layer pruned at a time, as Han et al., "Learning both Weights and Connections for
    Efficient Neural Networks" (2015), section 5, choose their thresholds by; here the common loss is
    searched for which the sum is what was asked.

    Args:
        kernels: the weights, by layer.
        sparsity: of all together.
        loss_without: the loss when the smallest weights of one layer are zero, by the layer's name
            and the share of zeros; with a share of 0 that of the whole model.
    """
    curves = {
        name: _curve(kernel.size, partial(loss_without, name)) for name, kernel in kernels.items()
    }

    def counts(loss: float) -> dict[str, int]:
        return {
            name: int(np.interp(loss, losses, shares) * kernels[name].size)
            for name, (losses, shares) in curves.items()
        }

    asked = zeros_asked(kernels, sparsity)
    low, high = 0.0, max(losses[-1] for losses, _ in curves.values())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(counts(middle).values()) <= asked else (low, middle)
    return _topped_up(counts(low), asked, {name: kernel.size for name, kernel in kernels.items()})


def without_smallest(kernel: npt.NDArray[Any], *, zeros: int) -> npt.NDArray[Any]:
    """Return a copy in which so many of the smallest weights are zero; of equals the first.

    >>> without_smallest(np.array([3.0, -1.0, 2.0, 4.0]), zeros=2).tolist()
    [3.0, 0.0, 0.0, 4.0]
    """
    made: npt.NDArray[Any] = kernel.copy()
    made.ravel()[np.argsort(np.abs(kernel).ravel(), kind="stable")[:zeros]] = 0
    return made


def _scores(kernel: npt.NDArray[Any], *, lamp: bool) -> npt.NDArray[np.float64]:
    sizes: npt.NDArray[np.float64] = np.abs(kernel.ravel()).astype(np.float64)
    if not lamp:
        return sizes
    order = np.argsort(-sizes, kind="stable")
    squares = sizes[order] ** 2
    sizes[order] = squares / np.maximum(np.cumsum(squares), np.finfo(np.float64).tiny)
    return sizes


def _curve(
    size: int, loss_at: Callable[[float], float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return how much the loss grows, which never falls again, and the share of zeros there."""
    last = (size - 1) / size
    shares = np.array([0.0, *(share for share in _TRIED if share < last), last])
    losses = np.array([loss_at(float(share)) for share in shares])
    losses = np.where(np.isfinite(losses), losses, np.finfo(np.float32).max)
    grown = np.maximum.accumulate(np.maximum(losses - losses[0], 0.0))
    # A rise too small to count makes the road back from loss to share a function.
    return grown + 1e-9 * shares, shares


def _topped_up(counts: dict[str, int], asked: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Add what rounding has left out, to the largest layers first."""
    counts = {name: min(count, sizes[name] - 1) for name, count in counts.items()}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        missing = asked - sum(counts.values())
        counts[name] += min(missing, sizes[name] - 1 - counts[name])
    return counts
