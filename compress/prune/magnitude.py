"""Zero the smallest weights of every kernel while training goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from typing_extensions import assert_never

from compress.data.task import Task
from compress.networks.named_layers import is_model, named_layers
from compress.prune.budgets import Budget, without_smallest, zeros_by_sensitivity, zeros_by_size
from compress.prune.copied import cloned, copied, require_built
from compress.prune.kernels import kernel_of
from compress.train.batches import read_batch
from compress.train.fit import Fit, History, OnEpoch, TrainingFiles, fit
from compress.train.losses import keras_loss, loss_of
from compress.train.schedules import Constant, Cosine
from compress.train.teacher import Distillation, Teacher
from deploy.errors import UserError, needs_extra
from deploy.record import Record

Sparsity = Annotated[float, Meta(ge=0, lt=1)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[int, Meta(ge=1)]


_SENSITIVITY_SAMPLES = 1000
_NEVER = 2**31 - 1
"""A training step that is never reached."""


class Unstructured(Record, frozen=True, tag_field="kind", tag="unstructured"):
    """Any weight may go."""


class NOfM(Record, frozen=True, tag_field="kind", tag="n_of_m"):
    """``zeros`` of every ``of`` neighbours along the input channels go, as in 2:4 sparsity.

    Mishra et al., "Accelerating Sparse Deep Neural Networks" (2021). For Dense and Conv2D. Which
    ones go is decided once, before the first training step.
    """

    zeros: Positive = 2
    of: Positive = 4

    def __post_init__(self) -> None:
        if self.zeros >= self.of:
            raise ValueError(f"zeros must be below of ({self.of}), got {self.zeros}")


class Block(Record, frozen=True, tag_field="kind", tag="block"):
    """Blocks of ``height`` inputs by ``width`` outputs go together. For kernels of two axes."""

    height: Positive
    width: Positive
    pooling: Literal["average", "max"] = "average"
    """What a block's magnitude is: the mean or the largest of its absolute weights."""


Pattern = Unstructured | NOfM | Block


class Rounds(Record, frozen=True):
    """Prune all at once, train, and again: each round takes the same share of what is left.

    The fine-tuning is divided into equal parts, and each part follows the learning rate's schedule
    from its beginning.
    """

    count: Positive = 5
    rewind: Literal["learning_rate", "weights"] = "learning_rate"
    """What begins anew with each round. ``learning_rate`` keeps the weights: Renda, Frankle and
    Carbin, "Comparing Rewinding and Fine-tuning in Neural Network Pruning" (2020). ``weights`` also
    brings those that stay, and all others of the model, back to what they were after ``to_epoch``:
    Frankle, Dziugaite, Roy and Carbin, "Stabilizing the Lottery Ticket Hypothesis" (2019). One part
    of the fine-tuning then goes before the first round."""
    to_epoch: Annotated[int, Meta(ge=0)] = 1
    """Of the first part; for ``weights``."""

    @property
    def parts(self) -> int:
        """Into how many parts the fine-tuning is divided."""
        return self.count + (self.rewind == "weights")

    def sparsity(self, done: int, target: float) -> float:
        """Fraction of zeros after so many rounds.

        >>> [round(Rounds(count=3).sparsity(done, 0.875), 3) for done in range(4)]
        [0.0, 0.5, 0.75, 0.875]
        """
        return target if done == self.count else 1 - (1 - target) ** (done / self.count)


