"""What one batch does to the weights: the part of the loop that runs as a TensorFlow graph.

Everything that holds state is made here, under the strategy of ``tf.distribute`` that is in force. With
several accelerators each computes its part of a batch; sums over all of them move the weights, so that
these move as with one, up to the order of summation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from compress.data.rows import Rows
from compress.train.draws import Draws, drawing_from
from compress.train.optimizers import (
    GradientDescent,
    Optimizer,
    keras_optimizer,
    momentum_name,
    step_size,
)
from compress.train.regularise import (
    Regularise,
    dropping,
    kernels,
    limited,
    others,
    penalty,
    soft_threshold,
)
from compress.train.teacher import Lesson
from deploy.errors import UserError

Augment = Callable[[Any, Any, Any, Rows | None], tuple[Any, Any]]
"""``(x, y, seed, rows) -> (x, y)`` of one training batch, in TensorFlow."""

_CLIP = {"clip_value": "clipvalue", "clip_norm": "clipnorm", "clip_global_norm": "global_clipnorm"}


class Step:
    """A model, its optimizer and its metrics, with the graphs that move them.

    Loss, metrics and optimizer are the model's own: it is compiled with them.

    Args:
        model: a built tf-keras model.
        optimizer: how its weights move.
        regularise: what is added to the loss and done to the weights.
        loss: as ``Model.compile`` takes it.
        metrics: likewise.
        seed: of everything that is drawn.
        example: a batch, of which shapes and types count.
        augment: what is done to a training batch first.
        lesson: makes what a teacher teaches the model; None trains without one.
        moves_momentum: whether the momentum is set at each step.
        xla: compile the graphs.
    """

    def __init__(
        self,
        model: Any,
        *,
        optimizer: Optimizer,
        regularise: Regularise,
        loss: Any,
        metrics: Sequence[Any],
        seed: int,
        example: tuple[Any, Any],
        augment: Augment | None = None,
        lesson: Callable[[], Lesson] | None = None,
        moves_momentum: bool = False,
        xla: bool = False,
    ) -> None:
        import tensorflow as tf
        import tf_keras

        self.model = model
        self._settings = optimizer
        self._regularise = regularise
        self._seed = seed
        self._augment = augment
        self._draws = Draws()
        self._strategy = tf.distribute.get_strategy()
        with self._strategy.scope():
            self.optimizer = keras_optimizer(
                optimizer,
                weight_decay=regularise.weight_decay,
                decays_not=others(model),
                clip={_CLIP[name]: limit for name, limit in regularise.clipping().items()},
            )
            model.compile(optimizer=self.optimizer, loss=loss, metrics=list(metrics))
            outputs = model(example[0][:1], training=False)
            model.compiled_loss.build(outputs)
            model.compiled_metrics.build(outputs, example[1][:1])
            self._lesson = lesson() if lesson is not None else None
            self._learned = list(model.trainable_variables)
            if self._lesson is not None:
                self._learned += self._lesson.variables
            self.optimizer.build(self._learned)
            self._kernels = kernels(model)
            self._penalty = (
                tf_keras.metrics.Mean("penalty")
                if regularise.l1 or regularise.l2 or model.losses
                else None
            )
            self._distance: Any = tf_keras.metrics.Mean("distance") if self._lesson else None
            self._sums = (
                [
                    tf.Variable(
                        tf.zeros(w.shape, w.dtype),
                        trainable=False,
                        synchronization=tf.VariableSynchronization.ON_READ,
                        aggregation=tf.VariableAggregation.SUM,
                    )
                    for w in self._learned
                ]
                if isinstance(optimizer, GradientDescent)
                else []
            )
            self._momentum = momentum_name(optimizer) if moves_momentum else None
            if self._momentum is not None:
                first = getattr(self.optimizer, self._momentum)
                # Keras reads the attribute when it builds the graph: a variable stays in it.
                setattr(self.optimizer, self._momentum, tf.Variable(first, trainable=False))
                self._first_momentum = first
        x, y = (tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in example)
        number, whole = tf.TensorSpec((), tf.float32), tf.TensorSpec((), tf.int64)
        graph = {"jit_compile": True} if xla else {}
        self._update = tf.function(self._one_update, [x, y, whole, whole, number, number], **graph)
        self._accumulate = tf.function(self._one_share, [x, y, whole, whole, number], **graph)
        self._apply_sums = tf.function(self._one_descent, [number, number], **graph)
        self._evaluate = tf.function(self._one_evaluation, [x, y, whole], **graph)
        self._xla = xla

    @property
    def steps(self) -> int:
        """Steps made so far, as the graph counts them: never out of step with the weights."""
        return int(self.optimizer.iterations.numpy())

    def update(
        self, x: Any, y: Any, *, samples: int, at: int, rate: float, momentum: float | None
    ) -> Any:
        """Move the weights by one batch; return its loss, a scalar tensor.

        Without the penalty and without what a teacher adds.

        Args:
            x: inputs of this worker's part of the batch, ``(b, ...)``.
            y: targets, ``(b, outputs)``.
            samples: in the whole batch.
            at: batches before this one, over all epochs: it decides what is drawn.
            rate: the learning rate.
            momentum: the momentum; None leaves the optimizer's.
        """
        return self._compiled(self._update, x, y, samples, at, rate, momentum or 0.0)

    def accumulate(self, x: Any, y: Any, *, samples: int, at: int, share: float) -> Any:
        """Add ``share`` of a batch's gradient up; return its loss. See ``update``."""
        return self._compiled(self._accumulate, x, y, samples, at, share)

    def descend(self, *, rate: float, momentum: float | None) -> None:
        """Move the weights by the gradients that were added up, and forget these."""
        self._compiled(self._apply_sums, rate, momentum or 0.0)

    def forget_sums(self) -> None:
        """Forget gradients that were added up and not used."""
        import tensorflow as tf

        for total in self._sums:
            total.assign(tf.zeros(total.shape, total.dtype))

    def evaluate(self, x: Any, y: Any, *, samples: int) -> None:
        """Let the metrics see this worker's part of a batch of ``samples``; nothing is trained."""
        self._compiled(self._evaluate, x, y, samples)

    def metrics(self) -> dict[str, float]:
        """Return the mean loss and the metrics over what they have seen."""
        return {metric.name: float(metric.result()) for metric in self.model.metrics}

    def means(self) -> dict[str, float]:
        """Return the means over the steps of what there is beside the loss.

        ``penalty`` is that of the regularisation, ``distance`` that to a teacher's answers.
        """
        return {mean.name: float(mean.result()) for mean in self._beside()}

    def _beside(self) -> list[Any]:
        return [mean for mean in (self._penalty, self._distance) if mean is not None]

    def reset(self) -> None:
        """Let the metrics forget what they have seen."""
        self.model.reset_metrics()
        for mean in self._beside():
            mean.reset_state()

    def variables(self) -> dict[str, Any]:
        """Return everything that a training which goes on has to have again, by name."""
        metrics = [*self.model.metrics, *self._beside()]
        groups = {
            "model": self.model.weights,
            "lesson": self._lesson.variables if self._lesson else [],
            "optimizer": self.optimizer.variables,
            "metric": [variable for metric in metrics for variable in metric.variables],
        }
        return {
            f"{group}_{index}": variable
            for group, variables in groups.items()
            for index, variable in enumerate(variables)
        }

    def close(self) -> None:
        """Leave the optimizer as Keras made it, so that the model can be saved with it."""
        if self._momentum is not None:
            setattr(self.optimizer, self._momentum, self._first_momentum)

    def _one_update(  # noqa: PLR0917  # a graph takes what it takes in order
        self, x: Any, y: Any, samples: Any, at: Any, rate: Any, momentum: Any
    ) -> Any:
        def update() -> Any:
            loss, gradients = self._gradients(*self._part(x, y, samples), at, 1.0)
            self._apply(gradients)
            return loss

        self._set(rate, momentum)
        loss = self._everywhere(update)
        self._limit()
        return loss

    def _one_share(self, x: Any, y: Any, samples: Any, at: Any, share: Any) -> Any:
        import tensorflow as tf

        def add() -> Any:
            loss, gradients = self._gradients(*self._part(x, y, samples), at, share)
            for total, gradient in zip(self._sums, gradients, strict=True):
                if gradient is not None:
                    total.assign_add(tf.convert_to_tensor(gradient))
            return loss

        return self._everywhere(add)

    def _one_descent(self, rate: Any, momentum: Any) -> None:
        def descend() -> None:
            self._apply([total.read_value() for total in self._sums])
            self.forget_sums()

        self._set(rate, momentum)
        self._everywhere(descend)
        self._limit()

    def _one_evaluation(self, x: Any, y: Any, samples: Any) -> None:
        def evaluate() -> None:
            part, targets, _ = self._part(x, y, samples)
            outputs = self.model(part, training=False)
            self.model.compiled_loss(targets, outputs)
            self.model.compiled_metrics.update_state(targets, outputs)

        self._everywhere(evaluate)

    def _everywhere(self, run: Callable[[], Any]) -> Any:
        """Trace ``run`` for each accelerator of this worker; return what the first of them gives."""
        return self._strategy.experimental_local_results(self._strategy.run(run))[0]

    def _part(self, x: Any, y: Any, samples: Any) -> tuple[Any, Any, Rows | None]:
        """Return what of a worker's part one accelerator takes, and which rows; None are all."""
        import tensorflow as tf

        count = self._strategy.num_replicas_in_sync
        if count == 1:
            return x, y, None
        own = len(self._strategy.extended.worker_devices)
        context = tf.distribute.get_replica_context()
        at = tf.cast(context.replica_id_in_sync_group, tf.int64)
        worker, begin, end = (n * samples // count for n in (at // own * own, at, at + 1))
        here = slice(begin - worker, end - worker)
        gather = partial(context.all_gather, axis=0)
        return x[here], y[here], Rows(begin=begin, end=end, samples=samples, gather=gather)

    def _gradients(
        self, x: Any, y: Any, rows: Rows | None, at: Any, share: Any
    ) -> tuple[Any, list[Any]]:
        """Return the loss of a batch and ``share`` of the gradients, and let the metrics see it.

        ``rows`` of the batch are what is given; the gradients are those of this part alone.
        """
        import tensorflow as tf

        model, regularise, draws = self.model, self._regularise, self._draws
        count = self._strategy.num_replicas_in_sync
        part = 1.0 if rows is None else rows.share
        seed = tf.stack([tf.constant(self._seed, tf.int64), at])
        draws.begin(seed, rows)
        if self._augment is not None:
            x, y = self._augment(x, y, seed, rows)

        def drop(values: Any) -> Any:
            return draws.dropout(values, regularise.dropout)

        with (
            self._taught(x) as taught,  # before the tape: nobody teaches the teacher
            tf.GradientTape() as tape,
            drawing_from(model, draws),
            dropping(model, regularise, drop),
            _normalising_together(model, count),
        ):
            outputs = model(x, training=True)
            loss = model.compiled_loss(y, outputs) * count  # Keras divides by it
            own = sum(model.losses, tf.constant(0.0))  # what the network's own layers add
            # l1 has no gradient at 0: its step comes after the optimizer's.
            smooth = own + penalty(Regularise(l2=regularise.l2), self._kernels)
            objective = (taught(loss, outputs) + smooth) * (share * part)
        model.compiled_metrics.update_state(y, outputs)
        if self._penalty is not None:
            self._penalty.update_state(
                smooth + penalty(Regularise(l1=regularise.l1), self._kernels)
            )
        gradients = tape.gradient(objective, self._learned)
        if count > 1:
            loss = tf.distribute.get_replica_context().all_reduce("SUM", loss * part)
        return loss, gradients

    @contextlib.contextmanager
    def _taught(self, x: Any) -> Iterator[Callable[[Any, Any], Any]]:
        """Yield what makes, of a batch's loss and outputs, the loss that its teacher asks for."""
        if self._lesson is None:
            yield lambda loss, _: loss
            return
        with self._lesson.about(x) as mixed:

            def taught(loss: Any, outputs: Any) -> Any:
                objective, distance = mixed(loss, outputs)
                self._distance.update_state(distance)
                return objective

            yield taught

    def _set(self, rate: Any, momentum: Any) -> None:
        """Set what moves from step to step."""
        self.optimizer.learning_rate.assign(rate)
        if self._momentum is not None:
            getattr(self.optimizer, self._momentum).assign(momentum)

    def _apply(self, gradients: list[Any]) -> None:
        """Take one step of the optimizer, along the sum of all accelerators' gradients."""
        pairs = zip(gradients, self._learned, strict=True)
        self.optimizer.apply_gradients([(g, weight) for g, weight in pairs if g is not None])

    def _limit(self) -> None:
        """Take the steps of l1 and of the largest norm, which come after the optimizer's."""
        import tensorflow as tf

        optimizer, regularise = self.optimizer, self._regularise
        if regularise.l1:
            size_of = tf.autograph.experimental.do_not_convert(step_size)  # it knows no match
            for weight in self._kernels:
                size = size_of(self._settings, optimizer, weight)
                weight.assign(soft_threshold(weight, regularise.l1 * size))
        if regularise.max_norm is not None:
            for weight, limit in limited(self.model, regularise.max_norm):
                weight.assign(limit(weight))

    def _compiled(self, graph: Any, *arguments: Any) -> Any:
        """Call a graph; what XLA cannot compile is the user's choice, not our bug."""
        import tensorflow as tf

        try:
            return graph(*arguments)
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
            if not self._xla:
                raise
            reason = str(error.message).strip().splitlines()[0]
            raise UserError(
                f"xla: this network cannot be compiled: {reason}; leave xla out"
            ) from error


@contextlib.contextmanager
def _normalising_together(model: Any, count: int) -> Iterator[None]:
    """Let batch normalisation see the whole batch inside the block, not one accelerator's part."""
    changed = []
    try:
        for layer in model.submodules if count > 1 else ():
            if "synchronized" in layer.__dict__:
                changed.append((layer, layer.synchronized, layer.fused))
                layer.__dict__.update(synchronized=True, fused=False)
        yield
    finally:
        for layer, synchronized, fused in changed:
            layer.__dict__.update(synchronized=synchronized, fused=fused)
