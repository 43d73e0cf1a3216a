"""Chooses between recipes by cross-validation, and trains the winner on all training data."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from compress.artifacts import describe, replace_file, save_keras, stack_versions
from compress.baseline import baseline, baseline_step, digest_of_what_the_user_brings
from compress.data.splits import load_task
from compress.data.task import Task
from compress.pictures import draw_selection
from compress.plan import TRAINING_CODE
from compress.recipe import Recipe, load_tables, recipe_of, to_toml
from compress.store import Store, code_digest, key_of
from compress.train.fit import Fit
from compress.train.losses import watched_metric
from compress.train.schedules import Plateau
from compress.train.space import Choice, Range, combinations, fill, ranges_in
from compress.train.trainable import network_for
from compress.train.validate import (
    Fold,
    Indices,
    OnFold,
    Selection,
    Splitting,
    score,
    select,
    splits_of,
)
from deploy.errors import UserError

RECORD, TABLE, PICTURE = "selection.json", "folds.csv", "selection.png"
WINNER_MODEL, WINNER_RECIPE = "winner.keras", "winner.toml"
_FOLD = "fold.json"
_MOST_CANDIDATES = 100

Split = tuple[Indices, Indices]
"""The samples that stay, and those that are held out."""


def load_candidates(names: Sequence[str], *, seed: int | None) -> dict[str, Recipe]:
    """Read the recipes to choose from; one with choices is a candidate for every combination.

    Raises:
        UserError: if one cannot be read, there are fewer than two, they go by one name, train
            nothing, or would be judged on different samples.
    """
    candidates: dict[str, Recipe] = {}
    for given in names:
        tables, where = load_tables(given)
        tables.pop("tune", None)
        for label, recipe in _alternatives(tables, where):
            name = f"{recipe.name}: {label}" if label else recipe.name
            if name in candidates:
                raise UserError(f"{where}: there is a candidate {name!r} already; rename one")
            candidates[name] = recipe
            if recipe.train is None:
                raise UserError(f"{where}: train: nothing to compare without a [train] table")
    if len(candidates) < 2:
        raise UserError(
            f"{', '.join(names)}: one candidate only; give two recipes or more, or alternatives "
            'in one: optimizer = { choice = [{ kind = "adam" }, { kind = "sgd" }] }'
        )
    first = next(iter(candidates.values()))
    common = first.seed if seed is None else seed
    seeded = {n: msgspec.structs.replace(r, seed=common) for n, r in candidates.items()}
    for name, recipe in seeded.items():
        for key in ("source", "label_column", "test_fraction"):
            if getattr(recipe.data, key) != getattr(first.data, key):
                raise UserError(
                    f"{name}: data.{key} is {getattr(recipe.data, key)!r}, that of {next(iter(seeded))} "
                    f"{getattr(first.data, key)!r}; only on the same samples can they be compared"
                )
    return seeded


def choose(
    candidates: dict[str, Recipe],
    splitting: Splitting,
    *,
    metric: str | None,
    out: Path,
    store: Store,
    on_fold: OnFold = lambda *_: None,
) -> Selection:
    """Compare recipes fold by fold, write what was found, and train the winner on everything.

    Every fold is a task of its own: preprocessing is fitted to its rest alone, validation is cut
    from its rest, and what is held out is looked at once, by the kept epoch. The test split is not
    touched. Finished folds are kept in the store.

    Args:
        candidates: recipes by name.
        splitting: which samples are held out.
        metric: as training names it on validation; None takes the task's own.
        out: gets ``selection.json``, ``folds.csv``, ``selection.png`` and the winner.
        store: holds finished folds.
        on_fold: told about each fold.

    Raises:
        UserError: if the samples cannot be split so, or a candidate cannot be trained.
    """
    first = next(iter(candidates.values()))
    y = _pool(first)
    splits = splits_of(y, splitting, seed=first.seed, where=first.data.source)
    for name, recipe in candidates.items():
        why_not = _why_not_trained_again(recipe)
        if why_not is not None:
            raise UserError(f"{name}: {why_not}")
    total = len(candidates) * len(splits)
    folds: dict[str, list[Fold]] = {name: [] for name in candidates}
    # Fold by fold and not candidate by candidate: what is cut off has compared something.
    for index, split in enumerate(splits):
        for name, recipe in candidates.items():
            task = load_task(recipe.data, seed=recipe.seed, fold=_always(split))
            metric = metric or watched_metric(task)
            try:
                fold = _fold(recipe, task, metric, index, store)
            except UserError as error:
                raise UserError(f"{name}, fold {index + 1}: {error}") from error
            folds[name].append(fold)
            on_fold(name, sum(map(len, folds.values())), total, fold)
    found = select(
        folds,
        metric=metric or "",
        splitting=splitting,
        seed=first.seed,
        samples=len(y),
        facts={"data": first.data.source, **stack_versions()},
    )
    write_selection(found, out)
    _train_winner(candidates[found.winner], found, out)
    return found


def write_selection(found: Selection, out: Path) -> None:
    """Write the record, the table and the picture of a selection."""
    record = msgspec.json.format(msgspec.json.encode(found), indent=1)
    replace_file(out / RECORD, lambda aside: aside.write_bytes(record))
    table = folds_table(found)
    replace_file(out / TABLE, lambda aside: aside.write_text(table, encoding="utf-8"))
    replace_file(out / PICTURE, lambda aside: draw_selection(found, aside))


def folds_table(found: Selection) -> str:
    """Return the folds as CSV, one column a candidate."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["fold", *(candidate.name for candidate in found.candidates)])
    for index, row in enumerate(zip(*(c.folds for c in found.candidates), strict=True)):
        table.writerow([index + 1, *(fold.value for fold in row)])
    return text.getvalue()


