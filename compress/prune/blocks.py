"""Take whole residual blocks out of a network: fewer layers, one behind the other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from compress.data.task import Task
from compress.networks.rewire import copied, rewired
from compress.prune.calls import calls_of, listed, opened
from compress.prune.copied import require_built
from compress.prune.criteria import some_samples
from compress.train.fit import Fit, History, OnEpoch, TrainingFiles, fit
from compress.train.losses import keras_loss, loss_of, targets
from compress.train.teacher import Distillation, Teacher
from deploy.errors import UserError
from deploy.record import Record

Positive = Annotated[int, Meta(ge=1)]

_BATCH = 128
_ENDING_IN_THEIR_ACTIVATION = frozenset(
    {"Activation", "Dense", "Conv1D", "Conv2D", "Conv3D", "DepthwiseConv2D", "SeparableConv2D"}
)


class PruneBlocks(Record, frozen=True, tag_field="kind", tag="prune_blocks"):
    """Take residual blocks out, so that their shortcuts alone are left, and train what remains.

    A narrow layer still costs its call and its passes over the activations; a layer that is gone
    costs nothing in any runtime: Elkerdawy et al., "To filter prune, or to layer prune, that is the
    question" (2020).
    """

    fine_tune: Fit
    """How the model trains afterwards."""
    blocks: tuple[str, ...] = ()
    """The blocks that go, by the names of the ``Add`` layers that end them; ``*``, ``?`` and ``[]``
    match as in a shell."""
    count: Positive | None = None
    """Instead: so many go, one after the other, each time the one without which the loss is least,
    before any training."""
    samples: Positive = 1024
    """Training samples that ``count`` looks at."""
    distill: Distillation | bool = Distillation()
    """How the fine-tuning listens to the baseline beside the truth; false leaves the baseline out."""

    def __post_init__(self) -> None:
        if bool(self.blocks) == (self.count is not None):
            raise ValueError("give either blocks, by name, or count, how many")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A part of a network whose result is added to what it was given.

    Attributes:
        name: of the ``Add`` that ends it.
        layers: names of the layers that go with it, in the order in which Keras runs them.
        shortcut: which of the two tensors of the ``Add`` is what the block was given.
        repeated: name of the activation behind it that does nothing to what its shortcut gives.
    """

    name: str
    layers: tuple[str, ...]
    shortcut: int
    repeated: str | None = None


def prune_blocks(
    model: Any,
    step: PruneBlocks,
    task: Task,
    *,
    seed: int,
    teacher: Teacher | None = None,
    on_epoch: OnEpoch | None = None,
    files: TrainingFiles | None = None,
) -> tuple[Any, History]:
    """Return a model without some of its residual blocks, fine-tuned, and how that went.

    Models inside the model are opened up: their layers are called ``inner/layer``.

    Args:
        model: a functional or Sequential tf-keras model that was trained; left alone.
        step: which blocks go and how it trains.
        task: what to judge blocks and fine-tune on.
        seed: of the fine-tuning, and of which samples are looked at.
        teacher: whose answers the fine-tuning listens to.
        on_epoch: told about the end of each epoch.
        files: what the fine-tuning leaves on disk meanwhile.

    Raises:
        UserError: if no block is named so, there are fewer than asked for, or the fine-tuning fails
            (see ``fit``).
    """
    require_built(model)
    check_blocks(model, step)
    made = without_blocks(model, step)
    # Without one block another sum may become one: that was none of the network's that was given.
    known = {block.name for block in residual_blocks(opened(model))[0]}
    for _ in range(step.count or 0):
        made = _without_least_missed(made, known, step, task, seed=seed)
    history = fit(
        made, task, step.fine_tune, seed=seed, teacher=teacher, on_epoch=on_epoch, files=files
    )
    return made, history


def without_blocks(model: Any, step: PruneBlocks) -> Any:
    """Return a network, trained or not, without the blocks that a step names, models in it opened up."""
    graph = opened(model)
    return without(graph, _named(residual_blocks(graph)[0], step.blocks))


def residual_blocks(model: Any) -> tuple[list[Block], dict[str, str]]:
    """Return the blocks of a network that may go, in its order, and why other ``Add`` layers stay.

    Args:
        model: a graph of layers in which no model lies.
    """
    graph = _Graph(model)
    found, reasons = [], {}
    for node in graph.calls:
        if _is_ours(node.layer, {"Add"}):
            block = graph.block_that_ends_in(node)
            if isinstance(block, Block):
                found.append(block)
            else:
                reasons[node.layer.name] = block
        elif _adds_without_a_layer(node.layer):
            reasons[node.layer.name] = "adds by +; write layers.Add()([x, y])"
    return found, reasons