class MagnitudePrune(Record, frozen=True, tag_field="kind", tag="magnitude_prune"):
    """Zero the smallest weights of every kernel while training goes on.

    Each layer reaches its own target: by itself, by name, or by a budget for all layers. ``begin``
    and ``end`` are fractions of the fine-tuning: with 4 epochs, 0.25 and 0.75 choose weights during
    the second and third, and the fourth trains what is left.
    """

    final_sparsity: Sparsity
    """Fraction of zeros in each kernel at the end; with a ``budget``, in all kernels together."""
    fine_tune: Fit
    """How the model trains meanwhile; early stopping judges the epochs after ``end`` only."""
    schedule: Literal["polynomial", "constant"] = "polynomial"
    """``polynomial`` raises the sparsity from ``initial_sparsity``, fast first and slowly at last:
    Zhu and Gupta, "To prune, or not to prune" (2017), equation 1. ``constant`` has it all at
    ``begin``; until ``end`` it may still exchange weights."""
    initial_sparsity: Sparsity = 0.0
    power: Annotated[float, Meta(gt=0)] = 3.0
    """Exponent of the polynomial; 1 is a straight line."""
    begin: Fraction = 0.0
    end: Fraction = 0.5
    updates_per_epoch: Positive = 8
    """How often the weights that go are chosen anew."""
    per_layer: dict[str, Sparsity] = {}
    """Targets of single layers, by name; 0 leaves a layer alone."""
    skip: tuple[str, ...] = ()
    """Names of layers left alone; ``*``, ``?`` and ``[]`` match as in a shell."""
    pattern: Pattern = Unstructured()
    distill: Distillation | bool = Distillation()
    """How the fine-tuning listens to the baseline beside the truth; false leaves the baseline out."""
    budget: Budget = "uniform"
    """What decides each layer's share of the zeros, before the training, from the weights that are
    given: ``uniform`` asks the same of each. ``global`` counts the smallest of all weights, ``lamp``
    compares each with the larger ones of its layer (Lee et al. 2021), ``sensitivity`` measures on
    validation samples what loss the zeros of a layer cost and lets each cost the same. Layers that
    ``per_layer`` names keep their targets and are not part of the sum."""
    rounds: Rounds | None = None
    """Prune in rounds with rewinding, in the place of ``schedule``, ``begin`` and ``end``."""

    def __post_init__(self) -> None:
        if self.begin > self.end:
            raise ValueError(f"begin must not exceed end ({self.end:g}), got {self.begin:g}")
        if self.schedule == "constant" and (self.initial_sparsity, self.power) != (0.0, 3.0):
            raise ValueError("initial_sparsity and power belong to the schedule 'polynomial'")
        for name, target in {"final_sparsity": self.final_sparsity, **self.per_layer}.items():
            if 0 < target < self.initial_sparsity:
                raise ValueError(
                    f"{name}: must not be below initial_sparsity ({self.initial_sparsity:g}), "
                    f"got {target:g}"
                )
        if isinstance(self.pattern, NOfM):
            self._check_n_of_m(self.pattern)
        if self.budget != "uniform":
            self._check_budget()
        if self.rounds is not None:
            self._check_rounds(self.rounds)

    def _check_budget(self) -> None:
        if not isinstance(self.pattern, Unstructured) or self.initial_sparsity:
            raise ValueError(
                f"budget {self.budget!r} counts single weights from none on: leave pattern and "
                "initial_sparsity out, or set budget = 'uniform'"
            )

    def _check_rounds(self, rounds: Rounds) -> None:
        timing = (self.schedule, self.initial_sparsity, self.power, self.begin, self.end)
        if timing != ("polynomial", 0.0, 3.0, 0.0, 0.5) or self.updates_per_epoch != 8:
            raise ValueError(
                "rounds say when weights go: leave schedule, initial_sparsity, power, begin, end and "
                "updates_per_epoch out"
            )
        if not isinstance(self.pattern, Unstructured):
            raise ValueError("rounds take single weights: leave pattern out")  # noqa: TRY004
        length, rest = divmod(self.fine_tune.epochs, rounds.parts)
        if rest:
            raise ValueError(
                f"fine_tune.epochs must be a multiple of {rounds.parts}, the parts that rounds "
                f"divide it into, got {self.fine_tune.epochs}"
            )
        if rounds.rewind == "weights" and rounds.to_epoch >= length:
            raise ValueError(
                f"rounds.to_epoch must be below the {length} epochs of a part, got {rounds.to_epoch}"
            )
        _restarting(self.fine_tune, rounds)

    def _check_n_of_m(self, pattern: NOfM) -> None:
        exact = pattern.zeros / pattern.of
        if self.schedule != "constant" or self.begin != 0:
            raise ValueError(
                "pattern n_of_m decides once, at the start: set schedule = 'constant' and begin = 0"
            )
        if any(
            target not in {0, exact} for target in (self.final_sparsity, *self.per_layer.values())
        ):
            raise ValueError(
                f"final_sparsity: {pattern.zeros} of {pattern.of} is exactly {exact:g}, "
                f"got {self.final_sparsity:g}"
            )

    def target(self, layer_name: str) -> float:
        """Fraction of zeros that is asked of this layer."""
        return self.per_layer.get(layer_name, self.final_sparsity)


