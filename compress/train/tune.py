"""Searches for the values that train best: grid, random and TPE, with successive halving."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from compress.train.losses import higher_is_better
from compress.train.space import (
    Choice,
    Log,
    Range,
    Uniform,
    Whole,
    combinations,
    fill,
    grid_points,
    ranges_in,
    written,
)
from compress.train.workers import (
    Broken,
    BrokenTrialError,
    Epoch,
    Failed,
    Finished,
    Job,
    Message,
    Stopped,
    Workers,
)
from deploy.errors import UserError, needs_extra
from deploy.record import Record

JOURNAL, LOCK = "journal.log", "lock"
_STUDY = "search"
_HOPELESS = 5
"""After so many failures and no success there is a mistake in the recipe, not in the values."""


class SuccessiveHalving(
    Record, frozen=True, tag_field="kind", tag="successive_halving", kw_only=True
):
    """End trials early that are behind at the same epoch, without waiting for the others (ASHA).

    Li et al., "A system for massively parallel hyperparameter tuning" (2020), algorithm 2: a trial
    goes on past epoch ``min_epochs · reduction^k`` only if it is among the best ``1 / reduction`` of
    those that got there.
    """

    min_epochs: Annotated[int, Meta(ge=1)] = 1
    reduction: Annotated[int, Meta(ge=2)] = 3


class Hyperband(Record, frozen=True, tag_field="kind", tag="hyperband", kw_only=True):
    """Successive halving with several values of ``min_epochs`` side by side.

    Li et al., "Hyperband" (2018): for metrics whose first epochs say little of the last.
    """

    min_epochs: Annotated[int, Meta(ge=1)] = 1
    reduction: Annotated[int, Meta(ge=2)] = 3


Halving = SuccessiveHalving | Hyperband


class Tune(Record, frozen=True, kw_only=True):
    """How the ranges of a recipe are searched, and for what."""

    method: Literal["grid", "random", "tpe"] = "tpe"
    """`grid` tries every combination; `random` draws (Bergstra and Bengio, 2012); `tpe` draws where
    earlier trials were good (Bergstra et al., "Algorithms for hyper-parameter optimization", 2011)."""
    trials: Annotated[int, Meta(ge=1)] | None = None
    """How many; a grid has as many as it has points."""
    metric: str | None = None
    """A validation metric of the epoch that is kept, such as `val_loss`; None takes the task's own."""
    seeds: Annotated[int, Meta(ge=1, le=100)] = 1
    """Trainings of each trial, from different seeds; the mean counts. Halving judges the first."""
    halving: Halving | None = None
    """None carries every trial out to its end."""
    minutes: Annotated[float, Meta(gt=0)] | None = None
    """No trial begins later, and those under way end with the epoch they are in."""
    variant: str = "baseline"
    """The model that is tuned: the baseline, or a variant whose step trains."""

    def __post_init__(self) -> None:
        if self.metric is not None and not self.metric.startswith("val_"):
            raise ValueError(
                f"metric must be that of validation samples, such as val_loss, got {self.metric!r}"
            )
        if self.method == "grid" and self.trials is not None:
            raise ValueError("a grid tries every one of its points; leave trials out")
        if self.method != "grid" and self.trials is None:
            raise ValueError(f"method {self.method!r} has to know how many trials; add trials = 40")


State = Literal["finished", "pruned", "failed"]


class Trial(Record, frozen=True):
    """One set of values and what became of it."""

    number: int
    """Counted from 1."""
    state: State
    """``pruned``: ended early by halving; ``failed``: these values cannot be trained with."""
    values: dict[str, Any]
    """By place in the recipe; of a choice its label."""
    value: float | None
    """The metric of the kept epoch, the mean over the seeds; None unless it is finished."""
    per_seed: tuple[float, ...]
    kept_epochs: tuple[int, ...]
    epochs: tuple[float, ...]
    """The metric after each epoch of the first seed."""
    seconds: float
    reason: str = ""
    """Why it failed."""

    @property
    def seen(self) -> float | None:
        """The metric as far as it is known: of a pruned trial that of its last epoch."""
        if self.value is not None:
            return self.value
        return self.epochs[-1] if self.state == "pruned" and self.epochs else None