def without(model: Any, blocks: Sequence[Block]) -> Any:
    """Return a network without some of its blocks: a plain model with weights of its own."""
    gone = {name for block in blocks for name in (*block.layers, block.repeated)}
    shortcuts = {block.name: block.shortcut for block in blocks}
    made: list[tuple[Any, Any]] = []

    def make(layer: Any, name: str) -> Callable[..., Any]:
        if name in shortcuts:
            return lambda tensors: tensors[shortcuts[name]]
        if name in gone:
            return _handed_through
        twin: Callable[..., Any] = copied(layer, name)
        made.append((layer, twin))
        return twin

    result = rewired(model, make)
    for layer, twin in made:
        twin.set_weights(layer.get_weights())
    return result


def block_facts(original: Any, made: Any) -> dict[str, str]:
    """Say where residual blocks went, beside the layer with weights that comes next.

    Args:
        original: the model that the step was given.
        made: the model that it gave.
    """
    left = {layer.name for layer in made.layers}
    graph = _Graph(opened(original))
    order = [n.layer.name for n in graph.calls if n.layer.weights and n.layer.name in left]
    said: dict[str, list[str]] = {}
    # A network without weights has no layer to say it beside.
    for block in _gone(graph.model, left) if order else ():
        behind = graph.behind(block)
        after = next((name for name in order if name in behind), None)
        where, name = ("before", after) if after else ("behind", order[-1])
        also = (block.repeated,) if block.repeated and block.repeated not in left else ()
        what = f"without {block.name} ({', '.join((*block.layers, *also))}) {where} it"
        said.setdefault(name, []).append(what)
    return {name: "; ".join(all_of) for name, all_of in said.items()}


def with_blocks_named(step: PruneBlocks, original: Any, made: Any) -> PruneBlocks:
    """Return a step that does again what was done.

    It names the blocks that went, in place of a pattern or ``count``; of blocks in each other the
    outer ones.

    Args:
        step: the step.
        original: the model that it was given.
        made: the model that it gave.
    """
    gone = _gone(opened(original), {layer.name for layer in made.layers})
    return msgspec.structs.replace(step, blocks=tuple(block.name for block in gone), count=None)


def check_blocks(model: Any, step: PruneBlocks) -> None:
    """Raise a UserError if the step names a block that is not there, or asks for too many.

    Asked before a long training, of the untrained network.
    """
    blocks, reasons = residual_blocks(opened(model))
    there = f"there are {', '.join(block.name for block in blocks)}" if blocks else "there are none"
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    there += f" ({why})" if why else ""
    for pattern in step.blocks:
        if not _named(blocks, (pattern,)):
            raise UserError(f"blocks: no residual block that can go is named '{pattern}'; {there}")
    if step.count is not None and step.count > (most := _outermost(blocks)):
        raise UserError(f"count: {most} residual blocks can go, got {step.count}; {there}")


def _named(blocks: Iterable[Block], patterns: Sequence[str]) -> list[Block]:
    return [b for b in blocks if any(fnmatchcase(b.name, pattern) for pattern in patterns)]


def _gone(graph: Any, left: Collection[str]) -> list[Block]:
    """Return the blocks of a network that are not among the layers left, but for those in others."""
    gone = [block for block in residual_blocks(graph)[0] if block.name not in left]
    inside = {name for block in gone for name in block.layers}
    return [block for block in gone if block.name not in inside]


def _outermost(blocks: Sequence[Block]) -> int:
    """Return how many blocks lie in no other: a block takes those inside it along."""
    inside = {name for block in blocks for name in block.layers}
    return sum(block.name not in inside for block in blocks)


def _without_least_missed(
    model: Any, known: Collection[str], step: PruneBlocks, task: Task, *, seed: int
) -> Any:
    """Return the network without the one block, of those known, that it can best do without."""
    x, y = some_samples(task, step.samples, seed)

    def loss_without(block: Block) -> float:
        loss = _mean_loss(without(model, [block]), step, task, x, y)
        return np.inf if np.isnan(loss) else loss

    blocks = [block for block in residual_blocks(model)[0] if block.name in known]
    return without(model, [min(blocks, key=loss_without)])


def _mean_loss(model: Any, step: PruneBlocks, task: Task, x: Any, y: Any) -> float:
    loss, wanted = keras_loss(loss_of(step.fine_tune.loss, task), task), targets(task, y)
    parts = [slice(begin, begin + _BATCH) for begin in range(0, len(x), _BATCH)]
    each = [np.asarray(loss(wanted[p], model(x[p], training=False)), np.float64) for p in parts]
    return float(np.concatenate(each).mean())


def _handed_through(*args: Any, **kwargs: Any) -> Any:
    """Stand in for a layer that is gone: what it gives is read by nothing that is left."""
    return listed((args, kwargs))[0]


