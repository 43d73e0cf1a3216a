"""Tunes a recipe: what its ranges are tried with, what a trial is, what is written of a search."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from compress.artifacts import replace_file, stack_versions
from compress.baseline import baseline
from compress.data.splits import load_task
from compress.data.task import Split, Task
from compress.decode import decode
from compress.pictures import draw_search
from compress.plan import STEP_CODE
from compress.recipe import BASELINE, Recipe, Variant, load_tables, recipe_of
from compress.steps import KerasStep, keras_step
from compress.store import code_digest
from compress.train.fit import EpochEnd, History
from compress.train.losses import watched_metric
from compress.train.space import Choice, Range, ends, fill, ranges_in
from compress.train.space import combinations as combinations_of
from compress.train.tune import OnTrial, Search, Tune, search
from compress.train.workers import Objective, Outcome, Report, Workers
from deploy.errors import UserError

BEST, RECORD, TRIALS, PICTURE = "best.toml", "search.json", "trials.csv", "search.png"

_TUNED = ("data", "network", "train", "variant")
_NOT_COMPARABLE = ("source", "label_column", "validation_fraction", "test_fraction", "task")
"""Keys of ``[data]`` that change what a trial is judged on."""
_CHECKED_COMBINATIONS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRecipe:
    """A recipe with ranges in the place of values, known to be possible whatever is chosen.

    Attributes:
        where: the file or name it was read from.
        tables: what it says, without ``[tune]``.
        tune: its ``[tune]`` table.
        example: one of the recipes that it may become.
    """

    where: str
    tables: dict[str, Any]
    tune: Tune
    example: Recipe


def load_search_recipe(name_or_path: str, **instead: Any) -> SearchRecipe:
    """Read a recipe that is to be tuned, and try the ends of its ranges.

    Args:
        name_or_path: as of ``lightship run``.
        instead: keys of ``[tune]`` that take the place of the recipe's own, and ``seed``.

    Raises:
        UserError: if it cannot be read, has no ``[tune]`` table or no ranges, a range is empty,
            stands where it changes nothing or makes trials incomparable, or has values that the
            recipe does not take there.
    """
    tables, where = load_tables(name_or_path)
    seed = instead.pop("seed", None)
    if seed is not None:
        tables["seed"] = seed
    written = tables.pop("tune", None)
    if written is None:
        raise UserError(f'{where}: add a [tune] table, such as method = "tpe", trials = 40')
    changes = {key: value for key, value in instead.items() if value is not None}
    asked = {**written, **changes} if isinstance(written, dict) else written
    tune = decode(asked, Tune, where=f"{where}: tune")
    try:
        ranges = dict(ranges_in(tables))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    for place in ranges:
        why_not = _why_not_tuned(place)
        if why_not is not None:
            raise UserError(f"{where}: {place}: {why_not}")
    example = _check_ends(tables, where=where)
    found = SearchRecipe(where=where, tables=tables, tune=tune, example=example)
    why_not = _why_not_this_variant(found, list(ranges))
    if why_not is not None:
        raise UserError(f"{where}: tune.variant: {why_not}")
    return found


def facts_of(recipe: SearchRecipe, task: Task) -> dict[str, str]:
    """Return what a search rests on beside its recipe: data, code and the versions of the stack."""
    return {
        "data": task.name,
        "licence": task.licence,
        "samples": without_test(task).digest,
        "code": code_digest(*STEP_CODE),
        "recipe": msgspec.toml.encode({**recipe.tables, "tune": _builtins(recipe.tune)}).decode(),
        **stack_versions(),
    }


def without_test(task: Task) -> Task:
    """Return a task whose test part is empty: no search can look at it, whatever it does."""
    empty = Split(raw=task.test.raw[:0], x=task.test.x[:0], y=task.test.y[:0])
    return dataclasses.replace(task, test=empty)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingTrial:
    """One trial: train what the tables say, and judge it by validation.

    Attributes:
        where: the recipe, for messages.
        variant: the model that is judged.
        metric: what it is judged by.
        seeds: how many trainings, from the recipe's seed on.
    """

    where: str
    variant: str
    metric: str
    seeds: int

    def __call__(self, tables: Any, report: Report) -> Outcome:
        """Carry the trial out.

        Raises:
            UserError: if these values cannot be trained with.
        """
        recipe = recipe_of(tables, where=self.where)
        values: list[float] = []
        kept: list[int] = []

        def judge(ended: EpochEnd) -> None:
            last = ended.last and len(values) + 1 == self.seeds
            report(ended.epoch, self._metric(ended.metrics), last=last, judged=not values)

        for seed in range(recipe.seed, recipe.seed + self.seeds):
            history = _trained(recipe, self.variant, seed=seed % 2**32, on_epoch=judge)
            values.append(self._metric(history.epochs[history.kept_epoch - 1]))
            kept.append(history.kept_epoch)
        return Outcome(
            value=float(np.mean(values)), per_seed=tuple(values), kept_epochs=tuple(kept)
        )

    def _metric(self, metrics: dict[str, float]) -> float:
        if self.metric not in metrics:
            known = ", ".join(name for name in metrics if name.startswith("val_"))
            raise UserError(f"tune.metric: {self.metric!r} is not measured; there are {known}")
        return metrics[self.metric]


def tune_recipe(
    recipe: SearchRecipe,
    *,
    out: Path,
    workers: Any,
    on_trial: OnTrial = lambda _: None,
) -> Search:
    """Search the ranges of a recipe and write what is found into a folder, after each trial.

    ``search.json`` is the record, ``trials.csv`` the same as a table, ``best.toml`` the recipe with
    the best values so far, ``search.png`` a picture. The test split is not touched.

    Args:
        recipe: what to search.
        out: the folder; it is gone on with if it holds the beginning of this very search.
        workers: makes those who carry out trials, given what a trial is.
        on_trial: given the search so far after each trial.

    Raises:
        UserError: as ``search``.
    """
    task = load_task(recipe.example.data, seed=recipe.example.seed)
    metric = recipe.tune.metric or watched_metric(task)
    trial: Objective = TrainingTrial(
        where=recipe.where, variant=recipe.tune.variant, metric=metric, seeds=recipe.tune.seeds
    )
    crew: Workers = workers(trial)

    def keep(found: Search) -> None:
        write_search(found, recipe, out)
        on_trial(found)

    found = search(
        recipe.example.name,
        recipe.tables,
        recipe.tune,
        metric=metric,
        seed=recipe.example.seed,
        folder=out,
        workers=crew,
        facts=facts_of(recipe, task),
        on_trial=keep,
    )
    write_search(found, recipe, out)
    if found.best is not None:
        replace_file(out / PICTURE, lambda aside: draw_search(found, aside))
    return found


def write_search(found: Search, recipe: SearchRecipe, out: Path) -> None:
    """Write the record of a search, its table and, once there is one, its best recipe."""
    record = msgspec.json.format(msgspec.json.encode(found), indent=1)
    replace_file(out / RECORD, lambda aside: aside.write_bytes(record))
    table = trials_table(found)
    replace_file(out / TRIALS, lambda aside: aside.write_text(table, encoding="utf-8"))
    best = best_recipe(found, recipe)
    if best is not None:
        replace_file(out / BEST, lambda aside: aside.write_text(best, encoding="utf-8"))


def best_recipe(found: Search, recipe: SearchRecipe) -> str | None:
    """Return the recipe with the best values filled in, as TOML; None while there is none."""
    best = found.best_trial
    if best is None:
        return None
    # JSON has one kind of number: a range says which its values are.
    tables = fill(recipe.tables, lambda place, range_: _as_drawn(best.values[place], range_))
    pruned = f" pruned after epoch {len(best.epochs)}" if best.value is None else ""
    heading = (
        f"# Found by `lightship tune`: {found.metric} {best.seen:.6g}, "
        f"trial {best.number} of {len(found.trials)}{pruned}.\n"
    )
    return heading + msgspec.toml.encode(tables).decode()


def trials_table(found: Search) -> str:
    """Return the trials as CSV, one column a range."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    places = list(found.ranges)
    table.writerow(["trial", "state", found.metric, "epochs", "seconds", *places, "reason"])
    for trial in found.trials:
        values = [trial.values.get(place, "") for place in places]
        value = "" if trial.value is None else trial.value
        row = [trial.number, trial.state, value, len(trial.epochs), trial.seconds]
        table.writerow([*row, *values, trial.reason])
    return text.getvalue()