class Search(Record, frozen=True):
    """A whole search, finished or not."""

    name: str
    metric: str
    larger_is_better: bool
    tune: Tune
    seed: int
    ranges: dict[str, str]
    """What was searched, by place, in words."""
    planned: int
    """How many trials there will be in the end."""
    ended: Literal["all trials", "time limit", "interrupted", "under way"]
    trials: tuple[Trial, ...]
    best: int | None
    """Number of the best finished trial, the first of equals. While none has finished, of the best
    pruned one at its last epoch; None while there is none either."""
    importance: dict[str, float]
    """Share of each range in what the trials' metric varies by, largest first: PED-ANOVA, Watanabe
    et al. (2023). Empty while too little is known."""
    facts: dict[str, str] = {}
    """Data, versions and whatever else the search rests on."""

    @property
    def best_trial(self) -> Trial | None:
        """The trial whose number is ``best``, if there is one."""
        return next((trial for trial in self.trials if trial.number == self.best), None)


OnTrial = Callable[[Search], None]


def search(
    name: str,
    tables: Any,
    tune: Tune,
    *,
    metric: str,
    seed: int,
    folder: Path,
    workers: Workers,
    facts: dict[str, str] | None = None,
    on_trial: OnTrial = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> Search:
    """Search the ranges in ``tables``, going on with what ``folder`` holds of the same search.

    Everything is written down as it happens, so a search that is killed loses the epochs of the
    trials that were under way, nothing else; these trials are begun again with the same values. The
    values of trial ``n`` depend on the seed and, with TPE, on the trials that ended before it began:
    one worker draws the same values whether or not it was interrupted. Halving also compares with
    the epochs that an interrupted trial had reached.

    Args:
        name: what the search is called in its record.
        tables: nested tables with ranges.
        tune: how to search.
        metric: what is searched for.
        seed: of the draws.
        folder: where the search is kept.
        workers: who carries trials out.
        facts: what the search rests on; a search that rests on anything else is another one.
        on_trial: given the search so far after each trial; it comes with no ``importance`` yet.
        clock: seconds, for the time limit.

    Returns:
        The search so far: after Ctrl-C or at the time limit with the trials that ended before.

    Raises:
        UserError: if there is nothing to search, the folder holds another search or is in use, or
            the first trials all fail.
        BrokenTrialError: if a trial met a bug in another process.
    """
    with needs_extra("tune"):
        import optuna
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ranges = dict(ranges_in(tables))
    if not ranges:
        raise UserError(
            f"{name}: there is nothing to search: write a range in the place of a value, "
            "such as learning_rate = { log = [1e-4, 1e-1] }"
        )
    grid = list(combinations(tables, grid_points)) if tune.method == "grid" else None
    with _owned(folder):
        study = _open(folder, _identity(tables, tune, metric, seed, facts or {}), metric, tune)
        under_way = _Searching(
            study=study,
            tables=tables,
            tune=tune,
            seed=seed,
            grid=grid,
            several=workers.places > 1,
            clock=clock,
            on_trial=lambda: on_trial(found("under way", with_importance=False)),
        )

        def found(ended: Any, *, with_importance: bool = True) -> Search:
            trials = _trials(study)
            best = _best(trials, larger=higher_is_better(metric))
            return Search(
                name=name,
                metric=metric,
                larger_is_better=higher_is_better(metric),
                tune=tune,
                seed=seed,
                ranges={place: written(range_) for place, range_ in ranges.items()},
                planned=under_way.planned,
                ended=ended,
                trials=trials,
                best=best,
                importance=_importance(study) if with_importance else {},
                facts=facts or {},
            )

        try:
            workers.run(under_way.ask, under_way.tell)
        except KeyboardInterrupt:
            return found("interrupted")
        finally:
            _close_open_trials(study)
        return found("time limit" if under_way.open_slots else "all trials")


class _Searching:
    """What is asked and told while a search goes on; what is known of it is in the study."""

    def __init__(
        self,
        *,
        study: Any,
        tables: Any,
        tune: Tune,
        seed: int,
        grid: list[dict[str, Any]] | None,
        several: bool,
        clock: Callable[[], float],
        on_trial: Callable[[], None],
    ) -> None:
        self.study = study
        self.tables = tables
        self.tune = tune
        self.seed = seed
        self.grid = grid
        self.several = several
        self.clock = clock
        self.on_trial = on_trial
        self.planned = len(grid) if grid is not None else tune.trials or 0
        self.began = clock()
        done = {trial.user_attrs["slot"] for trial in _ended(study)}
        self.open_slots = [slot for slot in range(self.planned) if slot not in done]
        # What an interrupted trial had drawn is drawn again: its values, not its epochs.
        self.drawn = {
            trial.user_attrs["slot"]: trial.params
            for trial in study.trials
            if "drawn" in trial.user_attrs and trial.user_attrs["slot"] not in done
        }
        self.running: dict[int, Any] = {}
        self.started: dict[int, float] = {}
        self.pruned: set[int] = set()

    @property
    def time_is_up(self) -> bool:
        minutes = self.tune.minutes
        return minutes is not None and self.clock() - self.began >= 60 * minutes

    def ask(self) -> Job | None:
        slot = next((slot for slot in self.open_slots if slot not in self.running), None)
        if slot is None or self.time_is_up:
            return None
        fixed = self.grid[slot] if self.grid is not None else self.drawn.get(slot)
        if fixed is not None:
            self.study.enqueue_trial(fixed)
        self.study.sampler = _sampler(self.tune, self.seed, slot, several=self.several)
        trial = self.study.ask()
        trial.set_user_attr("slot", slot)
        tables = fill(self.tables, lambda place, range_: _suggest(trial, place, range_))
        trial.set_user_attr("drawn", True)
        self.running[slot], self.started[slot] = trial, self.clock()
        return Job(slot, tables)

    def tell(self, message: Message) -> bool:
        from optuna.trial import TrialState

        slot = message.job
        trial = self.running[slot]
        match message:
            case Epoch():
                return self._epoch(slot, message)
            case Broken():
                raise BrokenTrialError(message.trace)
            case Stopped() if slot not in self.pruned:
                del self.running[slot]  # the time is up: it is begun again when the search goes on
                return False
            case Stopped():
                self._end(slot, TrialState.PRUNED)
            case Finished(outcome=outcome) if not math.isfinite(outcome.value):
                self._end(slot, TrialState.FAIL, reason=f"the metric became {outcome.value}")
            case Finished(outcome=outcome):
                trial.set_user_attr("per_seed", list(outcome.per_seed))
                trial.set_user_attr("kept_epochs", list(outcome.kept_epochs))
                self._end(slot, TrialState.COMPLETE, value=outcome.value)
            case Failed(reason=reason):
                self._end(slot, TrialState.FAIL, reason=reason)
        return False

    def _epoch(self, slot: int, message: Epoch) -> bool:
        trial = self.running[slot]
        if self.time_is_up and not message.last:
            return False
        if not message.judged:
            return True
        if math.isfinite(message.value):
            trial.report(message.value, message.epoch)
        behind = self.tune.halving is not None and trial.should_prune()
        # After the last epoch there is nothing left to be saved, and the value is known.
        if message.last or not behind:
            return True
        self.pruned.add(slot)
        return False

    def _end(
        self, slot: int, state: Any, *, value: float | None = None, reason: str | None = None
    ) -> None:
        trial = self.running.pop(slot)
        trial.set_user_attr("seconds", round(self.clock() - self.started[slot], 3))
        if reason is not None:
            trial.set_user_attr("reason", reason)
        self.study.tell(trial, value, state=state)
        self.open_slots.remove(slot)
        self.on_trial()
        failed = [ended for ended in _ended(self.study) if "reason" in ended.user_attrs]
        if len(failed) >= min(_HOPELESS, self.planned) and len(failed) == len(_ended(self.study)):
            raise UserError(
                f"none of {len(failed)} trials could be carried out; the last: {failed[-1].user_attrs['reason']}"
            )


def read_search(path: Path) -> Search:
    """Return the record of a search.

    Raises:
        UserError: if there is none, or it is something else.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Search)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except msgspec.MsgspecError as error:
        raise UserError(f"{path}: not the record of a search ({error})") from error


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Keep a second search out of a folder; the lock goes with the process, however it ends."""
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{folder}: cannot keep the search here ({error.strerror}); give another --out"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{folder}: another search is at work here; wait for it or give another --out"
            ) from error
        yield


