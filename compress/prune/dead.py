"""Take out what adds nothing: channels that never change or that nothing reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.networks.named_layers import named_layers
from compress.networks.rewire import copied, rewired
from compress.prune.constants import Known, constants, contributions
from compress.prune.coupling import couple
from compress.prune.groups import Coupling, Keep, Wiring, narrowed
from deploy.record import Record

_WORTH_A_GATHER = 0.1
"""The share of a layer's inputs that a Gather has to spare it: one costs time of its own."""


class RemoveDead(Record, frozen=True, tag_field="kind", tag="remove_dead"):
    """Take out channels that add nothing, as unstructured pruning leaves them: the same numbers.

    A channel whose weights are all zero is its bias and nothing else, which goes into the biases of
    what reads it; a channel that is multiplied by zeros only is not computed at all.
    """

    gather_inputs: bool = True
    """Let a Dense layer that reads the network's input take only the features that it has weights
    for, by a Gather in front of it, where that spares it a tenth or more of them."""


def remove_dead(model: Any, step: RemoveDead) -> Any:
    """Return a smaller model that gives the same numbers.

    Where a channel goes, others may die: it is looked again until nothing is found. Models inside
    the model are opened up: their layers are called ``inner/layer``.

    Args:
        model: a functional or Sequential tf-keras model; left alone.
        step: what may be done.

    Raises:
        UserError: if the model is no graph of layers, or a layer cannot be made from its config.
    """
    coupling = couple(model)
    while True:
        keep, folded = _living(coupling)
        model = narrowed(coupling, keep, more_bias=folded)
        coupling = couple(model)
        if keep.all():
            return _gathered(coupling) if step.gather_inputs else model


def dead_facts(original: Any, made: Any, step: RemoveDead) -> dict[str, str]:
    """Say of every layer that begins channels how many were alive, and why dead ones stay.

    Args:
        original: the model that the step was given.
        made: the model that it gave.
        step: the step.
    """
    before, after = couple(original), couple(made)
    said = {}
    for name, wiring in before.wiring.items():
        if wiring.makes is None or name not in after.wiring:
            continue
        width, left = len(wiring.gives), len(after.wiring[name].gives)
        reason = before.reasons.get(name, "none of them is dead")
        said[name] = (
            f"keeps {left} of its {width} channels: the others were dead"
            if left < width
            else f"keeps all {width} channels: {reason}"
        )
        inputs = _input_features(before, wiring)
        if inputs is not None and (unread := int((~inputs).sum())):
            said[name] += f"; {_why_read(wiring, made, unread, len(inputs), step)}"
    return said


def _why_read(wiring: Wiring, made: Any, unread: int, inputs: int, step: RemoveDead) -> str:
    """Say what became of input features that a layer has no weights for."""
    now = dict(named_layers(made))[wiring.name].get_weights()[0].shape[-2]
    if now < inputs:
        return f"takes {now} of {inputs} input features, by a Gather"
    if not step.gather_inputs:
        why = "gather_inputs is false"
    elif type(wiring.layer).__name__ != "Dense" or wiring.calls > 1:
        why = "only a Dense layer that is called once can leave them out"
    else:
        why = "a Gather would cost more than they do"
    return f"takes {unread} input features that it does not need: {why}"


def _living(coupling: Coupling) -> tuple[Keep, dict[str, npt.NDArray[np.float64]]]:
    """Return which units stay, and what the biases of layers take over from those that go."""
    given = constants(coupling)
    needed = np.zeros(coupling.count, dtype=np.bool_)
    added = {}
    for name, wiring in coupling.wiring.items():
        if wiring.reads is not None:
            added[name] = _agreed(wiring, given[name])
            needed[wiring.reads[np.isnan(added[name]).any(axis=1)]] = True
    keep = coupling.all_kept()
    for group in coupling.groups:
        keep[group.units] = needed[group.units]
        if not keep[group.units].any():
            keep[group.units[0]] = True  # a layer without channels is none
    folded = {}
    for name, each in added.items():
        reads = coupling.wiring[name].reads
        bias = each[~keep[reads]].sum(axis=0)
        if bias.any():
            folded[name] = bias
    return keep, folded


def _agreed(wiring: Wiring, calls: list[Known]) -> npt.NDArray[np.float64]:
    """Return what inputs add to outputs in all calls alike; NaN where that varies or differs."""
    each = np.stack([contributions(wiring.layer, x) for x in calls])
    return np.where((each == each[0]).all(axis=0), each[0], np.nan)


def _input_features(coupling: Coupling, wiring: Wiring) -> npt.NDArray[np.bool_] | None:
    """Return which inputs a layer has weights for; None unless all are the network's own."""
    inputs = np.concatenate([np.asarray(units) for units in coupling.inputs])
    if wiring.reads is None or not np.isin(wiring.reads, inputs).all():
        return None
    if type(wiring.layer).__name__.startswith("Separable"):
        return None
    kernel = wiring.layer.get_weights()[0]
    if "Transpose" in type(wiring.layer).__name__:
        kernel = np.swapaxes(kernel, -1, -2)
    weighed: npt.NDArray[np.bool_] = (kernel != 0).any(axis=(*range(kernel.ndim - 2), -1))
    return weighed


def _gathered(coupling: Coupling) -> Any:
    """Return the model with a Gather in front of Dense layers that read few input features."""
    chosen = {}
    for name, wiring in coupling.wiring.items():
        features = _input_features(coupling, wiring)
        if features is None or type(wiring.layer).__name__ != "Dense" or wiring.calls > 1:
            continue
        if features.any() and features.mean() <= 1 - _WORTH_A_GATHER:
            chosen[name] = np.flatnonzero(features)
    if not chosen:
        return coupling.model
    made: list[tuple[Any, Any]] = []

    def make(layer: Any, name: str) -> Callable[..., Any]:
        import tensorflow as tf

        twin: Callable[..., Any] = copied(layer, name)
        made.append((layer, twin))
        if name not in chosen:
            return twin
        return lambda x: twin(tf.gather(x, chosen[name].tolist(), axis=-1, name=f"{name}_inputs"))

    result = rewired(coupling.model, make)
    for layer, twin in made:
        kernel, *others = layer.get_weights() or [None]
        if layer.name in chosen:
            twin.set_weights([kernel[chosen[layer.name]], *others])
        elif kernel is not None:
            twin.set_weights([kernel, *others])
    return result
