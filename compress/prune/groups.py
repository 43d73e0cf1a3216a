"""The units of a network, which stay or go as one, and the network without some of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.networks.rewire import copied, rewired

Array = npt.NDArray[Any]
Units = npt.NDArray[np.int64]
"""The unit of each position on an axis, ``(positions,)``."""
Keep = npt.NDArray[np.bool_]
"""Of each unit of a network whether it stays, ``(units,)``."""
CONVOLUTIONS = frozenset({"Conv1D", "Conv2D", "Conv3D"})
TRANSPOSED = frozenset({"Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"})
SEPARABLE = frozenset({"SeparableConv1D", "SeparableConv2D"})
"""Kinds of layers whose width is called ``filters``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """How a layer hangs on units.

    Attributes:
        name: of the layer.
        layer: the layer itself.
        cuts: for each of its weights, in the order of ``get_weights``, the units along some axes;
            without its unit a slice goes.
        gives: the units of the positions on the last axis of its result.
        in_shape: of one sample of what it is given first, at its first call.
        out_shape: likewise of its result.
        reads: units of the positions that its kernel sums over; None if it sums over none.
        makes: units of the positions that its kernel begins; None if it begins none.
        calls: how often it is called.
    """

    name: str
    layer: Any
    cuts: tuple[Mapping[int, Units], ...]
    gives: Units
    in_shape: tuple[int | None, ...]
    out_shape: tuple[int | None, ...]
    reads: Units | None = None
    makes: Units | None = None
    calls: int = 1

    def narrowed_config(self, keep: Keep) -> dict[str, Any]:
        """Return what changes in the layer's config when only some units stay."""
        kind, width = type(self.layer).__name__, int(keep[self.gives].sum())
        if kind == "Dense":
            return {"units": width}
        if kind == "Embedding":
            return {"output_dim": width}
        if kind in CONVOLUTIONS:
            changes = {"filters": width}
            if self.layer.groups > 1 and self.makes is None:
                changes["groups"] = width * self.layer.groups // self.layer.filters
            return changes
        if kind in TRANSPOSED | SEPARABLE:
            return {"filters": width}
        if kind == "Reshape":
            *others, last = self.layer.target_shape
            return {"target_shape": (*others, last if last == -1 else width)}
        return {}

    def narrowed_shapes(self, keep: Keep) -> list[tuple[int, ...]]:
        """Return the shapes of the weights when only some units stay."""
        shapes = []
        for weight, cut in zip(self.layer.weights, self.cuts, strict=True):
            shape = list(weight.shape)
            for axis, units in cut.items():
                shape[axis] = int(keep[units].sum())
            shapes.append(tuple(shape))
        return shapes

    def narrowed_weights(self, keep: Keep) -> list[Array]:
        """Return the weights without the slices of the units that go."""
        weights = []
        for weight, cut in zip(self.layer.get_weights(), self.cuts, strict=True):
            left = weight
            for axis, units in cut.items():
                left = np.compress(keep[units], left, axis=axis)
            weights.append(left)
        return weights


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """Units of the same layers, which are compared with each other: the unit of change.

    Attributes:
        channels_per_unit: of each layer whose kernel begins them, in the order of the graph, how
            many of its channels go with one unit.
        units: ``(n,)``, in the order of the first layer's channels.
    """

    channels_per_unit: dict[str, int]
    units: Units

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers whose kernels begin the units."""
        return tuple(self.channels_per_unit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coupling:
    """The units of a network.

    Attributes:
        model: the network, in which no model lies any more.
        wiring: by layer name, in the order in which Keras runs the layers.
        groups: what may go; every group has two units or more.
        count: how many units there are.
        pinned: why a unit has to stay, by unit.
        inputs: the units of each network input.
        reasons: why channels of a layer have to stay, by layer name.
    """

    model: Any
    wiring: dict[str, Wiring]
    groups: tuple[Group, ...]
    count: int
    pinned: dict[int, str]
    inputs: tuple[Units, ...]
    reasons: dict[str, str]

    def all_kept(self) -> Keep:
        """Return the choice that takes nothing away."""
        return np.ones(self.count, dtype=np.bool_)

    def group_of(self, layer_name: str) -> tuple[Group, ...]:
        """Return the groups in which a layer has channels."""
        return tuple(group for group in self.groups if layer_name in group.layers)


def narrowed(
    coupling: Coupling, keep: Keep, *, more_bias: Mapping[str, Array] | None = None
) -> Any:
    """Return the network without the units that go: a plain model with weights of its own.

    Its layers keep their names; a layer of an inner model is called ``inner/layer``.

    Args:
        coupling: of the network, which is left alone.
        keep: which units stay.
        more_bias: by layer name what its bias takes over, ``(channels,)`` of the layer as it was.

    Raises:
        ValueError: if a unit that has to stay, or all channels of a layer, were to go.
    """
    for unit in np.flatnonzero(~keep):
        if int(unit) in coupling.pinned:
            raise ValueError(f"unit {unit} has to stay: {coupling.pinned[int(unit)]}")
    made: list[tuple[Wiring, Any]] = []
    more_bias = more_bias or {}

    def make(layer: Any, name: str) -> Callable[..., Any]:
        wiring = coupling.wiring[name]
        if len(wiring.gives) and not keep[wiring.gives].any():
            raise ValueError(f"{name}: no channel is left")
        changes = wiring.narrowed_config(keep) | ({"use_bias": True} if name in more_bias else {})
        changes |= _initializers_of_any_shape(layer)
        twin: Callable[..., Any] = copied(layer, name, **changes)
        made.append((wiring, twin))
        return twin

    result = rewired(coupling.model, make)
    for wiring, twin in made:
        weights = wiring.narrowed_weights(keep)
        if wiring.name in more_bias:
            more = more_bias[wiring.name][keep[wiring.gives]]
            bias = weights.pop() if wiring.layer.use_bias else 0.0
            weights.append((bias + more).astype(np.float32))
        twin.set_weights(weights)
    return result


def _initializers_of_any_shape(layer: Any) -> dict[str, str]:
    """Return what takes the place of initializers that hold values of the shape that was."""
    return {
        key: "zeros"
        for key, made in layer.get_config().items()
        if key.endswith("_initializer")
        and isinstance(made, dict)
        and np.ndim(made.get("config", {}).get("value", 0)) > 0
    }