def magnitude_prune(
    model: Any,
    step: MagnitudePrune,
    task: Task,
    *,
    seed: int,
    teacher: Teacher | None = None,
    on_epoch: OnEpoch | None = None,
    files: TrainingFiles | None = None,
) -> tuple[Any, History]:
    """Return a pruned and fine-tuned copy of a Keras model, and how the fine-tuning went.

    The copy is a plain tf-keras model, not compiled, with the names of the original; the
    original, its weights and its optimizer stay as they were. A layer that is used several times,
    or that lies in a model inside the model, is pruned like any other.

    Args:
        model: a functional or Sequential tf-keras model that was trained.
        step: what to prune and how.
        task: what to fine-tune on.
        seed: of the fine-tuning.
        teacher: whose answers the fine-tuning listens to.
        on_epoch: told about the end of each epoch.
        files: what the fine-tuning leaves on disk meanwhile.

    Raises:
        UserError: if ``skip`` or ``per_layer`` names no layer that could be meant, nothing is left
            to prune, the model cannot be copied layer by layer, a layer did not reach its target
            because too many of its weights are equal, or the fine-tuning fails (see ``fit``).
    """
    with needs_extra("compress"):
        import tensorflow_model_optimization as tfmot

    require_built(model)
    check_names(model, step)
    step = with_budget(model, step, task)
    fine_tune, callbacks = step.fine_tune, [tfmot.sparsity.keras.UpdatePruningStep()]
    batches_per_epoch = fine_tune.batches_per_epoch(len(task.train))
    wrapped = _wrap(copied(model), step, batches_per_epoch)
    keep_from = math.ceil(mask_updates(step, batches_per_epoch)[1] / batches_per_epoch)
    if step.rounds is not None:
        fine_tune = _restarting(fine_tune, step.rounds)
        steps_per_epoch = fine_tune.steps_per_epoch(len(task.train))
        callbacks.append(_rewinding(wrapped, step, step.rounds, steps_per_epoch=steps_per_epoch))
        keep_from = fine_tune.epochs - fine_tune.epochs // step.rounds.parts + 1
    history = fit(
        wrapped,
        task,
        fine_tune,
        seed=seed,
        teacher=teacher,
        callbacks=callbacks,
        on_epoch=on_epoch,
        keep_from=keep_from,
        files=files,
    )
    pruned = copied(model)
    pruned.set_weights(tfmot.sparsity.keras.strip_pruning(wrapped).get_weights())
    _require_targets(pruned, step)
    return pruned, history


def why_not_pruned(layer: Any, step: MagnitudePrune) -> str | None:
    """Say why a Keras layer is left alone, or None if it is pruned.

    Depthwise kernels are never pruned: they hold few weights, each channel hangs on a handful of
    them, and tfmot does not offer it.
    """
    pattern = next((p for p in step.skip if fnmatchcase(layer.name, p)), None)
    if pattern is not None:
        return f"skipped: '{pattern}'"
    if is_model(layer):
        return "is a model: its layers are pruned one by one"
    kernel = kernel_of(layer)
    if kernel is None:
        if all(len(weight.shape) < 2 for weight in layer.weights):
            return "has no kernel to prune"
        return f"layers of type {type(layer).__name__} cannot be pruned"
    if not layer.trainable:
        return "is frozen: trainable = False"
    if step.target(layer.name) == 0:
        return "no zeros are asked of it"
    return _why_pattern_does_not_fit(layer, tuple(kernel.shape), step.pattern)


