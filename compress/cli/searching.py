"""``lightship validate`` and ``lightship tune``: which recipe, and with which settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from deploy.cli.command import goes_on_when_repeated, print_json
from deploy.cli.options import (
    FOLDER,
    json_option,
    require_folder,
)
from deploy.errors import needs_extra

# Everything but click is imported inside the commands: --help answers at once.


@click.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@click.option("--folds", type=click.IntRange(min=2), default=5, show_default=True)
@click.option(
    "--hold-out",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    help="Instead of folds: hold out this share of the samples, drawn anew in each repeat.",
)
@click.option("--repeats", type=click.IntRange(min=1), default=1, show_default=True)
@click.option(
    "--stratified/--not-stratified",
    default=True,
    show_default=True,
    help="Whether every class keeps its share in each fold.",
)
@click.option("--metric", help="Such as val_loss.  [default: the task's own]")
@click.option("--out", type=FOLDER, default=Path("runs/validate"), show_default=True)
@click.option(
    "--store", type=FOLDER, help="Finished folds.  [default: .store beside the output folder]"
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Instead of the first recipe's.")
@json_option
def validate(
    recipes: tuple[str, ...],
    folds: int,
    hold_out: float | None,
    repeats: int,
    stratified: bool,
    metric: str | None,
    out: Path,
    store: Path | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Choose between RECIPEs by cross-validation; train the best again on all training data.

    The candidates are recipes, or one recipe with alternatives in the place of values:
    optimizer = { choice = [{ kind = "adam" }, { kind = "sgd" }] }. All see the same folds. The
    test split is not touched. Finished folds are kept, so the same command goes on where it was
    cut off, and more folds or candidates cost only what is new.

    \b
    lightship validate one.toml other.toml --folds 5 --repeats 2
    """
    with needs_extra("compress"):
        from compress.selection import (
            PICTURE,
            WINNER_MODEL,
            WINNER_RECIPE,
            choose,
            load_candidates,
            rows,
            verdict,
        )
    from compress.store import Store
    from compress.train.validate import HoldOut, KFold

    require_folder("--out", out)

    def told(name: str, done: int, total: int, fold: Any) -> None:
        click.echo(f"{done}/{total}  {name}: {fold.value:.4f}  {fold.seconds:.1f} s", err=True)

    with goes_on_when_repeated():
        found = choose(
            load_candidates(recipes, seed=seed),
            KFold(folds=folds, repeats=repeats, stratified=stratified)
            if hold_out is None
            else HoldOut(fraction=hold_out, repeats=repeats, stratified=stratified),
            metric=metric,
            out=out,
            store=Store(store or out.parent / ".store"),
            on_fold=told,
        )
    if as_json:
        print_json(found)
        return
    for row in rows(found):
        click.echo(f"{found.metric} {row.mean} {row.interval}  {row.against_winner}  {row.name}")
    click.echo(verdict(found))
    for name in (PICTURE, WINNER_MODEL, WINNER_RECIPE):
        click.echo(out / name)


@click.command()
@click.argument("recipe")
@click.option("--out", type=FOLDER, help="Where the search is kept.  [default: runs/NAME-search]")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Trials at once, each in a process.  [default: 1; with --ray, the cluster's cores]",
)
@click.option(
    "--ray",
    "cluster",
    metavar="ADDRESS",
    help="Place trials on a Ray cluster: auto for the one this machine is in, or HOST:PORT.",
)
@click.option("--trials", type=click.IntRange(min=1), help="Instead of the recipe's.")
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), help="Instead of the recipe's."
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Instead of the recipe's.")
@json_option
def tune(
    recipe: str,
    out: Path | None,
    workers: int | None,
    cluster: str | None,
    trials: int | None,
    minutes: float | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Search the values that a RECIPE leaves open as ranges; write the best as a recipe.

    A range stands in the recipe in the place of a value: learning_rate = { log = [1e-4, 1e-1] },
    and the table [tune] says how to search. Trials are judged by validation; the test split is
    not touched. A search that was cut off goes on where it was when the same command is given
    again; after Ctrl-C or --minutes the best so far is there.

    \b
    lightship tune my_search.toml --workers 2
    lightship run runs/mine-search/best.toml
    """
    with needs_extra("compress"):
        from compress.progress import SearchWatcher
        from compress.tuning import BEST, PICTURE, load_search_recipe, tune_recipe

    asked = load_search_recipe(recipe, trials=trials, minutes=minutes, seed=seed)
    folder = out or Path("runs") / f"{asked.example.name}-search"
    require_folder("--out", folder)
    place = _trial_places(workers, cluster)
    watcher = SearchWatcher()
    found = tune_recipe(asked, out=folder, workers=place, on_trial=watcher.trial_ended)
    if as_json:
        print_json(found)
    else:
        watcher.print_table(found)
        if found.ended != "all trials":
            click.echo(
                f"{found.ended} after {len(found.trials)} of {found.planned} trials; "
                "the same command goes on"
            )
        for name in (PICTURE, BEST):
            if (folder / name).exists():
                click.echo(folder / name)
    if found.ended == "interrupted":
        raise SystemExit(130)  # what a shell expects after Ctrl-C


def _trial_places(workers: int | None, cluster: str | None) -> Callable[[Any], Any]:
    """Return what makes those who carry out trials, given what a trial is."""
    from compress.train.workers import InThisProcess, Processes

    if cluster is not None:
        from compress.train.on_ray import OnRay

        return lambda trial: OnRay(trial, address=cluster, most=workers)
    if workers is None or workers == 1:
        return InThisProcess
    return lambda trial: Processes(trial, workers)