def _open(folder: Path, identity: str, metric: str, tune: Tune) -> Any:
    """Return the study in a folder, made anew or as the last search left it."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    journal = folder / JOURNAL
    _mend(journal)
    try:
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(journal))),
            study_name=_STUDY,
            direction="maximize" if higher_is_better(metric) else "minimize",
            pruner=_pruner(tune.halving),
            load_if_exists=True,
        )
        held = study.user_attrs.setdefault("identity", identity)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{journal}: not the journal of a search ({error}); give another --out"
        ) from error
    if held != identity:
        raise UserError(
            f"{folder}: holds a search over another recipe, other data or of another version of "
            "lightship; give another --out, or remove the folder to begin anew"
        )
    study.set_user_attr("identity", identity)
    _close_open_trials(study)
    return study


def _mend(journal: Path) -> None:
    """Undo what a kill can leave: half a last line, which would spoil the next one, and a lock."""
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    if not journal.exists():
        return
    text = journal.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        with journal.open("r+b") as file:
            file.truncate(whole)


def _identity(tables: Any, tune: Tune, metric: str, seed: int, facts: dict[str, str]) -> str:
    """Return a digest of what may not change while a search goes on; its length may."""
    method = msgspec.structs.replace(
        tune, trials=None if tune.method == "grid" else 1, minutes=None
    )
    parts = [tables, method, metric, seed, facts]
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()


def _close_open_trials(study: Any) -> None:
    """Mark trials as over that nobody carries out any more; without a reason they do not count."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING, TrialState.WAITING]):
        if trial.state == TrialState.WAITING:
            study.ask()  # it can only be ended once it runs
        study.tell(trial.number, state=TrialState.FAIL)