def verdict(found: Selection) -> str:
    """Return one sentence about the winner.

    A difference inside the noise is called noise.
    """
    noise = [pair.other for pair in found.paired if pair.verdict == "noise"]
    if any(pair.verdict == "unknown" for pair in found.paired):
        return f"{found.winner} is best on one split, which tells nothing of chance; add --repeats"
    if noise:
        return f"{found.winner} is best, but its lead over {', '.join(noise)} is noise"
    return f"{found.winner} is best, and better than chance would make it"


def _alternatives(tables: dict[str, Any], where: str) -> list[tuple[str, Recipe]]:
    """Return a recipe for every combination of its choices, with what tells it from the others."""

    def options(place: str, found: Range) -> Sequence[Any]:
        if not isinstance(found, Choice):
            raise UserError(f"{place}: candidates are chosen from lists: write choice = […]")
        return found.labels

    try:
        list(ranges_in(tables))
        every = list(combinations(tables, options))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if len(every) > _MOST_CANDIDATES:
        raise UserError(
            f"{where}: {len(every)} candidates are more than {_MOST_CANDIDATES}; `lightship tune` "
            "searches so many"
        )
    found = []
    for values in every:
        filled = fill(tables, lambda place, _: values[place])  # noqa: B023  # called at once
        label = ", ".join(f"{place} {value}" for place, value in values.items())
        found.append((label, recipe_of(filled, where=where)))
    return found


def _pool(recipe: Recipe) -> Any:
    """Return what is to be learned of the samples that are not test."""
    seen: list[Any] = []

    def look(y: Any) -> Any:
        seen.append(y)
        raise _Seen

    try:
        load_task(recipe.data, seed=recipe.seed, fold=look)
    except _Seen:
        return seen[0]
    raise ValueError("load_task did not ask for a fold")


def _always(split: Split) -> Callable[[Any], Split]:
    return lambda _: split


class _Seen(Exception):  # noqa: N818  # no error: what was asked for is known
    """Ends loading once the samples to be split are known."""


def _fold(recipe: Recipe, task: Task, metric: str, index: int, store: Store) -> Fold:
    """Return what a candidate does on one fold; train it unless that was done before."""
    key = key_of(
        {
            "kind": "fold",
            "network": recipe.network,
            "brought": digest_of_what_the_user_brings(recipe.network, task, seed=recipe.seed),
            "train": recipe.train,
            "samples": task.digest,
            "seed": _seed(recipe, index),
            "metric": metric,
            "versions": stack_versions(),
            "code": code_digest(*TRAINING_CODE),
        }
    )
    found = store.find(key) or store.add(
        key, partial(_train_fold, recipe, task, metric, _seed(recipe, index))
    )
    return msgspec.json.decode((found / _FOLD).read_bytes(), type=Fold)


