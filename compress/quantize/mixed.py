"""Int8 where it pays and float where it does not, decided by measurement."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from compress.data.task import Task
from compress.quantize.calibrate import Calibration
from compress.quantize.post_training import (
    QuantizeStatic,
    quantize_static,
    static_ranges,
    why_not_quantized,
)
from compress.quantize.sensitivity import LayerSensitivity, probabilities, sensitivity
from deploy.bench import Bench, bench
from deploy.errors import UserError
from deploy.graph import weighted_nodes
from deploy.record import Measurement, Record

Floats = frozenset[str]
"""A choice: the layers that stay in float, by name."""

_ROUGH = Bench(processes=5, sessions_per_process=1, rounds=12, block_ms=2.0)
_FINE = Bench(processes=10, sessions_per_process=2, rounds=20, block_ms=4.0)
_FINALISTS = 4


class QuantizeMixed(Record, frozen=True, tag_field="kind", tag="quantize_mixed"):
    """Static int8 for the layers that it makes faster, float for the others.

    Choices are timed, not guessed: a convolution of few channels is slower in int8, and so may be
    one whose neighbours are float, because of the conversions in between. The search starts from
    all layers in int8 and from all in float, and goes on layer by layer from the fastest choice.
    What comes out is at least as fast as both, as far as this machine can tell, and loses no
    more accuracy on the validation samples than is allowed.
    """

    max_drop_points: Annotated[float, Meta(ge=0)] = 0.3
    """Largest loss of validation accuracy against the float model, in percentage points."""
    calibration: Calibration = "minmax"
    percentile: Annotated[float, Meta(gt=50, lt=100)] | None = None
    """As in ``quantize_static``."""
    threads: Annotated[int, Meta(ge=1)] = 1
    """Threads to time with; use those of the device."""
    exclusion: Literal["session_option", "structural"] = "session_option"
    """What keeps float layers in float at load, as in ``quantize_static``."""

    def __post_init__(self) -> None:
        as_static(self, frozenset())  # has the same rules


class Tried(Record, frozen=True):
    """One choice that was timed."""

    floats: tuple[str, ...]
    """Layers in float."""
    speedup: float
    """Over the float model, in the same run."""
    low: float
    high: float
    drop_points: float
    """Loss of validation accuracy."""


class Mixed(Record, frozen=True):
    """How the search went: the rounds in order, what was chosen last."""

    chosen: Tried
    tried: tuple[Tried, ...]


def as_static(step: QuantizeMixed, floats: Floats) -> QuantizeStatic:
    """Return the static step that makes a choice."""
    return QuantizeStatic(
        calibration=step.calibration,
        percentile=step.percentile,
        exclude=tuple(sorted(floats)),
        exclusion=step.exclusion,
    )


def quantize_mixed(model: Any, step: QuantizeMixed, task: Task, *, seed: int) -> tuple[Any, Mixed]:
    """Return the fastest ``ModelProto`` whose layers are int8 or float, and how it was found.

    Takes minutes, in which nothing else should run: it times about three choices a layer.

    Args:
        model: a float ``ModelProto`` that ends in class scores. It is left alone.
        step: what may be lost, and how to calibrate.
        task: calibrates, and decides on ``validation``.
        seed: of the order in which models are timed.

    Raises:
        UserError: as ``quantize_static`` does.
    """
    return _Search(model, step, task, seed).run()


class _Search:
    """The choices that were made, each built, judged and timed once a round."""

    def __init__(self, model: Any, step: QuantizeMixed, task: Task, seed: int) -> None:
        self.model, self.step, self.task, self.seed = model, step, task, seed
        static = as_static(step, frozenset())
        never = why_not_quantized(model, static)
        self.names = tuple(
            f.node.name for f in weighted_nodes(model.graph) if f.node.name not in never
        )
        if not self.names:
            raise UserError(
                "quantize_mixed: needs a Conv, Gemm or MatMul with stored weights, got none"
            )
        self.ranges = static_ranges(model, static, task)
        self.built: dict[Floats, Any] = {frozenset(self.names): model}
        self.drops: dict[Floats, float] = {}
        self.tried: list[Tried] = []
        self.right = self._right(model)

    def run(self) -> tuple[Any, Mixed]:
        layers = sensitivity(
            self.model, as_static(self.step, frozenset()), self.task, ranges=self.ranges
        )
        best = self._best(self._time(self._starts(layers), _ROUGH))
        # A layer's worth depends on its neighbours: turn each one over where the starts led.
        while True:
            near = {best.floats, *(tuple(sorted(set(best.floats) ^ {n})) for n in self.names)}
            found = self._best(self._time(map(frozenset, near), _ROUGH))
            if found.floats == best.floats or found.speedup < best.speedup * 1.01:
                break
            best = found
        ranked = sorted(self._allowed(self.tried), key=lambda t: -t.speedup)
        all_float, all_int8 = frozenset(self.names), frozenset[str]()
        finalists = list(dict.fromkeys(frozenset(t.floats) for t in ranked))[:_FINALISTS]
        last = self._time({*finalists, all_float, all_int8}, _FINE)
        chosen = self._best(last)
        return self._build(frozenset(chosen.floats)), Mixed(chosen=chosen, tried=tuple(self.tried))

    def _starts(self, layers: Sequence[LayerSensitivity]) -> set[Floats]:
        """Return prefixes of three orders: by time saved, by place in the graph, by accuracy."""
        gains = sorted(layers, key=lambda layer: layer.saved_us or 0.0)
        costs = [layer.name for layer in layers]
        orders = ([layer.name for layer in gains], self.names, self.names[::-1], costs)
        return {frozenset(order[:count]) for order in orders for count in self._counts()}

    def _counts(self) -> list[int]:
        """Return how many layers of an order to leave in float: all counts, or a dozen of many."""
        return sorted({round(c) for c in np.linspace(0, len(self.names), 13)})

    def _time(self, choices: Iterable[Floats], settings: Bench) -> list[Tried]:
        """Time choices beside the float model, and keep what was seen."""
        import onnx

        all_float = frozenset(self.names)
        wanted = [all_float, *sorted(set(choices) - {all_float}, key=sorted)]
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder, f"{index}.onnx") for index in range(len(wanted))]
            for path, floats in zip(paths, wanted, strict=True):
                onnx.save(self._build(floats), path)
            threads = msgspec.structs.replace(settings, threads=self.step.threads)
            measured = bench(paths, threads, seed=self.seed)
        seen = [self._seen(floats, measured, index) for index, floats in enumerate(wanted)]
        self.tried += seen
        return seen

    def _seen(self, floats: Floats, measured: Measurement, index: int) -> Tried:
        found = measured.latencies[index].speedup
        value, low, high = (found.value, found.low, found.high) if found else (1.0, 1.0, 1.0)
        return Tried(
            floats=tuple(sorted(floats)),
            speedup=value,
            low=low,
            high=high,
            drop_points=self._drop(floats),
        )

    def _best(self, tried: Sequence[Tried]) -> Tried:
        return max(self._allowed(tried), key=lambda t: t.speedup)

    def _allowed(self, tried: Sequence[Tried]) -> list[Tried]:
        """Return the choices that lose little enough: the float model is always one of them."""
        return [t for t in tried if t.drop_points <= self.step.max_drop_points]

    def _build(self, floats: Floats) -> Any:
        if floats not in self.built:
            static = as_static(self.step, floats)
            self.built[floats] = quantize_static(self.model, static, self.task, ranges=self.ranges)
        return self.built[floats]

    def _drop(self, floats: Floats) -> float:
        if floats not in self.drops:
            right = self._right(self._build(floats))
            self.drops[floats] = 100 * float(self.right.mean() - right.mean())
        return self.drops[floats]

    def _right(self, model: Any) -> Any:
        return (
            probabilities(model, self.task.validation.x).argmax(axis=-1) == self.task.validation.y
        )
