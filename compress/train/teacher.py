"""A teacher beside the network that learns: a trained network whose answers the loss listens to.

The teacher is asked about each batch as it is trained on, augmentation included, inside the very graph
that moves the weights: nothing of its answers is kept, so a training that goes on needs none of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from compress.data.task import Task
from compress.networks.named_layers import named_layers
from compress.train.losses import Measured
from compress.train.trainable import why_not_trained
from deploy.errors import UserError
from deploy.record import Record

_LEAST_OF_A_CLASS = 1e-30  # a softmax in float32 still tells such probabilities apart
_LEAST_OF_A_LABEL = 1e-7  # the complement of a smaller one is 1


class Distillation(Record, frozen=True):
    """Learn from a teacher's answers beside the truth: Hinton et al., "Distilling" (2015).

    The teacher of a recipe's steps is its baseline. The loss is ``(1 − weight) · truth + weight ·
    distance``, where the distance to the teacher's answers is, of classes, ``temperature² · KL`` of
    the softened probabilities; of labels the mean of each label's own; of values, in standard
    deviations of the targets, and of reconstructions the mean of squares.
    """

    weight: Annotated[float, Meta(ge=0, le=1)] = 0.9
    """How much the teacher's answers count beside the truth; 1 leaves the truth out."""
    temperature: Annotated[float, Meta(gt=0)] = 1.0
    """By how much logits are divided first: above 1, what the teacher holds of wrong classes counts
    more, and a short training reaches less of the truth. Of classes and labels only."""
    hints: dict[str, str] = {}
    """Layers that shall give what layers of the teacher give, by name: ``{ conv2 = "conv2" }``.
    Where widths differ, a linear map between the two is learned beside and dropped in the end:
    Romero et al., "FitNets" (2015), equation 3."""
    hint_weight: Annotated[float, Meta(gt=0)] = 1.0
    """How much each hint's squared distance counts, as a share of the teacher's mean square."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """Who teaches a training, and how.

    Attributes:
        model: a trained tf-keras model for the task; it is only asked. Not the one that learns.
        how: what is listened to.
    """

    model: Any
    how: Distillation = Distillation()


def why_not_taught(student: Any, teacher: Teacher | None, task: Task) -> str | None:
    """Say why a model cannot learn from a teacher, or None if it can or there is none."""
    if teacher is None:
        return None
    if teacher.model is student:
        return "teacher: a model cannot teach itself while it learns; give a copy"
    why_not = why_not_trained(teacher.model, task)
    if why_not is not None:
        return why_not.replace("model:", "teacher:", 1)
    return why_not_hinted(student, teacher.how) or why_not_hinting(teacher.model, teacher.how)


def why_not_hinted(student: Any, how: Distillation) -> str | None:
    """Say why the layers that hints are for are not there, or None if they are."""
    return _why_not_there(how.hints, _hintable(student), "the network that learns")


def why_not_hinting(teacher: Any, how: Distillation) -> str | None:
    """Say why the layers that give hints are not there, or None if they are."""
    return _why_not_there(how.hints.values(), _hintable(teacher), "the teacher")


def output_distance(task: Task, how: Distillation) -> Measured:
    """Return how far answers are from the teacher's: from both, ``(n, ...)``, to a number a sample.

    The gradient goes to the second alone if the first has none.
    """
    import tensorflow as tf

    temperature = how.temperature
    unit = np.array(task.scaling.std, np.float32) if task.scaling else np.float32(1)

    def of_classes(taught: Any, given: Any) -> Any:
        # Logits up to a constant, which a softmax does not see.
        wanted, found = (
            tf.nn.log_softmax(tf.math.log(tf.maximum(p, _LEAST_OF_A_CLASS)) / temperature)
            for p in (taught, given)
        )
        return temperature**2 * tf.reduce_sum(tf.exp(wanted) * (wanted - found), axis=-1)

    def logits(p: Any) -> Any:
        p = tf.clip_by_value(p, _LEAST_OF_A_LABEL, 1 - _LEAST_OF_A_LABEL)
        return (tf.math.log(p) - tf.math.log1p(-p)) / temperature

    def of_labels(taught: Any, given: Any) -> Any:
        wanted, found = logits(taught), logits(given)
        yes = tf.sigmoid(wanted)
        apart = yes * (tf.math.log_sigmoid(wanted) - tf.math.log_sigmoid(found))
        apart += (1 - yes) * (tf.math.log_sigmoid(-wanted) - tf.math.log_sigmoid(-found))
        return temperature**2 * tf.reduce_mean(apart, axis=-1)

    def of_values(taught: Any, given: Any) -> Any:
        apart = tf.square((given - taught) / unit)
        return tf.reduce_mean(tf.reshape(apart, (tf.shape(apart)[0], -1)), axis=-1)

    match task.kind:
        case "classification":
            return of_classes
        case "multi_label":
            return of_labels
        case "regression" | "reconstruction":
            return of_values


class Lesson:
    """A teacher and its student in the graph of a training step.

    Attributes:
        variables: what is learned beside the student: the maps of hints whose widths differ.
    """

    def __init__(
        self, teacher: Teacher, student: Any, task: Task, *, example: Any, seed: int
    ) -> None:
        """Find the layers of the hints.

        Args:
            teacher: who teaches; ``why_not_taught`` had nothing against it.
            student: the model that learns.
            task: what is learned.
            example: inputs, of which shapes count.
            seed: of the first values of the maps.

        Raises:
            UserError: if a hint's two layers differ in more than their width.
        """
        self._teacher, self._how = teacher.model, teacher.how
        self._distance = output_distance(task, teacher.how)
        students, teachers = _hintable(student), _hintable(teacher.model)
        self._student_layers = [students[name] for name in teacher.how.hints]
        self._teacher_layers = [teachers[name] for name in teacher.how.hints.values()]
        self.variables: list[Any] = []
        self._maps: list[Any] = []
        if teacher.how.hints:
            self._make_maps(student, example, seed)

    def _make_maps(self, student: Any, example: Any, seed: int) -> None:
        import tensorflow as tf

        with _recording(self._student_layers) as seen:
            student(example[:1], training=False)
        with _recording(self._teacher_layers) as wanted:
            self._teacher(example[:1], training=False)
        for at, (name, other) in enumerate(self._how.hints.items()):
            given, taught = ([tensor.shape for tensor in each[at]] for each in (seen, wanted))
            if [shape[:-1] for shape in given] != [shape[:-1] for shape in taught]:
                raise UserError(
                    f"hints: {name!r} gives {_sizes(given)}, and {other!r} of the teacher "
                    f"{_sizes(taught)}; they may differ in their last axis alone"
                )
            ours, theirs = given[0][-1], taught[0][-1]
            if ours == theirs:
                self._maps.append(None)
                continue
            limit = (6 / (ours + theirs)) ** 0.5  # Glorot and Bengio (2010), equation 16
            draw = tf.constant([seed, at], tf.int64)
            first = tf.random.stateless_uniform((ours, theirs), draw, -limit, limit)
            self.variables.append(tf.Variable(first, name=f"hint_{at}"))
            self._maps.append(self.variables[-1])

    @contextlib.contextmanager
    def about(self, x: Any) -> Iterator[Callable[[Any, Any], tuple[Any, Any]]]:
        """Ask the teacher about a batch; yield what makes the loss that it asks for.

        The student is to be called on the batch once inside the block. What is yielded takes the
        loss without a teacher, a scalar, and the student's outputs; it gives what is made small
        instead and the distance to the teacher in it.
        """
        import tensorflow as tf

        with _recording(self._teacher_layers) as wanted:
            theirs = self._teacher(x, training=False)
        weight = self._how.weight
        with _recording(self._student_layers) as seen:

            def mixed(truth: Any, outputs: Any) -> tuple[Any, Any]:
                distance = tf.reduce_mean(self._distance(theirs, outputs))
                hints = sum(self._hints(seen, wanted), tf.constant(0.0))
                hinted = self._how.hint_weight * hints
                return (1 - weight) * truth + weight * distance + hinted, distance

            yield mixed

    def _hints(self, seen: list[list[Any]], wanted: list[list[Any]]) -> Iterator[Any]:
        """Yield how far what layers gave is from what the teacher's gave, call by call."""
        import tensorflow as tf

        for ours, theirs, mapped in zip(seen, wanted, self._maps, strict=True):
            for given, aim in zip(ours, theirs, strict=True):
                reached = given if mapped is None else tf.tensordot(given, mapped, 1)
                yield tf.reduce_mean(tf.square(reached - aim)) / (
                    tf.reduce_mean(tf.square(aim)) + _LEAST_OF_A_LABEL
                )