def reasons_not_pruned(model: Any, step: MagnitudePrune) -> dict[str, str]:
    """Return why layers are left alone, by layer name."""
    reasons = {name: why_not_pruned(layer, step) for name, layer in named_layers(model)}
    return {name: why for name, why in reasons.items() if why}


def with_budget(model: Any, step: MagnitudePrune, task: Task) -> MagnitudePrune:
    """Return the step with the target of each layer, as its budget decides."""
    kernels = {
        layer.name: kernel.numpy()
        for _, layer in named_layers(model)
        if (kernel := kernel_of(layer)) is not None
        and why_not_pruned(layer, step) is None
        and layer.name not in step.per_layer
    }
    match step.budget:
        case "uniform":
            return step
        case "global" | "lamp":
            zeros = zeros_by_size(kernels, step.final_sparsity, lamp=step.budget == "lamp")
        case "sensitivity":
            loss_without = _loss_without(copied(model), step, task)
            zeros = zeros_by_sensitivity(kernels, step.final_sparsity, loss_without=loss_without)
        case _:
            assert_never(step.budget)
    targets = {name: count / kernels[name].size for name, count in zeros.items()}
    return msgspec.structs.replace(step, budget="uniform", per_layer={**targets, **step.per_layer})


def sparsity_by_layer(model: Any) -> dict[str, float]:
    """Return the fraction of zeros in the kernel of each layer that has one that can be pruned."""
    return {
        layer.name: float(np.mean(kernel.numpy() == 0))
        for _, layer in named_layers(model)
        if (kernel := kernel_of(layer)) is not None
    }


def mask_updates(step: MagnitudePrune, steps_per_epoch: int) -> tuple[int, int, int]:
    """Return first, last and distance of the training steps, from 1, that choose weights anew.

    >>> step = MagnitudePrune(final_sparsity=0.9, fine_tune=Fit(epochs=4), updates_per_epoch=4)
    >>> mask_updates(step, steps_per_epoch=100)
    (1, 176, 25)
    """
    steps = steps_per_epoch * step.fine_tune.epochs
    begin, end = max(1, round(step.begin * steps)), max(1, round(step.end * steps))
    distance = max(1, min(end - begin, round(steps_per_epoch / step.updates_per_epoch)))
    return begin, begin + (end - begin) // distance * distance, distance


def _loss_without(working: Any, step: MagnitudePrune, task: Task) -> Callable[[str, float], float]:
    """Return the loss of some validation samples by the layer that is pruned, and how far."""
    split = task.validation if len(task.validation) else task.calibration
    x, y = read_batch(task, split, np.arange(min(_SENSITIVITY_SAMPLES, len(split))))
    loss = keras_loss(loss_of(step.fine_tune.loss, task), task)
    kernels: dict[str, Any] = {layer.name: kernel_of(layer) for _, layer in named_layers(working)}

    def loss_without(name: str, share: float) -> float:
        whole = kernels[name].numpy()
        kernels[name].assign(without_smallest(whole, zeros=int(share * whole.size)))
        try:
            return float(np.mean(loss(y, working(x, training=False))))
        finally:
            kernels[name].assign(whole)

    return loss_without


def _restarting(config: Fit, rounds: Rounds) -> Fit:
    """Return the training with the schedule of its learning rate begun anew in each part."""
    match config.schedule:
        case Constant():
            return config
        case Cosine(cycle_epochs=None, warmup_epochs=0):
            length = config.epochs / rounds.parts
            schedule = msgspec.structs.replace(config.schedule, cycle_epochs=length)
            return msgspec.structs.replace(config, schedule=schedule)
        case other:
            raise ValueError(
                "rounds begin the learning rate anew: fine_tune.schedule must be 'constant', or "
                f"'cosine' without warmup_epochs and cycle_epochs, got {type(other).__name__}"
            )