def _ended(study: Any) -> list[Any]:
    """Return the trials that need not be carried out again, in the order in which they began."""
    from optuna.trial import TrialState

    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state in {TrialState.COMPLETE, TrialState.PRUNED} or "reason" in trial.user_attrs
    ]


def _trials(study: Any) -> tuple[Trial, ...]:
    from optuna.trial import TrialState

    states: dict[Any, State] = {
        TrialState.COMPLETE: "finished",
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "failed",
    }
    trials = [
        Trial(
            number=trial.user_attrs["slot"] + 1,
            state=states[trial.state],
            values=dict(trial.params),
            value=trial.value if trial.state == TrialState.COMPLETE else None,
            per_seed=tuple(trial.user_attrs.get("per_seed", ())),
            kept_epochs=tuple(trial.user_attrs.get("kept_epochs", ())),
            epochs=tuple(value for _, value in sorted(trial.intermediate_values.items())),
            seconds=trial.user_attrs["seconds"],
            reason=trial.user_attrs.get("reason", ""),
        )
        for trial in _ended(study)
    ]
    return tuple(sorted(trials, key=lambda trial: trial.number))


def _best(trials: tuple[Trial, ...], *, larger: bool) -> int | None:
    """Return the number of the best trial, as ``Search.best`` says."""
    finished = [trial for trial in trials if trial.value is not None] or trials
    known = [(trial.seen, trial.number) for trial in finished if trial.seen is not None]
    if not known:
        return None
    sign = -1 if larger else 1
    return min(known, key=lambda pair: (sign * pair[0], pair[1]))[1]


def _importance(study: Any) -> dict[str, float]:
    """Return the share of each range, or nothing where the trials do not tell yet."""
    import optuna

    # To Optuna a pruned trial has a value too, its last.
    values = {trial.value for trial in _trials(study)} - {None}
    if len(values) < 4:
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that few trials say little
            found = optuna.importance.get_param_importances(study)
    except (ValueError, RuntimeError):
        return {}
    return {place: round(float(share), 4) for place, share in found.items()}


def _sampler(tune: Tune, seed: int, slot: int, *, several: bool) -> Any:
    """Return what draws trial ``slot``: anew for each, so that a search can go on where it was."""
    import optuna

    text = f"{seed} {slot}".encode()
    drawn = int.from_bytes(hashlib.sha256(text).digest()[:4], "big")
    if tune.method == "tpe":
        return optuna.samplers.TPESampler(seed=drawn, constant_liar=several)
    return optuna.samplers.RandomSampler(seed=drawn)


def _pruner(halving: Halving | None) -> Any:
    import optuna

    match halving:
        case None:
            return optuna.pruners.NopPruner()
        case SuccessiveHalving():
            return optuna.pruners.SuccessiveHalvingPruner(
                min_resource=halving.min_epochs, reduction_factor=halving.reduction
            )
        case Hyperband():
            return optuna.pruners.HyperbandPruner(
                min_resource=halving.min_epochs, reduction_factor=halving.reduction
            )


def _suggest(trial: Any, place: str, found: Range) -> Any:
    match found:
        case Log():
            return trial.suggest_float(place, *found.log, log=True)
        case Uniform():
            return trial.suggest_float(place, *found.uniform)
        case Whole():
            return trial.suggest_int(place, *found.whole, step=found.step)
        case Choice():
            return trial.suggest_categorical(place, found.labels)
