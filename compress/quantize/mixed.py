"""Int8 where it pays and float where it does not, decided by measurement."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from compress.data.task import Task
from compress.quantize.calibrate import Calibration
from compress.quantize.excluded import Exclusion
from compress.quantize.layout import (
    Columns,
    columns_by_timing,
    laid_out,
    require_same_answers,
    timing,
)
from compress.quantize.outputs import outputs_of
from compress.quantize.points import points_gained, score
from compress.quantize.sensitivity import LayerSensitivity, sensitivity
from compress.quantize.static import (
    QuantizeStatic,
    quantize_static,
    refuse_unfit_static,
    static_ranges,
    why_not_static,
    with_method,
)
from compress.quantize.storage import ToFloat16, WeightOnly, store_in_fewer_bits
from compress.quantize.width_to_depth import columns_that_fit, why_wide
from deploy.bench import Bench, race
from deploy.errors import UserError
from deploy.graph import producers, weighted_nodes
from deploy.machine import Target, this_target
from deploy.record import Record, SessionOptions, sha256_of

Floats = frozenset[str]
"""A choice: the layers that stay in float, by name."""
FloatStorage = Literal["float32", "float16", "int8"]
OnSearch = Callable[[str, int, int], None]
"""Hears what is being done, how many parts of it are over, and of how many."""

_ROUGH = Bench(processes=5, sessions_per_process=1, rounds=6, block_ms=1.0, batch=1)
_FINE = Bench(processes=10, sessions_per_process=2, rounds=20, block_ms=4.0, batch=1)
_FINALISTS = 4
_COUNTS = 7
"""Prefixes of an order that are tried at first."""
_FLIPS = 24
"""Layers that are turned over around the best choice so far, those with the most at stake."""
_CLIMBS = 4
"""How often the search goes on from a better neighbour."""
_WORTH = 1.01
"""What a neighbour has to gain: less is the noise of a rough timing."""


class QuantizeMixed(Record, frozen=True, tag_field="kind", tag="quantize_mixed"):
    """Static int8 for the layers that it makes faster, float for the others.

    Choices are timed on this machine, not guessed: a convolution of few channels is slower in int8,
    and so may be one whose neighbours are float, because of the conversions in between. What is in
    int8 is laid out for its kernels, as by ``int8_layout``. What comes out is no slower than the
    faster of all layers in float and all in int8, as the last round of timing saw them, and loses no
    more on validation samples than is allowed. Takes minutes in which nothing else should run.
    """

    max_drop_points: Annotated[float, Meta(ge=0)] = 0.3
    """Largest loss of the task's metric on validation samples against the float model, in points; of
    an error, in per cent of the float model's. Of a reconstruction its mean squared error counts."""
    calibration: Calibration = "minmax"
    """As in ``quantize_static``."""
    percentile: Annotated[float, Meta(gt=50, lt=100)] | None = None
    """As in ``quantize_static``."""
    float_storage: FloatStorage = "float32"
    """What layers in float keep their weights as, where the allowed loss has room for it. ONNX
    Runtime makes float32 of them when it opens the file, so it costs no speed."""
    threads: Annotated[int, Meta(ge=1)] = 1
    """Threads to time with; use those of the device."""
    exclusion: Exclusion = "session_option"
    """What keeps float layers in float at load, as in ``quantize_static``."""

    def __post_init__(self) -> None:
        as_static(self, ())  # has the same rules


class Tried(Record, frozen=True):
    """One choice that was looked at."""

    floats: tuple[str, ...]
    """Layers in float."""
    drop_points: float
    """Loss on validation samples against the float model, as ``max_drop_points`` counts it."""
    stored: FloatStorage
    """What the layers in float keep their weights as."""
    speedup: float | None = None
    """Over the float model in the same run, with its 95 % interval; None if it was not timed."""
    low: float | None = None
    high: float | None = None
    final: bool = False
    """Whether it was timed in the last and longest round, which decides."""


