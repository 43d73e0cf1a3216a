"""Which channels of a network go together: a walk over its graph, call by call.

Every position on the last axis of every tensor has a number; positions that can only stay or go
together have the same one. An elementwise sum makes two numbers one, a concatenation puts them side
by side, a ``Flatten`` repeats them, a kernel begins new ones. What is left at the end are *units*: the
smallest things that can be taken out of a network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compress.prune.calls import calls_of, listed, opened
from compress.prune.groups import (
    CONVOLUTIONS,
    SEPARABLE,
    TRANSPOSED,
    Coupling,
    Group,
    Units,
    Wiring,
)

ELEMENTWISE = frozenset(
    {"linear", "relu", "relu6", "tanh", "sigmoid", "hard_sigmoid", "elu", "selu", "gelu", "swish"}
    | {"silu", "softplus", "softsign", "exponential", "mish", "leaky_relu"}
)
"""Activation functions that look at one number at a time."""
_DEPTHWISE = {"DepthwiseConv1D", "DepthwiseConv2D"}
_MAKERS = {"Dense", "Embedding"} | CONVOLUTIONS | TRANSPOSED | _DEPTHWISE | SEPARABLE
"""Whose own activation comes after their kernel: it can be no reason against pruning what they read."""
_NORMS = {"BatchNormalization", "SyncBatchNormalization"}
_MERGES = {"Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"}
_SPATIAL = {
    f"{kind}{axes}D"
    for axes in (1, 2, 3)
    for kind in (
        "MaxPooling", "AveragePooling", "GlobalMaxPooling", "GlobalAveragePooling",
        "UpSampling", "ZeroPadding", "Cropping", "SpatialDropout",
    )
}  # fmt: skip
_ONE_BY_ONE = _SPATIAL | {
    "Activation", "ReLU", "LeakyReLU", "ELU", "ThresholdedReLU", "Dropout", "GaussianNoise",
    "GaussianDropout", "AlphaDropout", "ActivityRegularization", "RepeatVector", "Rescaling",
}  # fmt: skip
_ACROSS = {"LayerNormalization", "GroupNormalization", "UnitNormalization", "Softmax"}


def couple(model: Any) -> Coupling:
    """Return the units of a network.

    Args:
        model: a functional or Sequential tf-keras model. It is left alone, but the result refers to
            its layers if no model lies in it.

    Raises:
        UserError: if the model is no graph of layers.
    """
    return _Coupler(opened(model)).coupled()


@dataclass(slots=True)
class _Found:
    """What is known of a layer while the graph is walked, in numbers that may still become one."""

    layer: Any
    cuts: list[dict[int, Units]]
    gives: Units
    in_shape: tuple[int | None, ...]
    out_shape: tuple[int | None, ...]
    reads: Units | None = None
    makes: Units | None = None
    calls: int = 1


@dataclass(slots=True)
class _Rule:
    """What one call of a layer says: the numbers of its result, and how its weights hang on numbers."""

    gives: Units
    cuts: list[dict[int, Units]] = field(default_factory=list)
    reads: Units | None = None
    makes: Units | None = None


class _Coupler:
    """Walks a graph once, call by call."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.parent: list[int] = []
        self.why: dict[int, str] = {}
        """Why a number has to stay; of what is one with it too."""
        self.mixed_by: dict[int, str] = {}
        """The layer that made a number one with another of the same tensor."""
        self.tensors: dict[int, Units] = {}
        self.found: dict[str, _Found] = {}

    def coupled(self) -> Coupling:
        for node in calls_of(self.model):
            self._walk(node)
        for tensor in self.model.outputs:
            for unit in self.tensors[id(tensor)]:  # of two reasons the plainer one
                self.why[self._root(int(unit))] = "they are what the network gives"
        return self._settled()

    def _walk(self, node: Any) -> None:
        outputs = listed(node.outputs)
        if node.is_input:
            for tensor in outputs:
                units = self._fresh(_channels(tensor))
                self._pin(units, "they are what the network is given")
                self.tensors[id(tensor)] = units
            return
        layer, inputs = node.layer, listed(node.keras_inputs)
        given = [self.tensors[id(tensor)] for tensor in inputs]
        rule = self._rule(layer, inputs, outputs, given)
        if len(outputs) == 1:
            self.tensors[id(outputs[0])] = rule.gives
        self._note(layer, rule, tuple(inputs[0].shape[1:]), tuple(outputs[0].shape[1:]))

    def _rule(self, layer: Any, inputs: list[Any], outputs: list[Any], given: list[Units]) -> _Rule:
        """Return what this call says; what is not understood pins all that it touches."""
        kind = type(layer).__name__
        why_not = why_not_followed(layer, inputs, outputs)
        if why_not is None and kind in {"Flatten", "Reshape"}:
            return _Rule(gives=self._reshaped(layer, inputs[0], outputs[0], given[0]))
        if why_not is None and kind in _MERGES:
            return _Rule(gives=self._merged(layer, given))
        if why_not is None and kind == "Concatenate":
            return _Rule(gives=self._joined(layer, inputs, given))
        if why_not is None:
            rule = self._rule_of_one(layer, given[0], _channels(outputs[0]))
            if rule is not None:
                if (why_pinned := why_not_one_by_one(layer)) is not None:
                    self._pin(rule.gives, f"{layer.name!r} {why_pinned}")
                return rule
            why_not = f"is a {kind}, of which it is not known what it does to channels"
        for units in given:
            self._pin(units, f"{layer.name!r}, which reads them, {why_not}")
        for tensor in outputs:
            self.tensors[id(tensor)] = self._fresh(_channels(tensor))
            self._pin(self.tensors[id(tensor)], f"{layer.name!r}, which gives them, {why_not}")
        gives = self.tensors[id(outputs[0])] if len(outputs) == 1 else self._fresh(0)
        return _Rule(gives=gives, cuts=[{} for _ in layer.weights])

    def _rule_of_one(self, layer: Any, x: Units, channels: int) -> _Rule | None:
        """Return what a call with one input says, or None if its kind is not known."""
        kind = type(layer).__name__
        if kind in _ONE_BY_ONE or kind == "Permute":
            return _Rule(gives=x)
        if kind in _NORMS:
            return _Rule(gives=x, cuts=[{0: x} for _ in layer.weights])
        if kind == "PReLU":
            each = layer.alpha.shape[-1] == len(x)
            return _Rule(gives=x, cuts=[{-1: x} if each else {}])
        if kind in _DEPTHWISE:
            y = np.repeat(x, layer.depth_multiplier)
            return _Rule(gives=y, cuts=[{-2: x}, {0: y}][: len(layer.weights)])
        if kind in CONVOLUTIONS and 1 < layer.groups == len(x):
            y = np.repeat(x, channels // layer.groups)
            return _Rule(gives=y, cuts=[{-1: y}, {0: y}][: len(layer.weights)])
        return self._rule_of_kernel(layer, x, channels) if kind in _MAKERS else None

    def _rule_of_kernel(self, layer: Any, x: Units, channels: int) -> _Rule:
        """Return what a call of a kernel says that begins channels."""
        kind, y = type(layer).__name__, self._made(layer, channels)
        if kind == "Embedding":
            return _Rule(gives=y, cuts=[{-1: y}], makes=y)
        cuts: list[dict[int, Units]] = [{-2: x, -1: y}, {0: y}]
        if kind in TRANSPOSED:
            cuts[0] = {-2: y, -1: x}
        elif kind in SEPARABLE:
            wide = np.repeat(x, layer.depth_multiplier)
            cuts = [{-2: x}, {-2: wide, -1: y}, {0: y}]
        elif kind in CONVOLUTIONS and layer.groups > 1:
            # Each group loses the same places, so that all stay of one size.
            for units in (x, y):
                first, *others = np.split(units, layer.groups)
                for other in others:
                    self._unite(first, other, layer.name)
            x = x[: len(x) // layer.groups]
            cuts[0] = {-2: x, -1: y}
        return _Rule(gives=y, cuts=cuts[: len(layer.weights)], reads=x, makes=y)

    def _made(self, layer: Any, channels: int) -> Units:
        """Return the numbers that a kernel begins: the same ones at each of its calls."""
        found = self.found.get(layer.name)
        return found.makes if found and found.makes is not None else self._fresh(channels)

    def _merged(self, layer: Any, given: list[Units]) -> Units:
        widest = max(given, key=len)
        for units in given:
            if len(units) == len(widest):
                self._unite(widest, units, layer.name)
            else:
                self._pin(units, f"{layer.name!r} spreads it over all channels")
        return widest

    def _joined(self, layer: Any, inputs: list[Any], given: list[Units]) -> Units:
        rank = len(inputs[0].shape)
        if layer.axis % rank == rank - 1:
            return np.concatenate(given)
        for units in given[1:]:
            self._unite(given[0], units, layer.name)
        return given[0]

    def _reshaped(self, layer: Any, x: Any, y: Any, units: Units) -> Units:
        """Return the numbers on the last axis after a reshape.

        Positions that come to lie on one place of that axis become one: what goes is then the same
        set of numbers before and after it, in the same order.
        """
        roots = self._roots(units)
        last = _channels(y)
        columns = np.broadcast_to(roots, tuple(x.shape[1:])).reshape(-1, last)
        for row in np.unique(columns, axis=0)[1:] if len(columns) > 1 else []:
            self._unite(columns[0], row, layer.name)
        return self._roots(columns[0])

    def _note(
        self,
        layer: Any,
        rule: _Rule,
        in_shape: tuple[int | None, ...],
        out_shape: tuple[int | None, ...],
    ) -> None:
        """Keep what a call says; a layer that is called again is narrowed once for all its calls."""
        found = self.found.get(layer.name)
        rule.cuts += [{} for _ in layer.weights[len(rule.cuts) :]]
        if found is None:
            self.found[layer.name] = _Found(
                layer, rule.cuts, rule.gives, in_shape, out_shape, rule.reads, rule.makes
            )
            return
        found.calls += 1
        for before, now in zip(found.cuts, rule.cuts, strict=True):
            for axis in {*before, *now}:
                self._meet(before.get(axis), now.get(axis), layer.name)
        if layer.weights or type(layer).__name__ == "Reshape":
            self._meet(found.gives, rule.gives, layer.name)

    def _meet(self, before: Units | None, now: Units | None, name: str) -> None:
        """Let two calls of a layer lose the same positions; none if they are not the same ones."""
        if before is not None and now is not None and len(before) == len(now):
            self._unite(before, now, name)
            return
        for units in (before, now):
            if units is not None:
                self._pin(units, f"{name!r} is called on others too, which do not fit")

    def _settled(self) -> Coupling:
        """Give each set of numbers that became one its unit, counted from 0."""
        roots = self._roots(np.arange(len(self.parent)))
        _, units = np.unique(roots, return_inverse=True)
        units = units.reshape(-1).astype(np.int64)

        def of(numbers: Units | None) -> Units | None:
            return None if numbers is None else units[numbers]

        pinned = {int(units[number]): why for number, why in self.why.items()}
        wiring = {
            name: Wiring(
                name=name,
                layer=found.layer,
                cuts=tuple({a: units[u] for a, u in cut.items()} for cut in found.cuts),
                gives=units[found.gives],
                in_shape=found.in_shape,
                out_shape=found.out_shape,
                reads=of(found.reads),
                makes=of(found.makes),
                calls=found.calls,
            )
            for name, found in self.found.items()
        }
        mixed = {int(units[number]): by for number, by in self.mixed_by.items()}
        groups, reasons = _grouped(wiring, pinned, mixed)
        return Coupling(
            model=self.model,
            wiring=wiring,
            groups=groups,
            count=int(units.max(initial=-1)) + 1,
            pinned=pinned,
            inputs=tuple(units[self.tensors[id(tensor)]] for tensor in self.model.inputs),
            reasons=reasons,
        )

    def _fresh(self, count: int) -> Units:
        begin = len(self.parent)
        self.parent.extend(range(begin, begin + count))
        return np.arange(begin, begin + count, dtype=np.int64)

    def _root(self, number: int) -> int:
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = self.parent[number]
        return number

    def _roots(self, units: Units) -> Units:
        return np.array([self._root(int(unit)) for unit in units], dtype=np.int64)

    def _unite(self, first: Iterable[int], second: Iterable[int], by: str) -> None:
        for one, other in zip(first, second, strict=True):
            a, b = sorted((self._root(int(one)), self._root(int(other))))
            if a == b:
                continue
            self.parent[b] = a
            self.mixed_by.setdefault(a, by)
            why = self.why.get(a, self.why.get(b))
            if why is not None:
                self.why[a] = why

    def _pin(self, units: Units, why: str) -> None:
        for root in {self._root(int(unit)) for unit in units}:
            self.why.setdefault(root, why)


def _grouped(
    wiring: Mapping[str, Wiring], pinned: Mapping[int, str], mixed: Mapping[int, str]
) -> tuple[tuple[Group, ...], dict[str, str]]:
    """Return units of the same layers together, and why channels of a layer have to stay."""
    touched: dict[int, dict[str, int]] = {}
    for name, one in wiring.items():
        for unit in one.makes if one.makes is not None else ():
            counts = touched.setdefault(int(unit), {})
            counts[name] = counts.get(name, 0) + 1
    alike: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for unit, counts in touched.items():
        if unit not in pinned:
            alike.setdefault(tuple(counts.items()), []).append(unit)
    groups, reasons = [], {}
    for signature, members in alike.items():
        layers = tuple(name for name, _ in signature)
        if len(members) > 1:
            units = np.array(members, dtype=np.int64)
            groups.append(Group(channels_per_unit=dict(signature), units=units))
            continue
        for name in layers:
            by = mixed.get(members[0])
            hang = f"hang together through {by!r}" if by else "are but one"
            reasons[name] = f"its channels {hang}, so that none can go"
    for name, one in wiring.items():
        made = () if one.makes is None else one.makes
        why = [pinned[int(unit)] for unit in made if int(unit) in pinned]
        if why:
            reasons[name] = f"its channels have to stay: {why[0]}"
    return tuple(groups), reasons


def why_not_followed(layer: Any, inputs: list[Any], outputs: list[Any]) -> str | None:
    """Say why a call cannot be followed channel by channel, or None if it may be.

    Args:
        layer: what is called.
        inputs: the tensors that it is given.
        outputs: those that it gives.
    """
    kind = type(layer).__name__
    if not type(layer).__module__.startswith("tf_keras."):
        return f"is a {kind} of your own code"
    if kind in _ACROSS:
        return f"is a {kind}, which weighs channels against each other"
    if len(outputs) != 1 or any(_channels(tensor) == 0 for tensor in (*inputs, *outputs)):
        return f"is a {kind} whose channels cannot be counted"
    if getattr(layer, "data_format", "channels_last") == "channels_first":
        return "has its channels first"
    if kind not in _MERGES | {"Concatenate"} and len(inputs) != 1:
        return f"is a {kind} of several inputs"
    if kind in {"Flatten", "Reshape"}:
        lengths = [length for tensor in (*inputs, *outputs) for length in tensor.shape[1:]]
        return "reshapes an axis whose length is not known" if None in lengths else None
    why_not = None if kind in _MAKERS else why_not_one_by_one(layer)
    return why_not or _why_not_on_last_axis(layer, len(inputs[0].shape))


def _why_not_on_last_axis(layer: Any, rank: int) -> str | None:
    """Say why a layer does not treat the last axis as channels, or None if it does."""
    kind = type(layer).__name__
    if kind in _NORMS:
        axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
        if [axis % rank for axis in axes] != [rank - 1]:
            return f"normalises axis {list(axes)}"
    if kind == "Permute" and layer.dims[-1] != rank - 1:
        return "moves the channels to another axis"
    if kind == "Rescaling" and np.size(layer.scale) + np.size(layer.offset) > 2:
        return "scales each channel by a number of its own"
    return None


def why_not_one_by_one(layer: Any) -> str | None:
    """Say why a layer's own activation mixes channels, or None if it does not."""
    activation = getattr(layer, "activation", None)
    named = getattr(activation, "__name__", type(activation).__name__)
    if activation is None or named in ELEMENTWISE:
        return None
    return f"applies {named}, which may weigh channels against each other"


def _channels(tensor: Any) -> int:
    """Return the length of the last axis; 0 if there is none, or it is open."""
    return int(tensor.shape[-1] or 0) if len(tensor.shape) > 1 else 0
