"""What every command that makes one model does around its step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.asked import (
    builtins_of,
)
from deploy.cli.command import print_json

# Everything but click is imported inside the commands: --help answers at once.
if TYPE_CHECKING:
    from compress.data.task import Task
    from compress.progress import ConsoleWatcher
    from compress.train.fit import TrainingFiles
    from deploy.record import Artifact, LayerFacts
    from deploy.session import ModelMetadata


@contextlib.contextmanager
def resumable(
    out: Path, step: Any, options: dict[str, Any], *, keep: bool = True
) -> Iterator[TrainingFiles]:
    """Yield where a training keeps what it needs to go on, beside its result; tidy up at the end.

    Nothing is written or removed if not ``keep``: another worker does.
    """
    from compress.plan import training_key
    from compress.train.fit import TrainingFiles

    checkpoint, key = out.with_name(f"{out.name}.unfinished"), training_key(builtins_of(step))
    if not keep:
        yield TrainingFiles(checkpoint=checkpoint, key=key)
        return
    if options["restart"]:
        checkpoint.unlink(missing_ok=True)
    if checkpoint.exists():
        click.echo(f"{checkpoint}: going on where it was, if the command is the same", err=True)
    try:
        yield TrainingFiles(
            checkpoint=checkpoint,
            key=key,
            csv=out.with_suffix(".epochs.csv"),
            tensorboard=options["tensorboard"],
        )
    except KeyboardInterrupt:
        how = "goes on where it was" if checkpoint.exists() else "begins anew"
        raise KeyboardInterrupt(f"the same command {how}") from None
    checkpoint.unlink(missing_ok=True)


def description(
    task: Task, step: Any, *, parent: Path | None = None, teacher: Path | None = None
) -> ModelMetadata:
    """Return what a model made by one step says of itself.

    Args:
        task: what it was made for.
        step: the step.
        parent: the file it was made from.
        teacher: the file whose answers its training listened to, if that is another one.
    """
    from compress.artifacts import describe
    from deploy.record import sha256_of

    made = builtins_of(step)
    if teacher is not None:
        made["teacher"] = sha256_of(teacher)
    return describe(task, step=made, parent=sha256_of(parent) if parent else None)


def watching(out: Path, *, epochs: int) -> ConsoleWatcher:
    """Return a watcher of one model being made."""
    from compress.progress import ConsoleWatcher

    watcher = ConsoleWatcher(variants=1)
    watcher.begins(out.stem, epochs=epochs)
    return watcher


def say_done(out: Path, artifact: Artifact, *, as_json: bool) -> None:
    """Say what was written: one line, or the whole record; on stderr, what is known of each layer."""
    for line in _layer_lines(artifact.layers):
        click.echo(line, err=True)
    if as_json:
        print_json(artifact)
        return
    zeros = 1 - artifact.nonzero_parameters / max(1, artifact.parameters)
    click.echo(
        f"{out}  {artifact.size_bytes:,} bytes, {artifact.gzip_bytes:,} gzipped, "
        f"{artifact.parameters:,} weights, {zeros:.1%} zeros"
    )


def _layer_lines(layers: Sequence[LayerFacts]) -> Iterator[str]:
    """Yield what is known of each layer: weights, zeros, distinct values, what a step says of it."""
    names = max((len(layer.name) for layer in layers), default=0)
    for layer in layers:
        values = f"  {layer.distinct:,} values" if layer.shares_values else ""
        note = f"  {layer.note}" if layer.note else ""
        yield (
            f"  {layer.name:{names}}  {layer.parameters:>9,} weights  {layer.sparsity:6.1%} zeros"
            f"{values}{note}"
        )