def _train_fold(recipe: Recipe, task: Task, metric: str, seed: int, folder: Path) -> None:
    seconds = 0.0

    def add(ended: Any) -> None:
        nonlocal seconds
        seconds += ended.seconds

    model, history = baseline(recipe.network, recipe.train, task, seed=seed, on_epoch=add)
    kept = history.kept_epoch if history else 0
    fold = Fold(value=score(model, task, task.test, metric), kept_epoch=kept, seconds=seconds)
    (folder / _FOLD).write_bytes(msgspec.json.encode(fold))


def _seed(recipe: Recipe, index: int) -> int:
    """Return the seed of a fold's training: the same for all candidates, another for each fold."""
    return (recipe.seed + index) % 2**32


def _train_winner(recipe: Recipe, found: Selection, out: Path) -> None:
    """Train the winner on all samples that are not test, and write model, record and recipe.

    Without validation samples nothing can stop training early: it stops at the median of the epochs
    that the folds kept, with the schedule as it was.
    """
    train = recipe.train
    if train is None:
        raise ValueError("a candidate without training was compared")
    (winner,) = (candidate for candidate in found.candidates if candidate.name == found.winner)
    epochs = round(median(fold.kept_epoch for fold in winner.folds))
    task = load_task(recipe.data, seed=recipe.seed, with_validation=False)
    whole: Fit = msgspec.structs.replace(train, early_stopping=None)
    model = train_for(recipe, whole, task, epochs=epochs)
    made = {**baseline_step(recipe.network, whole), "stopped_after_epoch": epochs}
    about = describe(task, step=made, parent=None)
    save_keras(model, out / WINNER_MODEL, about, seed=recipe.seed, notes={})
    text = to_toml(recipe)
    replace_file(out / WINNER_RECIPE, lambda aside: aside.write_text(text, encoding="utf-8"))


def _why_not_trained_again(recipe: Recipe) -> str | None:
    """Say why a recipe, if it wins, cannot be trained without validation, or None if it can."""
    schedule = recipe.train.schedule if recipe.train else None
    if not isinstance(schedule, Plateau) or not schedule.metric.startswith("val_"):
        return None
    return (
        f"train.schedule.metric: {schedule.metric} cannot be watched where the winner is trained "
        f"on all samples; set it to {schedule.metric.removeprefix('val_')!r}"
    )


def train_for(recipe: Recipe, config: Fit, task: Task, *, epochs: int) -> Any:
    """Return the network, trained as ``config`` says but stopped after so many epochs."""
    import tf_keras

    from compress.train.fit import fit

    class Enough(tf_keras.callbacks.Callback):  # type: ignore[misc]  # Keras ships no types
        def on_epoch_end(self, epoch: int, _logs: Any = None) -> None:
            self.model.stop_training = epoch + 1 >= epochs

    model = network_for(task, recipe.network, seed=recipe.seed)
    fit(model, task, config, seed=recipe.seed, callbacks=[Enough()])
    return model


@dataclass(frozen=True, slots=True)
class Row:
    """One candidate as a reader wants it."""

    name: str
    mean: str
    interval: str
    against_winner: str


def rows(found: Selection) -> list[Row]:
    """Return the candidates as text, best first."""
    sign = -1 if found.larger_is_better else 1
    paired = {pair.other: pair for pair in found.paired}
    best_first = sorted(found.candidates, key=lambda c: (c.name != found.winner, sign * c.mean))
    return [
        Row(
            name=candidate.name,
            mean=f"{candidate.mean:.4f}",
            interval=f"[{candidate.interval.low:.4f}, {candidate.interval.high:.4f}]"
            if candidate.interval
            else "",
            against_winner=_against(paired.get(candidate.name)),
        )
        for candidate in best_first
    ]


def _against(pair: Any) -> str:
    if pair is None:
        return "best"
    text = f"{-pair.difference:+.4f}"
    return text if pair.p is None else f"{text}, p = {pair.p:.3f}: {_WORDS[pair.verdict]}"


_WORDS = {"better": "worse", "noise": "noise"}