@contextlib.contextmanager
def _recording(watched: list[Any]) -> Iterator[list[list[Any]]]:
    """Note what layers give inside the block, by their place in the list, one item a call."""
    seen: list[list[Any]] = [[] for _ in watched]

    def noting(call: Callable[..., Any], results: list[Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            results.append(result)
            return result

        return noted

    before = [layer.__dict__.get("call") for layer in watched]
    try:
        for layer, results in zip(watched, seen, strict=True):
            layer.__dict__["call"] = noting(layer.call, results)  # past Keras, as `dropping` does
        yield seen
    finally:
        for layer, own in reversed(list(zip(watched, before, strict=True))):
            if own is None:
                layer.__dict__.pop("call", None)
            else:
                layer.__dict__["call"] = own


def _hintable(model: Any) -> dict[str, Any]:
    """Return the layers of a model by name; one inside a training wrapper by its own name too."""
    found = {}
    for name, layer in named_layers(model):
        found[name] = layer
        inner = getattr(layer, "layer", None)
        if inner is not None:
            found[name.removesuffix(layer.name) + inner.name] = inner
    return found


def _why_not_there(names: Any, layers: dict[str, Any], whose: str) -> str | None:
    for name in names:
        if name not in layers:
            return f"hints: {whose} has no layer {name!r}; there are {', '.join(layers)}"
    return None


def _sizes(shapes: list[Any]) -> str:
    return " and ".join(str(tuple(shape[1:])) for shape in shapes)
