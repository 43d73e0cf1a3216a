"""Let all weights of a kernel share a few values, which training goes on to move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from compress.data.task import Task
from compress.networks.named_layers import named_layers
from compress.prune.copied import copied
from compress.prune.kernels import kernel_name, kernel_of
from compress.train.fit import Fit, History, OnEpoch, TrainingFiles, fit
from compress.train.teacher import Distillation, Teacher
from deploy.errors import UserError
from deploy.record import LayerFacts, Record

Count = Annotated[int, Meta(ge=2, le=256)]
Initial = Literal["linear", "kmeans_plus_plus", "density"]
Values = npt.NDArray[np.float64]

_ROUNDS = 300
"""k-means on a line settles within tens of rounds; what is left then moves by little."""


class Cluster(Record, frozen=True, tag_field="kind", tag="cluster"):
    """Let the weights of every kernel share a few values, and train these.

    Han et al., "Deep Compression" (2016), section 3: k-means decides once which weights go together;
    the fine-tuning moves what they share. By the mean of their gradients, where the paper takes the sum:
    the learning rate then does not hang on how many weights share a value. BatchNorm is folded first,
    because folded later it would give every channel values of its own.
    """

    clusters: Count
    """Largest number of distinct values of a kernel, zero included."""
    fine_tune: Fit
    """How the model trains meanwhile."""
    initial: Initial = "linear"
    """Where k-means begins: evenly from the least weight to the largest, which keeps the rare large
    ones; at weights drawn far from each other (Arthur and Vassilvitskii, 2007); or so that each
    value has as many weights."""
    per_layer: dict[str, Count] = {}
    """Numbers of single layers, by name."""
    skip: tuple[str, ...] = ()
    """Names of layers left alone; ``*``, ``?`` and ``[]`` match as in a shell."""
    keep_zeros: bool = True
    """Weights that are exactly zero stay zero, so that a pruned model stays pruned."""
    distill: Distillation | bool = Distillation()
    """How the fine-tuning listens to the baseline beside the truth; false leaves the baseline out."""

    def count(self, layer_name: str) -> int:
        """Return how many distinct values this layer may have."""
        return self.per_layer.get(layer_name, self.clusters)


@dataclass(frozen=True, slots=True)
class _Shared:
    """A kernel under training whose members of a cluster move as one.

    Attributes:
        name: of the attribute of the layer.
        values: the variable that the optimizer moves; equal members get equal gradients.
        members: int32 ``(n,)``, the cluster of each weight.
        first: int32 ``(k,)``, a weight of each cluster.
        alive: float32 ``(k,)``, 0 where a cluster has to stay at zero.
    """

    name: str
    values: Any
    members: npt.NDArray[np.int32]
    first: npt.NDArray[np.int32]
    alive: npt.NDArray[np.float32]

    def tied(self) -> Any:
        """Return what the network computes with: at most k distinct values, to the bit."""
        import tensorflow as tf

        flat = tf.reshape(self.values, [-1])
        sizes = np.bincount(self.members, minlength=len(self.first)).astype(np.float32)
        mean = tf.math.unsorted_segment_sum(flat, self.members, len(self.first)) / sizes
        # The value is that of one member: a sum of many equal ones would round. The mean gives
        # the gradient, the same to each.
        value = tf.stop_gradient(tf.gather(flat, self.first)) + (mean - tf.stop_gradient(mean))
        return tf.reshape(tf.gather(value * self.alive, self.members), self.values.shape)


def cluster(
    model: Any,
    step: Cluster,
    task: Task,
    *,
    seed: int,
    teacher: Teacher | None = None,
    on_epoch: OnEpoch | None = None,
    files: TrainingFiles | None = None,
) -> tuple[Any, History]:
    """Return a clustered and fine-tuned copy of a Keras model, and how the fine-tuning went.

    The copy is a plain tf-keras model, not compiled, with the names of the original, which stays as
    it was.

    Args:
        model: a functional or Sequential tf-keras model whose BatchNorm is folded.
        step: how many values and how to train.
        task: what to fine-tune on.
        seed: of the fine-tuning and of the draws of k-means++.
        teacher: whose answers the fine-tuning listens to.
        on_epoch: told about the end of each epoch.
        files: what the fine-tuning leaves on disk meanwhile.

    Raises:
        UserError: if ``skip`` or ``per_layer`` names no layer that could be meant, nothing is left
            to cluster, the model cannot be copied layer by layer, or the fine-tuning fails (see
            ``fit``).
    """
    check_clustered(model, step)
    working, made = copied(model), copied(model)
    shared: dict[str, _Shared] = {}
    seen: set[int] = set()
    for at, (name, layer) in enumerate(named_layers(working)):
        if id(layer) not in seen and why_not_clustered(name, layer, step) is None:
            seen.add(id(layer))
            shared[name] = _share(layer, step, count=step.count(name), seed=[seed, at])
    history = fit(
        working,
        task,
        step.fine_tune,
        seed=seed,
        teacher=teacher,
        on_epoch=on_epoch,
        files=files,
    )
    made.set_weights(working.get_weights())
    layers = dict(named_layers(made))
    for name, kernel in shared.items():
        getattr(layers[name], kernel.name).assign(kernel.tied())
    return made, history


def why_not_clustered(name: str, layer: Any, step: Cluster) -> str | None:
    """Say why a Keras layer is left alone, or None if its kernel is clustered."""
    pattern = next((p for p in step.skip if fnmatchcase(name, p)), None)
    if pattern is not None:
        return f"skipped: '{pattern}'"
    kernel = kernel_of(layer)
    if kernel is None:
        if all(len(weight.shape) < 2 for weight in layer.weights):
            return "has no kernel to cluster"
        return f"layers of type {type(layer).__name__} cannot be clustered"
    if not layer.trainable:
        return "is frozen: trainable = False"
    if np.prod(kernel.shape) <= step.count(name):
        return f"has no more than {step.count(name)} weights"
    return None


def reasons_not_clustered(model: Any, step: Cluster) -> dict[str, str]:
    """Return why layers that have weights are left alone, by layer name."""
    found = ((name, layer) for name, layer in named_layers(model) if layer.weights)
    reasons = {name: why_not_clustered(name, layer, step) for name, layer in found}
    return {name: why for name, why in reasons.items() if why}


def check_clustered(model: Any, step: Cluster) -> None:
    """Raise a UserError if ``skip`` or ``per_layer`` name no layer that could be meant.

    Also if nothing is left to cluster. Asked before a long training, of the untrained network.
    """
    layers = dict(named_layers(model))
    for pattern in step.skip:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise UserError(f"skip: no layer is named '{pattern}'; there are {', '.join(layers)}")
    for name in step.per_layer:
        if name not in layers:
            raise UserError(f"per_layer: no layer is named '{name}'; there are {', '.join(layers)}")
        why_not = why_not_clustered(name, layers[name], step)
        if why_not is not None:
            raise UserError(f"per_layer: '{name}' cannot be clustered: {why_not}")
    reasons = {name: why_not_clustered(name, layer, step) for name, layer in layers.items()}
    if all(reasons.values()):
        found = "; ".join(f"{name}: {why}" for name, why in reasons.items())
        raise UserError(f"cluster: nothing is left to cluster ({found})")


def why_not_as_clustered(layers: Sequence[LayerFacts], step: Cluster) -> str | None:
    """Say which layer of a file holds more values than the step allows, or None if none does.

    Layers with a note were left alone, or are not what the note's technique makes of layers.
    """
    for layer in layers:
        most = step.count(layer.name)
        if layer.note is None and layer.distinct is not None and layer.distinct > most:
            return (
                f"cluster: '{layer.name}' holds {layer.distinct} distinct weights in the file, "
                f"where {most} were asked for"
            )
    return None


def centres(weights: npt.NDArray[Any], count: int, *, initial: Initial, seed: list[int]) -> Values:
    """Return at most ``count`` values in rising order that are near all weights, by k-means.

    Each is the mean of the weights that are nearest to it. There are fewer where several would
    have no weight, and every distinct weight is one where there are no more of them.

    >>> centres(np.array([0.0, 0.2, 1.0, 1.2]), 2, initial="linear", seed=[0]).round(3).tolist()
    [0.1, 1.1]
    """
    ordered = np.sort(weights.ravel().astype(np.float64))
    distinct = np.unique(ordered)
    if len(distinct) <= count:
        return distinct
    found = np.unique(_first_centres(ordered, count, initial=initial, seed=seed))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    ends: npt.NDArray[np.int64] | None = None
    for _ in range(_ROUNDS):
        before, ends = ends, np.searchsorted(ordered, (found[1:] + found[:-1]) / 2)
        if before is not None and np.array_equal(before, ends):
            break
        edges = np.unique(np.concatenate([[0], ends, [len(ordered)]]))  # without empty clusters
        found = np.diff(sums[edges]) / np.diff(edges)
    return found


def _first_centres(ordered: Values, count: int, *, initial: Initial, seed: list[int]) -> Values:
    match initial:
        case "linear":
            return np.linspace(ordered[0], ordered[-1], count)
        case "density":
            return np.quantile(ordered, (np.arange(count) + 0.5) / count)
        case "kmeans_plus_plus":
            rng = np.random.default_rng(seed)
            found = [rng.choice(ordered)]
            apart = np.full(len(ordered), np.inf)
            while len(found) < count:
                apart = np.minimum(apart, (ordered - found[-1]) ** 2)
                found.append(rng.choice(ordered, p=apart / apart.sum()))
            return np.array(found)


def _share(layer: Any, step: Cluster, *, count: int, seed: list[int]) -> _Shared:
    """Let a layer compute with a kernel whose weights share values; the kernel is set to them."""
    name, variable = kernel_name(layer), getattr(layer, kernel_name(layer))
    kernel = variable.numpy()
    flat = kernel.ravel()
    free = flat != 0 if step.keep_zeros else np.ones(len(flat), bool)
    zeros = bool(not free.all())
    found = centres(flat[free], count - zeros, initial=step.initial, seed=seed)
    nearest = np.searchsorted((found[1:] + found[:-1]) / 2, flat, side="right")
    members = np.where(free, nearest, len(found))
    values = np.append(found, 0.0) if zeros else found
    used, first, members = np.unique(members, return_index=True, return_inverse=True)
    variable.assign(values[used][members].reshape(kernel.shape).astype(kernel.dtype))
    shared = _Shared(
        name=name,
        values=variable,
        members=members.reshape(-1).astype(np.int32),
        first=first.astype(np.int32),
        alive=np.array([not (zeros and at == len(found)) for at in used], np.float32),
    )
    layer.__dict__["call"] = _calling_with(layer, shared)  # past Keras, which tracks what is set
    return shared


def _calling_with(layer: Any, shared: _Shared) -> Callable[..., Any]:
    call = layer.call

    def call_with_shared(*args: Any, **kwargs: Any) -> Any:
        layer.__dict__[shared.name] = shared.tied()
        try:
            return call(*args, **kwargs)
        finally:
            layer.__dict__[shared.name] = shared.values

    return call_with_shared
