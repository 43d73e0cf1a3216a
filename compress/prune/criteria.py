"""How much a network would miss a channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_never

from compress.data.task import Task
from compress.prune.calls import calls_of, listed
from compress.prune.groups import Coupling, Group, Units, Wiring
from compress.train.losses import keras_loss, loss_of, targets

Array = npt.NDArray[Any]
Scores = dict[Group, npt.NDArray[np.float64]]
"""A number for each unit of each group, in the group's order; the smallest go first."""

Criterion = Literal["l1", "l2", "batch_norm", "taylor", "activation", "geometric_median", "random"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)

_BATCH = 128
_TAYLOR_BATCH = 16


def scores(
    coupling: Coupling, criterion: Criterion, task: Task, *, seed: int, samples: int
) -> Scores:
    """Return the worth of every unit that may go.

    A unit's channels in all layers that begin it are looked at together:

    - ``l1``, ``l2``: the norm of its weights, the mean over layers. Li et al., "Pruning filters for
      efficient ConvNets" (2017), section 3.1.
    - ``batch_norm``: the mean of its ``|gamma|``, 0 where there is none. Liu et al., "Learning efficient convolutional
      networks through network slimming" (2017), section 3.
    - ``taylor``: ``(sum of gradient × weight)²`` over the weights that read it, summed over batches:
      the square of how much the loss would change without it, to first order: the gate of Molchanov
      et al., "Importance estimation for neural network pruning" (2019), put where it is
      read. The weights that make a channel would not do: its bias stays when they are zero, and a
      normalisation behind them undoes their size.
    - ``activation``: the mean of ``|x|`` where kernels read it. Molchanov et al., "Pruning
      convolutional neural networks for resource efficient inference" (2017), section 2.2.
    - ``geometric_median``: the sum of the distances of its weights to those of the others: what lies
      in the middle can be replaced by them. He et al., "Filter pruning via geometric median" (2019),
      equation 4.
    - ``random``: the control that every other has to beat.

    Args:
        coupling: of the trained network.
        criterion: which of them.
        task: gives training samples where they are needed.
        seed: of ``random``, and of which samples are looked at.
        samples: how many of them.
    """
    match criterion:
        case "l1" | "l2":
            return _by_norm(coupling, 1 if criterion == "l1" else 2)
        case "batch_norm":
            return _by_batch_norm(coupling)
        case "taylor":
            return _by_taylor(coupling, some_samples(task, samples, seed), task)
        case "activation":
            return _by_activation(coupling, some_samples(task, samples, seed)[0])
        case "geometric_median":
            return _by_distance(coupling)
        case "random":
            rng = np.random.default_rng(seed)
            return {group: rng.random(len(group.units)) for group in coupling.groups}
        case _:
            assert_never(criterion)


def comparable(found: Scores, criterion: Criterion) -> Scores:
    """Return scores that may be compared between groups.

    Norms of layers of other widths differ by nature, so that each group is divided by its mean; a
    change of the loss is one everywhere.
    """
    if criterion in {"taylor", "random"}:
        return found
    return {group: each / (each.mean() or 1.0) for group, each in found.items()}


def _by_norm(coupling: Coupling, order: int) -> Scores:
    norms = {
        name: np.linalg.norm(rows, ord=order, axis=1)
        for name, rows in _rows(coupling, _weights(coupling)).items()
    }
    return {group: _mean_over_layers(coupling, group, norms) for group in coupling.groups}


def _by_distance(coupling: Coupling) -> Scores:
    rows = _rows(coupling, _weights(coupling))
    found: Scores = {}
    for group in coupling.groups:
        together = np.concatenate(
            [
                _stacked(rows[name], coupling.wiring[name].makes, group.units)
                for name in group.layers
            ],
            axis=1,
        )
        squares = (together**2).sum(axis=1)
        gram = together @ together.T
        distances = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * gram, 0))
        found[group] = distances.sum(axis=1)
    return found


def _by_batch_norm(coupling: Coupling) -> Scores:
    total = np.zeros(coupling.count)
    for wiring in _scaling(coupling):
        np.add.at(total, wiring.gives, np.abs(wiring.layer.gamma.numpy()))
    count = _scales(coupling)
    return {g: total[g.units] / np.maximum(count[g.units], 1) for g in coupling.groups}


def without_scale(coupling: Coupling, groups: Sequence[Group]) -> list[str]:
    """Return the layers of groups that no normalisation with a scale stands behind."""
    count = _scales(coupling)
    return [name for group in groups if not count[group.units].all() for name in group.layers]


def _scales(coupling: Coupling) -> Array:
    """Return how many normalisations scale each unit."""
    count = np.zeros(coupling.count)
    for wiring in _scaling(coupling):
        np.add.at(count, wiring.gives, 1)
    return count


def _scaling(coupling: Coupling) -> list[Wiring]:
    return [
        wiring
        for wiring in coupling.wiring.values()
        if "BatchNorm" in type(wiring.layer).__name__ and wiring.layer.scale
    ]