class Mixed(Record, frozen=True):
    """How a search went."""

    step: QuantizeMixed
    """As it was carried out: calibration "auto" has become a method."""
    target: Target
    """The machine that it was made for and timed on."""
    chosen: Tried
    tried: tuple[Tried, ...]
    """In order; what was timed more than once is there as often."""
    columns: dict[str, int]
    """How many columns convolutions of few channels compute at once wherever they are in int8."""
    layers: tuple[LayerSensitivity, ...]


def as_static(step: QuantizeMixed, floats: Collection[str]) -> QuantizeStatic:
    """Return the static step that makes a choice."""
    return QuantizeStatic(
        calibration=step.calibration,
        percentile=step.percentile,
        exclude=tuple(sorted(floats)),
        exclusion=step.exclusion,
    )


def why_in_float(original: Any, step: QuantizeMixed, made: Any) -> dict[str, str]:
    """Say of every layer that a search left in float why it did, and of what it widened that it did.

    Args:
        original: the float ``ModelProto`` that the step was given.
        step: the step.
        made: the ``ModelProto`` that it gave.
    """
    never = why_not_static(original, as_static(step, ()))
    made_by = producers(made.graph)
    floats = [
        found.node.name
        for found in weighted_nodes(made.graph)
        if found.node.op_type in {"Conv", "Gemm", "MatMul"}
        and getattr(made_by.get(found.node.input[1]), "op_type", "") != "DequantizeLinear"
    ]
    better = dict.fromkeys(floats, "float was the better choice where it was measured")
    return better | why_wide(made) | never


def quantize_mixed(
    model: Any,
    step: QuantizeMixed,
    task: Task,
    *,
    seed: int,
    on_search: OnSearch | None = None,
) -> tuple[Any, Mixed]:
    """Return the fastest ``ModelProto`` whose layers are int8 or float, and how it was found.

    At first, all in int8, convolutions of few channels are given the number of columns to compute
    at once that is fastest. The search starts from all layers in int8 and from all in float, and
    from what lies in between when layers become float in the order of the time they save, of what
    they cost, and of their place in the graph from either end. Choices that lose too much are not
    timed. The others are timed together, shortly; the better half again, twice as long, until few
    are left (successive halving: Jamieson and Talwalkar, 2016, algorithm 1). From the best, single
    layers are turned over, or exchanged where the allowed loss is used up, as long as that gains.
    The last round times the few best, all int8 and all float for longest, and its fastest is taken.

    Args:
        model: a float ``ModelProto``. It is left alone.
        step: what may be lost, and how to calibrate.
        task: calibrates, and decides on ``validation``.
        seed: of the order in which models are timed.
        on_search: hears how the search gets on.

    Raises:
        UserError: as ``quantize_static`` and ``outputs_of`` do, or if there is no validation sample.
        ParityError: as ``int8_layout`` does.
    """
    with tempfile.TemporaryDirectory() as folder:
        hears = on_search or (lambda *_: None)
        return _Search(model, step, task, seed=seed, on_search=hears, folder=Path(folder)).run()