def _why_not_tuned(place: str) -> str | None:
    """Say why a range may not stand at a place, or None if it may."""
    table, _, key = re.sub(r"[\[(].*", "", place).partition(".")
    if table not in _TUNED:
        return f"changes nothing that a trial is judged by; tune {', '.join(_TUNED)}"
    if table == "data" and key in _NOT_COMPARABLE:
        return "trials with other validation samples cannot be compared; choose a value"
    return None


def _check_ends(tables: dict[str, Any], *, where: str) -> Recipe:
    """Decode the recipe with each choice, and with the lower and the upper ends of all numbers."""
    recipes = []
    for end in (0, 1):

        def options(_: str, found: Range, end: int = end) -> Sequence[Any]:
            return found.labels if isinstance(found, Choice) else [ends(found)[end]]

        for values in itertools.islice(combinations_of(tables, options), _CHECKED_COMBINATIONS):
            filled = fill(tables, lambda place, _: values[place])  # noqa: B023  # called at once
            recipes.append(recipe_of(filled, where=where))
    return recipes[0]


def _why_not_this_variant(recipe: SearchRecipe, places: list[str]) -> str | None:
    """Say why the variant cannot be tuned by these ranges, or None if it can."""
    chain = _chain(recipe.example, recipe.tune.variant)
    if chain is None:
        names = ", ".join([BASELINE, *(variant.name for variant in recipe.example.variants)])
        return f"{recipe.tune.variant!r} does not exist; there are {names}"
    for variant in chain:
        if not isinstance(variant.step, KerasStep):
            return (
                f"{variant.name!r} is not trained, and training is what is tuned; "
                "choose a variant whose step trains"
            )
    if not chain and recipe.example.train is None:
        return "the recipe trains nothing; add a [train] table or tune a variant whose step trains"
    on_the_way = tuple(f"variant[{variant.name}]" for variant in chain)
    for place in places:
        if place.startswith("variant") and not place.startswith(on_the_way or ("\0",)):
            return (
                f"{place} changes nothing about {recipe.tune.variant!r}; "
                "name the variant whose ranges are to be searched"
            )
    return None