def _by_activation(coupling: Coupling, x: Array) -> Scores:
    import tf_keras

    readers = [
        (coupling.wiring[node.layer.name], node.keras_inputs)
        for node in calls_of(coupling.model)
        if not node.is_input and coupling.wiring[node.layer.name].reads is not None
    ]
    watched = tf_keras.Model(coupling.model.inputs, [listed(inputs)[0] for _, inputs in readers])
    total, count = np.zeros(coupling.count), np.zeros(coupling.count)
    for begin in range(0, len(x), _BATCH):
        results = listed(watched(x[begin : begin + _BATCH], training=False))
        for (wiring, _), result in zip(readers, results, strict=True):
            seen = np.abs(np.asarray(result, np.float64))
            each = seen.reshape(-1, seen.shape[-1]).sum(axis=0)
            units = _units_read(wiring, len(each))
            np.add.at(total, units, each)
            np.add.at(count, units, seen.size / seen.shape[-1])
    return {g: total[g.units] / np.maximum(count[g.units], 1) for g in coupling.groups}


def _units_read(wiring: Wiring, channels: int) -> Units:
    """Return the units of all positions that a layer is given; ``reads`` has those of one group."""
    reads = wiring.reads if wiring.reads is not None else np.zeros(0, np.int64)
    return np.tile(reads, channels // len(reads))


def _by_taylor(coupling: Coupling, samples: tuple[Array, Array], task: Task) -> Scores:
    import tensorflow as tf

    model, (x, y) = coupling.model, samples
    loss = keras_loss(loss_of(None, task), task)
    readers = [wiring for wiring in coupling.wiring.values() if wiring.reads is not None]
    kernels = [wiring.layer.weights[0] for wiring in readers]
    found = np.zeros(coupling.count)
    for begin in range(0, len(x), _TAYLOR_BATCH):
        part = slice(begin, begin + _TAYLOR_BATCH)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(kernels)
            answers = model(x[part], training=False)
            mean = tf.reduce_mean(loss(targets(task, y[part]), answers))
        gradients = tape.gradient(mean, kernels, unconnected_gradients="zero")
        change = np.zeros(coupling.count)
        for wiring, kernel, gradient in zip(readers, kernels, gradients, strict=True):
            product = np.asarray(gradient, np.float64) * kernel.numpy()
            axis = -1 if "Transpose" in type(wiring.layer).__name__ else -2
            each = np.moveaxis(product, axis, 0).reshape(product.shape[axis], -1).sum(axis=1)
            np.add.at(change, _units_read(wiring, len(each)), each)
        found += np.square(change)
    return {group: found[group.units] for group in coupling.groups}


def _makers(coupling: Coupling) -> dict[str, Wiring]:
    names = {name for group in coupling.groups for name in group.layers}
    return {name: wiring for name, wiring in coupling.wiring.items() if name in names}


def _kernel_of(wiring: Wiring) -> Any:
    """Return the weight that begins channels: of a separable convolution its second."""
    kind = type(wiring.layer).__name__
    return wiring.layer.weights[1 if kind.startswith("Separable") else 0]


def _weights(coupling: Coupling) -> dict[str, Array]:
    return {
        name: _kernel_of(wiring).numpy().astype(np.float64)
        for name, wiring in _makers(coupling).items()
    }


def _rows(coupling: Coupling, kernels: Mapping[str, Array]) -> dict[str, Array]:
    """Return kernels, or what has their shape, as one row a channel: ``(channels, weights)``."""
    rows = {}
    for name, kernel in kernels.items():
        axis = -2 if "Transpose" in type(coupling.wiring[name].layer).__name__ else -1
        rows[name] = np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)
    return rows


def _added(each: Array, makes: Units | None, units: Units) -> Array:
    """Return the sum over a unit's channels in one layer, ``(units,)``."""
    makes = makes if makes is not None else np.zeros(0, np.int64)
    total = np.zeros(int(max(makes.max(initial=0), units.max(initial=0))) + 1)
    np.add.at(total, makes, each)
    added: Array = total[units]
    return added


def _mean_over_layers(coupling: Coupling, group: Group, each: Mapping[str, Array]) -> Array:
    """Return the mean over a unit's channels in all layers, ``(units,)``."""
    total, count = np.zeros(len(group.units)), np.zeros(len(group.units))
    for name in group.layers:
        makes = coupling.wiring[name].makes
        total += _added(each[name], makes, group.units)
        count += _added(np.ones_like(each[name]), makes, group.units)
    mean: Array = total / count
    return mean


def _stacked(rows: Array, makes: Units | None, units: Units) -> Array:
    """Return one row a unit: those of its channels in one layer beside each other."""
    makes = makes if makes is not None else np.zeros(0, np.int64)
    return np.stack([rows[makes == unit].reshape(-1) for unit in units])


def some_samples(task: Task, samples: int, seed: int) -> tuple[Array, Array]:
    """Return some training samples ``x`` and their truth ``y``."""
    count = min(samples, len(task.train))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(task.train))[:count])
    return np.asarray(task.train.x[chosen]), np.asarray(task.train.y[chosen])