class _Search:
    """The choices that were made, each built and judged once, and what timing them gave."""

    def __init__(
        self,
        model: Any,
        step: QuantizeMixed,
        task: Task,
        *,
        seed: int,
        on_search: OnSearch,
        folder: Path,
    ) -> None:
        import onnx

        if not len(task.validation):
            raise UserError(
                "quantize_mixed: needs validation samples to decide on; give more samples"
            )
        refuse_unfit_static(model, as_static(step, ()))
        static = with_method(model, as_static(step, ()), task)
        self.step = msgspec.structs.replace(step, calibration=static.calibration)
        self.model, self.task, self.seed, self.say = model, task, seed, on_search
        never = why_not_static(model, static)
        self.names = tuple(
            f.node.name for f in weighted_nodes(model.graph) if f.node.name not in never
        )
        self.all_float, self.all_int8 = frozenset(self.names), frozenset[str]()
        self.ranges = static_ranges(model, static, task)
        self.reference = self._score(model)
        self.reference_path = folder / "float.onnx"
        onnx.save(model, self.reference_path)
        self.folder = folder  # models may be large and are many
        self.built: dict[Floats, tuple[Path, Tried]] = {}
        self.first_of: dict[str, Floats] = {}
        self.tried: list[Tried] = []
        self.columns: Columns = {}

    def run(self) -> tuple[Any, Mixed]:
        import onnx

        layers = sensitivity(
            self.model,
            as_static(self.step, ()),
            self.task,
            options=SessionOptions(threads=self.step.threads),
            ranges=self.ranges,
            on_progress=lambda done, total: self.say("looking at each layer", done, total),
        )
        timed = timing(self.model, self.step.threads, seed=self.seed, on_timing=self.say)
        self.columns = columns_by_timing(self._quantized(self.all_int8), timed)
        best, speeds = self._halve(self._starts(layers))
        at_stake = sorted(layers, key=lambda layer: -abs(layer.saved_us or 0.0))
        flips = [layer.name for layer in at_stake[:_FLIPS]]
        for _ in range(_CLIMBS):
            # A layer's worth depends on its neighbours: turn each one over where the starts led.
            near_best = [*(best ^ {name} for name in flips), *self._swaps(best, layers)]
            new = [floats for floats in dict.fromkeys(near_best) if floats not in speeds]
            if not any(self._allowed(floats) for floats in new):
                break
            near = self._time([best, *new], _ROUGH, f"{len(new)} neighbours")
            speeds |= near
            better = max(near, key=lambda floats: near[floats])
            if near[better] < near.get(best, 0.0) * _WORTH:
                break
            best = better
        ranked = sorted(speeds, key=lambda floats: -speeds[floats])
        finalists = dict.fromkeys([best, *ranked])
        last = self._time(
            [*list(finalists)[:_FINALISTS], self.all_float, self.all_int8],
            _FINE,
            "the last few",
            final=True,
        )
        floats = max(last, key=lambda floats: last[floats])
        chosen = next(t for t in reversed(self.tried) if frozenset(t.floats) == floats)
        if floats != self.all_float:
            require_same_answers(
                self._quantized(floats),
                self._laid_out(floats),
                self.task.validation.x,
                logarithms=self.task.kind == "classification",
            )
        made = Mixed(
            step=self.step,
            target=this_target(),
            chosen=chosen,
            tried=tuple(self.tried),
            columns=dict(self.columns),
            layers=layers,
        )
        return onnx.load(self._build(floats)[0]), made

    def _starts(self, layers: Sequence[LayerSensitivity]) -> list[Floats]:
        """Return prefixes of four orders: by time saved, by cost, by place from either end."""
        gains = sorted(layers, key=lambda layer: layer.saved_us or 0.0)
        costs = [layer.name for layer in layers]
        orders = ([layer.name for layer in gains], costs, self.names, self.names[::-1])
        counts = sorted({round(c) for c in np.linspace(0, len(self.names), _COUNTS)})
        # What loses time in int8 is the likeliest answer of all.
        losers = frozenset(layer.name for layer in layers if (layer.saved_us or 0.0) < 0)
        return [
            self.all_int8,
            losers,
            *(frozenset(order[:count]) for order in orders for count in counts),
        ]

    def _swaps(self, best: Floats, layers: Sequence[LayerSensitivity]) -> list[Floats]:
        """Return choices that pay for one more int8 layer, too dear as such, with the dearest."""
        dearest = next((layer.name for layer in layers if layer.name not in best), None)
        if dearest is None:
            return []
        wanted = [layer.name for layer in layers if layer.name in best][:_FLIPS]
        return [best - {name} | {dearest} for name in wanted if not self._allowed(best - {name})]

    def _halve(self, choices: Iterable[Floats]) -> tuple[Floats, dict[Floats, float]]:
        """Time choices, the better half again for twice as long, until few are left."""
        speeds: dict[Floats, float] = {}
        left, settings = list(dict.fromkeys([self.all_float, *choices])), _ROUGH
        while True:
            found = self._time(left, settings, f"{len(left)} choices")
            speeds |= found
            ranked = sorted(found, key=lambda floats: -found[floats])
            if len(ranked) <= _FINALISTS:
                return ranked[0], speeds
            left = ranked[: max(_FINALISTS, len(ranked) // 2)]
            settings = msgspec.structs.replace(settings, rounds=2 * settings.rounds)

    def _time(
        self, choices: Iterable[Floats], settings: Bench, what: str, *, final: bool = False
    ) -> dict[Floats, float]:
        """Time the allowed ones of some choices beside the float model; return their speed-ups."""
        wanted = list(dict.fromkeys(choices))
        for done, floats in enumerate(wanted, start=1):
            self._build(floats)
            self.say(f"making {what}", done, len(wanted))
        # All int8 is timed last in any case: the record has to say what it would have given.
        timed = [f for f in wanted if self._allowed(f) or (final and f == self.all_int8)]
        # Other names for a graph that is there already, as where layers share their weights.
        timed = [f for f in timed if f in self.first_of.values()]
        found = race(
            [self.reference_path, *(self._build(f)[0] for f in timed)],
            msgspec.structs.replace(settings, threads=self.step.threads),
            seed=self.seed,
            on_progress=lambda done, total: self.say(f"timing {what}", done, total),
        )
        for floats, seen in zip(timed, found[1:], strict=True):
            self.tried.append(
                msgspec.structs.replace(
                    self._build(floats)[1],
                    speedup=seen.value,
                    low=seen.low,
                    high=seen.high,
                    final=final,
                )
            )
        speeds = {floats: seen.value for floats, seen in zip(timed, found[1:], strict=True)}
        return {floats: speed for floats, speed in speeds.items() if self._allowed(floats)}

    def _allowed(self, floats: Floats) -> bool:
        """Say whether a choice loses little enough; all float always does."""
        return self._build(floats)[1].drop_points <= self.step.max_drop_points

    def _build(self, floats: Floats) -> tuple[Path, Tried]:
        """Return the model that a choice makes, and what is known of it without timing it."""
        import onnx

        if floats not in self.built:
            plain = self.model
            if floats != self.all_float:
                plain = self._laid_out(floats)
            made, stored = self._stored(plain, floats)
            if made is None or not (drop := self._drop(made)) <= self.step.max_drop_points:
                made, stored, drop = plain, "float32", self._drop(plain)
            tried = Tried(floats=tuple(sorted(floats)), drop_points=drop, stored=stored)
            path = self.folder / f"{len(self.built)}.onnx"
            onnx.save(made, path)
            self.built[floats] = (path, tried)
            self.first_of.setdefault(sha256_of(path), floats)
            if not self._allowed(floats):
                self.tried.append(tried)
        return self.built[floats]

    def _quantized(self, floats: Floats) -> Any:
        """Return what a choice makes of the model, as static quantization writes it."""
        static = as_static(self.step, floats)
        return quantize_static(self.model, static, self.task, ranges=self.ranges)

    def _laid_out(self, floats: Floats) -> Any:
        model = self._quantized(floats)
        if not self.columns:
            return laid_out(model, {})
        fits = columns_that_fit(model)
        columns = {name: n for name, n in self.columns.items() if n in fits.get(name, ())}
        return laid_out(model, columns)

    def _stored(self, plain: Any, floats: Floats) -> tuple[Any, FloatStorage]:
        """Return a model whose float layers take fewer bits; None if nothing is asked, or it cannot be."""
        if self.step.float_storage == "float32" or not floats:
            return None, "float32"
        step = ToFloat16() if self.step.float_storage == "float16" else WeightOnly()
        try:
            return store_in_fewer_bits(plain, step, layers=floats), self.step.float_storage
        except UserError:  # a weight is too large for float16
            return None, "float32"

    def _drop(self, model: Any) -> float:
        """Return what is lost on validation samples, in points."""
        return -points_gained(self.task, self.reference, self._score(model))

    def _score(self, model: Any) -> float:
        validation = self.task.validation
        logarithms = self.task.kind == "classification"
        outputs = outputs_of(model, validation.x, logarithms=logarithms)
        return score(self.task, outputs, validation.y[:])
