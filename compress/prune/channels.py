"""Take channels out of a network: fewer, for real, with whatever hangs on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from typing_extensions import assert_never

from compress.data.task import Task
from compress.networks.named_layers import named_layers
from compress.prune.copied import require_built
from compress.prune.cost import macs, parameters
from compress.prune.coupling import couple
from compress.prune.criteria import Criterion, Scores, comparable, scores, without_scale
from compress.prune.groups import Coupling, Group, Keep, narrowed
from compress.train.fit import EpochEnd, Fit, History, OnEpoch, TrainingFiles, fit
from compress.train.teacher import Distillation, Teacher
from deploy.errors import UserError
from deploy.probes import Operator, Precision
from deploy.record import Record
from deploy.widths import read_widths, worthwhile_widths

Ratio = Annotated[float, Meta(gt=0, le=1)]
Positive = Annotated[int, Meta(ge=1)]

AllowedWidths = Callable[[Any, int], Collection[int]]
"""From a Keras layer and its width to the widths that it may have; its own is always allowed."""
Speedup = Callable[[Any], float]
"""From a smaller tf-keras model to how many times faster it is than the one that was given."""

_HALVINGS = 30
_MEASUREMENTS = 8
"""Models that are timed in each round to come to a latency."""


class KeepRatio(Record, frozen=True, tag_field="kind", tag="channels"):
    """Keep a share of the channels."""

    keep_ratio: Ratio


class KeepMacs(Record, frozen=True, tag_field="kind", tag="macs"):
    """Keep a share of the multiplications."""

    keep_ratio: Ratio


class KeepParameters(Record, frozen=True, tag_field="kind", tag="parameters"):
    """Keep a share of the weights."""

    keep_ratio: Ratio


class Faster(Record, frozen=True, tag_field="kind", tag="latency"):
    """Become faster, as measured in ONNX Runtime on this machine; nothing else should run on it."""

    speedup: Annotated[float, Meta(gt=1)]
    """Over the model that is pruned, batch 1, in float."""
    threads: Positive = 1
    """Threads to time with; use those of the device."""


class WidthsFrom(Record, frozen=True):
    """Widths that are worth having on some machine, as ``lightship widths`` measured them."""

    table: str
    """The file that it wrote, relative to the working folder, or absolute."""
    precision: Precision = "float32"
    """What the layers will compute in on that machine."""


Target = KeepRatio | KeepMacs | KeepParameters | Faster


class PruneChannels(Record, frozen=True, tag_field="kind", tag="prune_channels"):
    """Take channels out of every layer, with all that hangs on them, and train what is left.

    What comes out is an ordinary smaller network: no masks, no zeros.
    """

    fine_tune: Fit
    """How the model trains after each round."""
    target: Target | None = None
    """How much is left; None leaves all layers alone for which nothing else says it."""
    criterion: Criterion = "taylor"
    """What tells the channels that go; ``random`` is the control."""
    ranking: Literal["local", "global"] = "local"
    """``local`` takes the same share of every group of layers, ``global`` whatever is worth least
    in the whole network."""
    per_layer: dict[str, Ratio] = {}
    """The share of channels that single layers keep, by name; 1 leaves a layer alone."""
    layer_widths: dict[str, Positive] = {}
    """How many channels single layers keep, by name."""
    skip: tuple[str, ...] = ()
    """Names of layers left alone; ``*``, ``?`` and ``[]`` match as in a shell."""
    multiple_of: Positive = 1
    """Widths land on multiples of this; what is narrower keeps its width. ONNX Runtime pads
    channels to 8 or 16, so that widths in between cost more than the next step up."""
    widths: WidthsFrom | None = None
    """Widths land on the steps of this table, and beyond its largest anywhere."""
    rounds: Positive = 1
    """In so many equal steps, each followed by training and judged anew."""
    between: Fit | None = None
    """How the model trains after all rounds but the last; None is as ``fine_tune``."""
    samples: Positive = 1024
    """Training samples that ``taylor`` and ``activation`` look at."""
    distill: Distillation | bool = Distillation()
    """How the fine-tuning listens to the baseline beside the truth; false leaves the baseline out."""

    def __post_init__(self) -> None:
        if self.target is None and not self.per_layer and not self.layer_widths:
            raise ValueError("give a target, per_layer or layer_widths: nothing says what is kept")
        if self.widths is not None and self.multiple_of != 1:
            raise ValueError("widths says which there are; leave multiple_of out")
        twice = sorted(set(self.per_layer) & set(self.layer_widths))
        if twice:
            raise ValueError(f"{twice[0]}: is in per_layer and in layer_widths; give one of them")

    @property
    def epochs(self) -> int:
        """Epochs of all trainings together."""
        return sum(self.training(number).epochs for number in range(1, self.rounds + 1))

    def training(self, number: int) -> Fit:
        """How the model trains after a round, counted from 1."""
        return self.fine_tune if number == self.rounds or not self.between else self.between


def prune_channels(
    model: Any,
    step: PruneChannels,
    task: Task,
    *,
    seed: int,
    teacher: Teacher | None = None,
    on_epoch: OnEpoch | None = None,
    files: TrainingFiles | None = None,
    measure: Speedup | None = None,
) -> tuple[Any, History]:
    """Return a model with fewer channels, fine-tuned, and how the fine-tuning went.

    Models inside the model are opened up: their layers are called ``inner/layer``.

    Args:
        model: a functional or Sequential tf-keras model that was trained; left alone.
        step: what to take and how.
        task: what to judge channels and fine-tune on.
        seed: of the fine-tuning and of what criteria draw.
        teacher: whose answers the fine-tuning listens to.
        on_epoch: told about the end of each epoch, counted over all rounds.
        files: what the fine-tuning leaves on disk meanwhile; the table of epochs is that of the
            last round.
        measure: how a latency is measured; needed for that target alone.

    Raises:
        UserError: if the table of widths cannot be read, a name fits no layer or contradicts another, the target cannot be reached, no
            channel can go, or the fine-tuning fails (see ``fit``).
    """
    require_built(model)
    files = files or TrainingFiles()
    ends: list[dict[str, float]] = []
    first, current = couple(model), model
    _require_something(first, step)
    allowed = allowed_widths(step)
    histories = []
    for number in range(1, step.rounds + 1):
        coupling = couple(current) if number > 1 else first
        chooser = _Chooser(
            first=first,
            coupling=coupling,
            step=step,
            share=number / step.rounds,
            allowed=allowed,
            measure=measure,
            worth=scores(coupling, step.criterion, task, seed=seed, samples=step.samples),
        )
        current = narrowed(coupling, chooser.chosen())
        histories.append(
            fit(
                current,
                task,
                step.training(number),
                seed=seed,
                teacher=teacher,
                on_epoch=_counted(
                    on_epoch,
                    before=len(ends),
                    epochs=step.epochs,
                    last_round=number == step.rounds,
                ),
                files=_files_of(files, number, step.rounds),
            )
        )
        ends += histories[-1].epochs
    for number in range(1, step.rounds):
        checkpoint = _files_of(files, number, step.rounds).checkpoint
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
    before = len(ends) - len(histories[-1].epochs)
    return current, History(epochs=tuple(ends), kept_epoch=before + histories[-1].kept_epoch)


def allowed_widths(step: PruneChannels) -> AllowedWidths:
    """Return which widths the step lets layers have.

    Raises:
        UserError: if its table cannot be read, or has no times of its precision.
    """
    if step.widths is None:
        return lambda _layer, width: range(step.multiple_of, width + 1, step.multiple_of)
    table, precision = read_widths(Path(step.widths.table)), step.widths.precision
    measured: dict[Operator, list[int]] = {}
    for operator in sorted({time.operator for time in table.times}):
        measured[operator] = worthwhile_widths(table, operator, precision)

    def allowed(layer: Any, width: int) -> Collection[int]:
        worth = measured.get("dense" if type(layer).__name__ == "Dense" else "conv", [])
        return {*worth, *range(max(worth, default=0) + 1, width + 1)}

    return allowed


def channel_facts(original: Any, made: Any, step: PruneChannels) -> dict[str, str]:
    """Say of every layer with a kernel how many of its channels stayed, and why where all did.

    Args:
        original: the model that the step was given.
        made: the model that it gave.
        step: the step.
    """
    coupling, said = couple(original), {}
    now = dict(named_layers(made))
    for name, wiring in coupling.wiring.items():
        if not any(len(weight.shape) > 1 for weight in wiring.layer.weights):
            continue
        width = len(wiring.gives)
        left = int(now[name].output_shape[-1]) if name in now else 0
        if left < width:
            said[name] = f"keeps {left} of its {width} channels"
        elif wiring.makes is not None:
            said[name] = why_not_narrower(coupling, name, step) or f"keeps all {width} channels"
    return said


def why_not_narrower(coupling: Coupling, name: str, step: PruneChannels) -> str | None:
    """Say why a layer that begins channels keeps all of them, or None if some may go."""
    groups = coupling.group_of(name)
    if not groups:
        return coupling.reasons.get(name, "it begins no channels of its own")
    whys = [_why_left_alone(group, step) for group in groups]
    return None if None in whys else whys[0]


def check_channel_names(model: Any, step: PruneChannels) -> None:
    """Raise a UserError if the step cannot be meant so, or leaves nothing to prune.

    Asked before a long training, of the untrained network.
    """
    _require_something(couple(model), step)
    allowed_widths(step)


def _require_something(coupling: Coupling, step: PruneChannels) -> None:
    names = [name for name, wiring in coupling.wiring.items() if wiring.makes is not None]
    there = f"there are {', '.join(names)}"
    for pattern in step.skip:
        if not any(fnmatchcase(name, pattern) for name in coupling.wiring):
            raise UserError(f"skip: no layer is named '{pattern}'; {there}")
    for where, asked in (("per_layer", step.per_layer), ("layer_widths", step.layer_widths)):
        for name in asked:
            if name not in names:
                raise UserError(f"{where}: no layer with channels is named '{name}'; {there}")
            if not coupling.group_of(name):
                raise UserError(f"{where}: '{name}' cannot be pruned: {coupling.reasons[name]}")
    _require_widths(coupling, step)
    for group in coupling.groups:
        _asked_of(group, coupling, step)
    judged = [group for group in coupling.groups if _why_left_alone(group, step) is None]
    if step.criterion == "batch_norm" and (bare := without_scale(coupling, judged)):
        raise UserError(
            f"criterion: batch_norm needs a BatchNormalization with a scale behind {', '.join(bare)}; "
            "skip these layers or take another criterion"
        )
    if all(_asked_of(group, coupling, step) == 1 for group in judged):
        whys = {n: why_not_narrower(coupling, n, step) or "keeps its channels" for n in names}
        reasons = "; ".join(f"{name}: {why}" for name, why in whys.items())
        raise UserError(f"prune_channels: nothing is left to prune ({reasons})")


def _require_widths(coupling: Coupling, step: PruneChannels) -> None:
    """Raise a UserError where ``layer_widths`` asks for a width that a layer cannot have."""
    for name, width in step.layer_widths.items():
        groups, whole = coupling.group_of(name), len(coupling.wiring[name].gives)
        if len(groups) > 1:
            raise UserError(
                f"layer_widths: channels of '{name}' hang on several groups of layers; "
                "give it a share in per_layer"
            )
        if width > whole:
            raise UserError(f"layer_widths: '{name}' has {whole} channels, got {width}")
        if width % groups[0].channels_per_unit[name]:
            per_unit = groups[0].channels_per_unit[name]
            raise UserError(
                f"layer_widths: {per_unit} channels of '{name}' go together, so that its width is a "
                f"multiple of {per_unit}; got {width}"
            )


def _why_left_alone(group: Group, step: PruneChannels) -> str | None:
    for name in group.layers:
        pattern = next((p for p in step.skip if fnmatchcase(name, p)), None)
        if pattern is not None:
            whose = "" if len(group.layers) == 1 else f"{name!r}, which goes with it, is "
            return f"{whose}skipped: '{pattern}'"
        if step.per_layer.get(name) == 1:
            return "all channels are asked to stay"
    named = set(group.layers) & {*step.per_layer, *step.layer_widths}
    return None if named or step.target is not None else "nothing is asked of it"


def _asked_of(group: Group, coupling: Coupling, step: PruneChannels) -> float | None:
    """Return the share of units that the names of a group's layers ask for; None leaves it open.

    Raises:
        UserError: if two layers that go together ask for different things.
    """
    asked = {name: step.per_layer[name] for name in group.layers if name in step.per_layer}
    for name in group.layers:
        if name in step.layer_widths:
            asked[name] = step.layer_widths[name] / len(coupling.wiring[name].gives)
    if len(set(asked.values())) > 1:
        names = ", ".join(f"'{name}'" for name in asked)
        raise UserError(
            f"per_layer: {names} go together and cannot keep different shares; name one of them"
        )
    return next(iter(asked.values()), None)


class _Chooser:
    """Decides in one round which units stay."""

    def __init__(
        self,
        *,
        first: Coupling,
        coupling: Coupling,
        step: PruneChannels,
        share: float,
        allowed: AllowedWidths,
        measure: Speedup | None,
        worth: Scores,
    ) -> None:
        """See ``prune_channels``.

        Args:
            first: of the model before the first round: shares are shares of its channels.
            coupling: of the model as it is now.
            step: what is asked at the end.
            share: of the way to there that is gone after this round.
            allowed: which widths a layer may have; its own always.
            measure: how a latency is measured.
            worth: of the units as they are now.
        """
        self.first, self.coupling, self.step, self.share = first, coupling, step, share
        self.allowed, self.measure, self.worth = allowed, measure, worth
        self.whole = {group.layers: len(group.units) for group in first.groups}
        self.open: list[Group] = []
        self.fixed: dict[Group, int] = {}
        for group in coupling.groups:
            asked = _asked_of(group, first, step)
            if _why_left_alone(group, step) is not None:
                self.fixed[group] = len(group.units)
            elif asked is None:
                self.open.append(group)
            else:
                exact = any(name in step.layer_widths for name in group.layers)
                self.fixed[group] = self._rounded(group, self._on_the_way(asked), exact=exact)

    def chosen(self) -> Keep:
        """Return which units stay after this round."""
        match self.step.target:
            case None:
                return self._kept(1.0)
            case KeepRatio(keep_ratio=ratio):
                return self._kept(self._on_the_way(ratio))
            case KeepMacs(keep_ratio=ratio):
                whole = macs(self.first, self.first.all_kept())
                return self._at_most(lambda k: macs(self.coupling, k) / whole, ratio)
            case KeepParameters(keep_ratio=ratio):
                whole = parameters(self.first, self.first.all_kept())
                return self._at_most(lambda k: parameters(self.coupling, k) / whole, ratio)
            case Faster(speedup=speedup):
                if self.measure is None:
                    raise ValueError("a latency needs a way to measure it")
                return self._at_most(self._time, 1 / speedup, tries=_MEASUREMENTS)
            case _:
                assert_never(self.step.target)

    def _on_the_way(self, ratio: float) -> float:
        """Return the share that is left after this round where ``ratio`` is left at the end."""
        return float(ratio**self.share)

    def _time(self, keep: Keep) -> float:
        """Return the time of a choice, as a share of that of the model that was given."""
        if self.measure is None:
            raise ValueError("a latency needs a way to measure it")
        return 1 / self.measure(narrowed(self.coupling, keep))

    def _at_most(
        self, cost: Callable[[Keep], float], ratio: float, *, tries: int = _HALVINGS
    ) -> Keep:
        """Return the choice of most channels whose cost is at most a share, by bisection.

        Raises:
            UserError: if the narrowest network costs more.
        """
        wanted = self._on_the_way(ratio)
        known: dict[bytes, float] = {}

        def costs(keep: Keep) -> float:
            if keep.tobytes() not in known:
                known[keep.tobytes()] = cost(keep)
            return known[keep.tobytes()]

        best, low, high = self._kept(0.0), 0.0, 1.0
        if (least := costs(best)) > wanted:
            raise UserError(
                f"target: {wanted:.3g} of the cost cannot be reached: as narrow as may be, the "
                f"network takes {least:.3g}; ask for less, skip fewer layers or lower multiple_of"
            )
        for _ in range(tries):
            middle = (low + high) / 2
            keep = self._kept(middle)
            if costs(keep) <= wanted:
                best, low = keep, middle
            else:
                high = middle
        return best

    def _kept(self, share: float) -> Keep:
        """Return which units stay when the open groups keep a share of what they had at first."""
        keep = self.coupling.all_kept()
        for group, count in {**self._counts(share), **self.fixed}.items():
            order = np.argsort(self.worth[group], kind="stable")
            keep[group.units[order[: len(order) - count]]] = False
        return keep

    def _counts(self, share: float) -> dict[Group, int]:
        """Return how many units the open groups keep."""
        if self.step.ranking == "local":
            return {group: self._rounded(group, share) for group in self.open}
        worth = comparable(self.worth, self.step.criterion)
        everywhere = np.concatenate([worth[group] for group in self.open] or [np.zeros(0)])
        owners = np.repeat(np.arange(len(self.open)), [len(group.units) for group in self.open])
        total = round(share * sum(self.whole[group.layers] for group in self.open))
        # By their order, not by a threshold: units of the same worth would all be on one side of it.
        staying = owners[np.argsort(-everywhere, kind="stable")[: max(total, 1)]]
        counts = np.bincount(staying, minlength=len(self.open))
        return {
            group: self._rounded(group, int(count) / self._first(group))
            for group, count in zip(self.open, counts, strict=True)
        }

    def _first(self, group: Group) -> int:
        return self.whole.get(group.layers, len(group.units))

    def _rounded(self, group: Group, share: float, *, exact: bool = False) -> int:
        """Return the allowed number of units that is next to a share of what there was at first."""
        now = len(group.units)
        wanted = min(now, max(1.0, share * self._first(group)))
        if exact:
            return round(wanted)
        possible = {count for count in range(1, now) if self._is_allowed(group, count)} | {now}
        return min(possible, key=lambda count: (abs(count - wanted), -count))

    def _is_allowed(self, group: Group, units: int) -> bool:
        """Say whether all layers of a group may have the channels of so many units."""
        return all(
            units * each
            in self.allowed(self.coupling.wiring[name].layer, self._first(group) * each)
            for name, each in group.channels_per_unit.items()
        )


def _counted(
    on_epoch: OnEpoch | None, *, before: int, epochs: int, last_round: bool
) -> OnEpoch | None:
    """Return a listener that is told the number of an epoch over all rounds."""
    if on_epoch is None:
        return None
    hear = on_epoch

    def counted(end: EpochEnd) -> None:
        last = end.last and last_round
        hear(msgspec.structs.replace(end, epoch=before + end.epoch, epochs=epochs, last=last))

    return counted


def _files_of(files: TrainingFiles, number: int, rounds: int) -> TrainingFiles:
    """Return where one round leaves its files: each has a checkpoint of its own."""
    if number == rounds or files.checkpoint is None:
        return files
    path = files.checkpoint
    aside = path.with_name(f"{path.stem}.round{number}{path.suffix}")
    return dataclasses.replace(files, checkpoint=aside)