def _rewinding(wrapped: Any, step: MagnitudePrune, rounds: Rounds, *, steps_per_epoch: int) -> Any:
    """Return the callback that prunes where a round begins, and rewinds.

    What it has to remember lies in weights of the first wrapper, so that a checkpoint holds it. To
    begin a round a second time changes nothing: weights that are zero stay the smallest.
    """
    import tf_keras

    to_weights = rounds.rewind == "weights"
    layers = {id(layer): layer for _, layer in named_layers(wrapped)}
    pruning = [layer for layer in layers.values() if hasattr(layer, "pruning_vars")]
    masks = {id(weight) for layer in pruning for weight in layer.non_trainable_weights}
    masks -= {id(weight) for layer in pruning for weight in layer.layer.weights}
    weights = [weight for weight in wrapped.weights if id(weight) not in masks]
    kept = [
        pruning[0].add_weight(
            name=f"rewound_{index}", shape=weight.shape, dtype=weight.dtype, trainable=False
        )
        for index, weight in enumerate(weights if to_weights else ())
    ]
    part = steps_per_epoch * step.fine_tune.epochs // rounds.parts

    class Rewinding(tf_keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
        def on_train_batch_begin(self, _batch: int, _logs: Any = None) -> None:
            optimizer = self.model.optimizer
            done = int(optimizer.iterations.numpy())
            if to_weights and done == rounds.to_epoch * steps_per_epoch:
                _assign(kept, weights)
            if done % part == 0 and (done or not to_weights):
                _choose(pruning, step, rounds, done=done // part + (not to_weights))
                if to_weights:
                    _assign(weights, kept)
                    _forget(optimizer)
                _mask(pruning)

    return Rewinding()


def _choose(pruning: list[Any], step: MagnitudePrune, rounds: Rounds, *, done: int) -> None:
    """Let the masks of tfmot's wrappers leave the weights that stay after so many rounds."""
    for layer in pruning:
        sparsity = rounds.sparsity(done, step.target(layer.layer.name))
        for weight, mask, _ in layer.pruning_vars:
            stays = without_smallest(weight.numpy(), zeros=_zeros(mask.shape, sparsity)) != 0
            mask.assign(stays.astype(np.float32))


def _mask(pruning: list[Any]) -> None:
    for layer in pruning:
        for weight, mask, _ in layer.pruning_vars:
            weight.assign(weight * mask)


def _forget(optimizer: Any) -> None:
    """Let an optimizer forget the gradients that it has seen, and not how many."""
    for state in optimizer.variables:
        if state is not optimizer.iterations and state is not optimizer.learning_rate:
            state.assign(np.zeros(state.shape, state.dtype.as_numpy_dtype))


def _assign(variables: list[Any], values: list[Any]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _zeros(shape: Any, sparsity: float) -> int:
    """Return how many zeros a kernel has at a sparsity; one weight stays, as with tfmot."""
    size = int(np.prod(shape))
    return min(size - 1, round(size * sparsity))


def _why_pattern_does_not_fit(layer: Any, shape: tuple[int, ...], pattern: Pattern) -> str | None:
    match pattern:
        case NOfM() if type(layer).__name__ not in {"Dense", "Conv2D"}:
            return f"layers of type {type(layer).__name__} have no n_of_m pattern"
        case NOfM(of=of) if shape[-2] % of:
            return f"its {shape[-2]} input channels are not a multiple of {of}"
        case Block() if len(shape) != 2:
            return f"a block needs a kernel of two axes, this has {len(shape)}"
        case Block(height=height, width=width) if shape[0] % height or shape[1] % width:
            return f"blocks of {height}×{width} do not tile its {shape[0]}×{shape[1]} kernel"
    return None


def check_names(model: Any, step: MagnitudePrune) -> None:
    """Raise a UserError if ``skip`` or ``per_layer`` name no layer that could be meant.

    Also if nothing is left to prune. Asked before a long training, of the untrained network.
    """
    layers = [layer for _, layer in named_layers(model)]
    names = [layer.name for layer in layers]
    for pattern in step.skip:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"skip: no layer is named '{pattern}'; there are {', '.join(names)}")
    for name, target in step.per_layer.items():
        if name not in names:
            raise UserError(f"per_layer: no layer is named '{name}'; there are {', '.join(names)}")
        why_not = why_not_pruned(layers[names.index(name)], step)
        if target > 0 and why_not is not None:
            raise UserError(f"per_layer: '{name}' cannot be pruned to {target:g}: {why_not}")
    pruned = [layer.name for layer in layers if why_not_pruned(layer, step) is None]
    if not pruned:
        reasons = "; ".join(f"{layer.name}: {why_not_pruned(layer, step)}" for layer in layers)
        raise UserError(f"magnitude_prune: nothing is left to prune ({reasons})")
    twice = sorted({name for name in pruned if names.count(name) > 1})
    if twice:
        raise UserError(
            f"model: several layers are named {', '.join(twice)}; "
            "give the layers of models inside the model names of their own"
        )


def _wrap(model: Any, step: MagnitudePrune, steps_per_epoch: int) -> Any:
    """Return the model with tfmot's wrapper around each layer that is pruned; weights are shared."""
    from tensorflow_model_optimization.sparsity.keras import prune_low_magnitude

    calls = dict(_calls(model))

    def wrap(layer: Any) -> Any:
        if why_not_pruned(layer, step) is not None:
            return layer
        return prune_low_magnitude(
            layer,
            pruning_schedule=_tfmot_schedule(step, layer.name, steps_per_epoch, calls[layer.name]),
            **_tfmot_pattern(step.pattern),
        )

    return cloned(model, wrap)


def _calls(model: Any, times: int = 1) -> Iterator[tuple[str, int]]:
    """Yield how often a training step calls each layer of a model that was just copied."""
    for layer in model.layers:
        calls = times * len(layer.inbound_nodes)
        if is_model(layer):
            yield from _calls(layer, calls)
        else:
            yield layer.name, calls


def _tfmot_schedule(step: MagnitudePrune, layer_name: str, steps_per_epoch: int, calls: int) -> Any:
    """Return the schedule of a layer; tfmot counts a step at each of its calls."""
    from tensorflow_model_optimization.sparsity.keras import ConstantSparsity, PolynomialDecay

    if step.rounds is not None:  # they set the masks themselves
        return ConstantSparsity(step.target(layer_name), begin_step=_NEVER, frequency=_NEVER)
    begin, end, distance = (calls * at for at in mask_updates(step, steps_per_epoch))
    target = step.target(layer_name)
    # With a single update there is no curve to follow, and tfmot would divide by end - begin.
    if step.schedule == "constant" or begin == end:
        return ConstantSparsity(target, begin_step=begin, end_step=end, frequency=distance)
    return PolynomialDecay(
        initial_sparsity=step.initial_sparsity,
        final_sparsity=target,
        begin_step=begin,
        end_step=end,
        power=step.power,
        frequency=distance,
    )


def _tfmot_pattern(pattern: Pattern) -> dict[str, Any]:
    match pattern:
        case Unstructured():
            return {}
        case NOfM():
            return {"sparsity_m_by_n": (pattern.zeros, pattern.of)}
        case Block():
            return {
                "block_size": (pattern.height, pattern.width),
                "block_pooling_type": {"average": "AVG", "max": "MAX"}[pattern.pooling],
            }


def _require_targets(model: Any, step: MagnitudePrune) -> None:
    """Raise where the weights themselves do not show the zeros that were asked for."""
    unit = step.pattern.height * step.pattern.width if isinstance(step.pattern, Block) else 1
    for _, layer in named_layers(model):
        kernel = kernel_of(layer)
        if kernel is None or why_not_pruned(layer, step) is not None:
            continue
        kernel, target = kernel.numpy(), step.target(layer.name)
        units = kernel.size // unit
        wanted = units - max(1, round(units * (1 - target)))
        zeros = int(np.sum(kernel == 0))
        if zeros < (wanted - 1) * unit:
            raise UserError(
                f"magnitude_prune: '{layer.name}' has {zeros} zeros in {kernel.size} weights where "
                f"{wanted * unit} were asked for; weights of equal size cannot be told apart, so "
                "prune before the weights are clustered or quantized"
            )
