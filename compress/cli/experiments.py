"""``lightship demo`` and ``lightship run``: a whole recipe, from data to a report."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

from compress.cli.asked import (
    builtins_of,
)
from compress.cli.options import (
    recipe_options,
)
from compress.shipped import shipped_recipes
from deploy.cli.command import goes_on_when_repeated, print_json
from deploy.cli.options import (
    FOLDER,
    json_option,
    require_folder,
)
from deploy.errors import needs_extra

# Everything but click is imported inside the commands: --help answers at once.
if TYPE_CHECKING:
    from compress.recipe import Recipe


@click.command()
@click.option("--out", type=FOLDER, help="The run folder.  [default: runs/demo]")
@recipe_options
@json_option
def demo(
    out: Path | None, seed: int | None, threads: int | None, remeasure: bool, as_json: bool
) -> None:
    """Compress LeNet-5 on the embedded sample of MNIST: minutes, no network."""
    recipe = _resolved("demo", seed=seed, threads=threads)
    folder, store = _folders(recipe, out, None, seed=seed)
    _run(recipe, "demo", out=folder, store=store, remeasure=remeasure, as_json=as_json)


@click.command(
    help=f"""Carry out RECIPE: a TOML file, or the name of one that ships with lightship.

    The names are {", ".join(sorted(shipped_recipes()))}. A run that was cut off goes on where it was
    when the same command is given again.

    \b
    lightship run lenet_5
    lightship run my_recipe.toml --out runs/mine --dry-run
    """
)
@click.argument("recipe")
@click.option(
    "--out",
    type=FOLDER,
    help="The run folder.  [default: runs/NAME, with --seed N runs/NAME-seed-N]",
)
@click.option(
    "--store", type=FOLDER, help="Finished steps.  [default: .store beside the run folder]"
)
@recipe_options
@click.option(
    "--tensorboard", type=FOLDER, help="Write logs for TensorBoard there, a folder per variant."
)
@click.option("--dry-run", is_flag=True, help="Print the resolved recipe and what is done already.")
@json_option
def run(
    recipe: str,
    out: Path | None,
    store: Path | None,
    seed: int | None,
    threads: int | None,
    remeasure: bool,
    tensorboard: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Carry out a recipe; ``help`` says how."""
    resolved = _resolved(recipe, seed=seed, threads=threads)
    folder, kept = _folders(resolved, out, store, seed=seed)
    if dry_run:
        _dry_run(resolved, out=folder, store=kept, as_json=as_json)
    else:
        _run(
            resolved,
            recipe,
            out=folder,
            store=kept,
            remeasure=remeasure,
            tensorboard=tensorboard,
            as_json=as_json,
        )


def _resolved(name: str, *, seed: int | None, threads: int | None) -> Recipe:
    """Return a recipe with the command line's seed and threads in place of its own."""
    with needs_extra("compress"):
        from compress.recipe import load_recipe
    import msgspec

    recipe = load_recipe(name)
    if threads is not None:
        bench = msgspec.structs.replace(recipe.bench, threads=threads)
        recipe = msgspec.structs.replace(recipe, bench=bench)
    return recipe if seed is None else msgspec.structs.replace(recipe, seed=seed)


def _folders(
    recipe: Recipe, out: Path | None, store: Path | None, *, seed: int | None
) -> tuple[Path, Path]:
    """Return the run folder and the store; another seed than the recipe's gets its own folder."""
    name = recipe.name if seed is None else f"{recipe.name}-seed-{seed}"
    folder = out or Path("runs") / name
    return folder, store or folder.parent / ".store"


def _run(
    recipe: Recipe,
    name: str,
    *,
    out: Path,
    store: Path,
    remeasure: bool,
    as_json: bool,
    tensorboard: Path | None = None,
) -> None:
    """Carry a recipe out, print its table and its verdict, and say where the report is."""
    require_folder("--out", out)
    require_folder("--store", store)
    with needs_extra("compress"):
        from compress import pipeline
    from compress.progress import ConsoleWatcher, print_table
    from compress.store import Store

    command = f"lightship run {name} --seed {recipe.seed} --threads {recipe.bench.threads}"
    with goes_on_when_repeated(), ConsoleWatcher(variants=1 + len(recipe.variants)) as watcher:
        results = pipeline.run(
            recipe,
            out=out,
            store=Store(store),
            watcher=watcher,
            command=command,
            now=datetime.now(timezone.utc),
            remeasure=remeasure,
            tensorboard=tensorboard,
        )
    if as_json:
        print_json(results)
        return
    print_table(results)
    for warning in results.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(results.verdict)
    if (out / pipeline.BEST).exists():
        click.echo(out / pipeline.BEST)
    click.echo(out / "report.html")


def _dry_run(recipe: Recipe, *, out: Path, store: Path, as_json: bool) -> None:
    """Print the resolved recipe, and which of its steps an earlier run has done."""
    from compress.data.splits import load_task
    from compress.plan import check_names, plan
    from compress.recipe import to_toml
    from compress.store import Store

    task = load_task(recipe.data, seed=recipe.seed)
    stages = plan(recipe, task)
    found = {name: Store(store).find(stage.model_key) for name, stage in stages.items()}
    if not all(found.values()):
        check_names(recipe, task, stages)
    if not as_json:
        click.echo(to_toml(recipe))
    if as_json:
        done = {name: folder is not None for name, folder in found.items()}
        print_json({"out": str(out), "recipe": builtins_of(recipe), "done": done})
        return
    for name, stage in stages.items():
        origin = f"from {stage.parent}" if stage.parent else "trained"
        click.echo(f"# {'done ' if found[name] else 'to do'}  {name}  {origin}")
