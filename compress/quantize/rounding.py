"""Weights on a coarse grid: the nearest step, or the step with the least error in what a layer gives.

Matrices of weights are ``(groups, outputs, inputs)``: a dense layer and a plain convolution are one
group, a depthwise convolution has as many groups as channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from msgspec import Meta

Array = npt.NDArray[Any]

Bits = Annotated[int, Meta(ge=2, le=8)]
"""What a weight takes of the eight bits of its byte."""

_SHARES = np.linspace(1, 0.4, 25)
"""Of the largest weight, what the grid may reach."""
_PASSES = 30
_RIDGE = 0.01
"""Of the mean second moment: what inputs that were never seen to move count for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """What a layer is given, over samples and places.

    Attributes:
        second: ``E[given givenᵀ]``, ``(groups, inputs, inputs)``, of the inputs that the layer gets
            once the layers in front of it are rounded.
        cross: ``E[given floatᵀ]``, the same shape, beside those that it gets in the float model.
    """

    second: Array
    cross: Array


def widest_scale(weights: Array, levels: int, *, per_channel: bool) -> Array:
    """Return the step with which ``levels`` steps reach the largest weight.

    Args:
        weights: ``(groups, outputs, inputs)``.
        levels: of the largest stored integer; the smallest is its negative.
        per_channel: one step for each output, ``(groups, outputs, 1)``, or one for all, ``(1, 1, 1)``.

    >>> widest_scale(np.array([[[-1.0, 2.0], [0.5, 0.25]]]), 2, per_channel=True).ravel()
    array([1.  , 0.25])
    """
    axes = (2,) if per_channel else (0, 1, 2)
    largest = np.abs(weights).max(axis=axes, keepdims=True)
    # Zeros take any step; one like their neighbours' leaves a fine grid to their bias.
    largest = np.where(largest > 0, largest, largest.max() or 1.0)
    return np.asarray(largest / levels)


def nearest(weights: Array, scale: Array, levels: int) -> Array:
    """Return the integers whose multiples of ``scale`` are nearest to the weights.

    >>> nearest(np.array([0.26, -0.9, 7.0]), np.array(0.5), 3)
    array([ 1., -2.,  3.])
    """
    return np.clip(np.rint(weights / scale), -levels, levels)


def layer_error(weights: Array, rounded: Array, moments: Moments) -> Array:
    """Return what rounding costs each output, ``(groups, outputs, 1)``, up to a constant.

    ``E[(w̃·x̂ − w·x)²] − E[(w·x)²]``: equation 25 of Nagel et al. (2020), "Up or down? Adaptive
    rounding for post-training quantization", without the activation, as the quadratic form of
    equation 20. Equal inputs and equal weights give ``-E[(w·x)²]``, the least there is.
    """
    wanted = _wanted(weights, moments.cross)
    gained = np.einsum("gok,gkl,gol->go", rounded, moments.second, rounded)
    return np.asarray(gained - 2 * np.einsum("gok,gok->go", rounded, wanted))[..., None]


def learned(
    weights: Array, moments: Moments, levels: int, *, per_channel: bool
) -> tuple[Array, Array]:
    """Return integers and their scale with less ``layer_error`` than the nearest ones.

    The scale is the best of some shares of the widest. Then one weight after the other takes the
    step that is best while all others stay, until none moves: coordinate descent on the rounding
    problem of Nagel et al. (2020), as Behdin et al. (2023), "QuantEase", algorithm 1; unlike
    AdaRound's sigmoids it needs no learning rate, and no step makes the error larger. A small
    penalty on the distance from the float weights keeps inputs that the samples never moved.

    Args:
        weights: ``(groups, outputs, inputs)``.
        moments: of the layer's inputs.
        levels: as in ``widest_scale``.
        per_channel: as in ``widest_scale``.
    """
    held = _held(moments)
    widest = widest_scale(weights, levels, per_channel=per_channel)
    scale = widest * _best_shares(weights, held, levels, widest)
    steps = nearest(weights, scale, levels)
    second, wanted = held.second, _wanted(weights, held.cross)
    rest = wanted - np.einsum("gok,gkl->gol", steps * scale, second)
    for _ in range(_PASSES):
        moved = False
        for k in range(weights.shape[2]):
            pull = rest[:, :, k] / second[:, k, k, None]
            # Half a step and no more is a tie: a weight that only ties stays where it is.
            best = np.clip(
                np.rint(steps[:, :, k] + pull / scale[..., 0] * (1 - 1e-9)), -levels, levels
            )
            change = (best - steps[:, :, k]) * scale[..., 0]
            if change.any():
                moved = True
                steps[:, :, k] = best
                rest -= change[..., None] * second[:, None, k, :]
        if not moved:
            break
    return steps, scale


def _held(moments: Moments) -> Moments:
    """Return the moments with a little of each input by itself added."""
    size = moments.second.shape[1]
    mean = np.trace(moments.second, axis1=1, axis2=2) / size
    ridge = (_RIDGE * mean + np.finfo(np.float32).tiny)[:, None, None] * np.eye(size)
    return Moments(second=moments.second + ridge, cross=moments.cross + ridge)


def _wanted(weights: Array, cross: Array) -> Array:
    """Return ``E[x̂ (w·x)]`` of each output."""
    return np.asarray(np.einsum("gkl,gol->gok", cross, weights))


def _best_shares(weights: Array, moments: Moments, levels: int, widest: Array) -> Array:
    """Return the share of each widest scale with the least error of nearest rounding."""
    errors = []
    for share in _SHARES:
        scale = widest * share
        error = layer_error(weights, nearest(weights, scale, levels) * scale, moments)
        errors.append(error if widest.size > 1 else error.sum(keepdims=True))
    return np.asarray(_SHARES[np.argmin(errors, axis=0)])