def _chain(recipe: Recipe, name: str) -> list[Variant] | None:
    """Return the variants from the baseline's first child to ``name``; None if there is no such."""
    by_name = {variant.name: variant for variant in recipe.variants}
    chain: list[Variant] = []
    while name != BASELINE:
        if name not in by_name:
            return None
        chain.insert(0, by_name[name])
        name = by_name[name].parent
    return chain


def _trained(recipe: Recipe, variant: str, *, seed: int, on_epoch: Any) -> History:
    """Train a recipe as far as ``variant``; return how its last training went."""
    task = _task(recipe)
    chain = _chain(recipe, variant) or []
    model, history = _baseline(recipe, task, seed, None if chain else on_epoch)
    teacher = model
    for made in chain:
        last = made is chain[-1]
        if not isinstance(made.step, KerasStep):
            raise UserError(f"variant {made.name!r} is not trained with these values")
        model, history = keras_step(
            model,
            made.step,
            task,
            seed=seed,
            teacher=teacher,
            on_epoch=on_epoch if last else None,
        )
    if history is None:
        raise UserError(f"{variant} is not trained with these values")
    return history


_last_task: dict[bytes, Task] = {}
_last_baseline: dict[bytes, tuple[Any, History | None]] = {}
"""What the trial before needed, which most trials need again; one entry each."""


def _task(recipe: Recipe) -> Task:
    key = msgspec.json.encode((recipe.data, recipe.seed))
    if key not in _last_task:
        _last_task.clear()
        _last_task[key] = without_test(load_task(recipe.data, seed=recipe.seed))
    return _last_task[key]


def _baseline(recipe: Recipe, task: Task, seed: int, on_epoch: Any) -> tuple[Any, History | None]:
    """Train the baseline; where it is only what a variant begins with, once for all trials."""
    network, train = recipe.network, recipe.train
    if on_epoch is not None:
        return baseline(network, train, task, seed=seed, on_epoch=on_epoch)
    key = msgspec.json.encode((network, train, recipe.data, recipe.seed, seed))
    if key not in _last_baseline:
        _last_baseline.clear()
        _last_baseline[key] = baseline(network, train, task, seed=seed)
    return _last_baseline[key]


def _as_drawn(value: Any, found: Range) -> Any:
    return value if isinstance(found, Choice) else type(ends(found)[0])(value)


def _builtins(value: Any) -> Any:
    return {key: item for key, item in msgspec.to_builtins(value).items() if item is not None}