class _Graph:
    """Who makes and who reads each tensor of a network."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.calls = list(calls_of(model))
        self.outputs = {id(tensor) for tensor in model.outputs}
        self.maker = {id(tensor): node for node in self.calls for tensor in listed(node.outputs)}
        self.readers: dict[int, list[Any]] = {}
        self.called: dict[int, list[Any]] = {}
        for node in self.calls:
            self.called.setdefault(id(node.layer), []).append(node)
            for tensor in () if node.is_input else listed(node.keras_inputs):
                self.readers.setdefault(id(tensor), []).append(node)

    def block_that_ends_in(self, add: Any) -> Block | str:
        """Return the block that an ``Add`` ends, or why it ends none that could go."""
        tensors = listed(add.keras_inputs)
        if len(tensors) != 2:
            return f"adds {len(tensors)} tensors"
        if len(self.called[id(add.layer)]) > 1:
            return "is called more than once"
        for shortcut, branch in ((0, 1), (1, 0)):
            inside = self._between(tensors[shortcut], tensors[branch])
            if inside:
                (result,) = listed(add.outputs)
                if (tensors[shortcut].shape, tensors[shortcut].dtype) != (
                    result.shape,
                    result.dtype,
                ):
                    return "spreads what its block was given over another shape or type"
                return self._why_not_gone(inside, add) or Block(
                    name=add.layer.name,
                    layers=tuple(node.layer.name for node in self.calls if node in inside),
                    shortcut=shortcut,
                    repeated=self._repeated(tensors[shortcut], add),
                )
        return "neither of its tensors is made from the other alone, as where a shortcut has layers"

    def behind(self, block: Block) -> set[str]:
        """Return the names of all layers that hang on what a block gives."""
        end = next(node for node in self.calls if node.layer.name == block.name)
        waiting, seen = listed(end.outputs), set()
        while waiting:
            for node in self.readers.get(id(waiting.pop()), []):
                if node.layer.name not in seen:
                    seen.add(node.layer.name)
                    waiting += listed(node.outputs)
        return seen

    def _between(self, begin: Any, end: Any) -> list[Any]:
        """Return all calls between two tensors; none if something else is read on the way too."""
        inside: list[Any] = []
        waiting = [end]
        while waiting:
            tensor = waiting.pop()
            node = self.maker[id(tensor)]
            if tensor is begin or node in inside:
                continue
            if node.is_input:
                return []
            inside.append(node)
            waiting += listed(node.keras_inputs)
        return inside

    def _why_not_gone(self, inside: list[Any], add: Any) -> str | None:
        """Say why calls have to stay, or None if nothing outside would miss them."""
        for node in inside:
            name, outputs = node.layer.name, listed(node.outputs)
            if any(call not in inside for call in self.called[id(node.layer)]):
                return f"{name!r} in its block is called elsewhere too"
            if len(outputs) != 1:
                return f"{name!r} in its block gives {len(outputs)} tensors"
            readers = self.readers.get(id(outputs[0]), [])
            if id(outputs[0]) in self.outputs or any(r not in (*inside, add) for r in readers):
                return f"{name!r} in its block is read outside of it too"
        return None

    def _repeated(self, shortcut: Any, add: Any) -> str | None:
        """Return the activation behind a block that its shortcut has gone through already."""
        readers = self.readers.get(id(listed(add.outputs)[0]), [])
        if len(readers) != 1 or len(self.called[id(readers[0].layer)]) > 1:
            return None
        behind, before = _rectifier(readers[0].layer), _rectifier(self.maker[id(shortcut)].layer)
        only = _is_ours(readers[0].layer, {"ReLU", "Activation"})
        return readers[0].layer.name if only and behind is not None and behind == before else None


def _is_ours(layer: Any, kinds: Collection[str]) -> bool:
    """Say whether a layer is one of Keras itself, of one of these kinds: what others do is not known."""
    return type(layer).__name__ in kinds and type(layer).__module__.startswith("tf_keras.")


def _adds_without_a_layer(layer: Any) -> bool:
    function = layer.get_config()["function"] if _is_ours(layer, {"TFOpLambda"}) else ""
    return function in {"__operators__.add", "math.add"}


def _rectifier(layer: Any) -> float | None:
    """Return the largest number that a rectifier lets through; None if the layer ends in none.

    What went through it once is left as it is by a second one.
    """
    if _is_ours(layer, {"ReLU"}):
        plain = layer.negative_slope == 0 and layer.threshold == 0
        most = np.inf if layer.max_value is None else float(layer.max_value)
        return most if plain else None
    if not _is_ours(layer, _ENDING_IN_THEIR_ACTIVATION):
        return None
    named = getattr(layer.activation, "__name__", "")
    return {"relu": np.inf, "relu6": 6.0}.get(named)
