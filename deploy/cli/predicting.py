"""``lightship predict``: answers for files, at once or as they come."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.cli.command import print_json
from deploy.cli.options import (
    FILE_OR_FOLDER,
    FOLDER,
    json_option,
    memory_limit_option,
    public_key_option,
    size_asked,
    threads_option,
)
from deploy.errors import UserError

# Everything but click is imported inside the commands: --help answers at once.
if TYPE_CHECKING:
    from deploy.bundle.runtime import Runtime
    from deploy.bundle.watch import Answered


@click.command("predict")
@click.argument("bundle", type=FILE_OR_FOLDER)
@click.argument("samples", type=FILE_OR_FOLDER, required=False)
@click.option("--watch", type=FOLDER, help="In place of SAMPLES: answer for files as they come.")
@click.option(
    "--top", type=click.IntRange(min=1), default=1, show_default=True, help="Classes a sample."
)
@public_key_option
@threads_option
@memory_limit_option
@json_option
def predict_command(
    bundle: Path,
    samples: Path | None,
    watch: Path | None,
    top: int,
    public_key: Path | None,
    threads: int,
    memory_limit: str | None,
    as_json: bool,
) -> None:
    """Answer for SAMPLES with BUNDLE: an image, a folder, a .csv table or an .npy array.

    A classifier names the class, a regression prints its values, a detector of anomalies its score.
    With --watch it answers for each file in the folder once it is whole, and goes on until Ctrl-C or
    SIGTERM; --json prints one line of JSON a sample then.

    \b
    lightship predict model.lship digit.png
    lightship predict model.lship digits/ --top 3 --json
    lightship predict model.lship patients.csv
    lightship predict model.lship --watch camera/ --json
    """
    from deploy import load
    from deploy.bundle.footprint import fitting
    from deploy.bundle.watch import answers

    if (samples is None) == (watch is None):
        raise UserError("predict: give SAMPLES or --watch FOLDER, one of the two")
    found = []
    limit = size_asked("--memory-limit", memory_limit)
    with fitting(bundle, limit, threads=threads, public_key=public_key):
        runtime = load(bundle, threads=threads, warm_up=watch is not None, public_key=public_key)
        if watch is not None:
            _predict_as_they_come(runtime, watch, top=top, as_json=as_json)
        elif samples is not None:
            found = answers(runtime, samples, top=top)
    if watch is not None:
        return
    if as_json:
        print_json([answered.as_json() for answered in found])
        return
    width = max(len(answer.sample) for answer in found)
    for answer in found:
        click.echo(_answer_line(answer, width))


def _predict_as_they_come(runtime: Runtime, folder: Path, *, top: int, as_json: bool) -> None:
    """Print an answer for every file that comes, until Ctrl-C or SIGTERM."""
    import signal
    import threading

    import msgspec

    from deploy.bundle.watch import NoAnswer, answers_as_they_come

    stop = threading.Event()
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in kept:
        signal.signal(number, lambda *_: stop.set())
    try:
        for answer in answers_as_they_come(runtime, folder, top=top, stop=stop):
            if as_json:
                said = answer if isinstance(answer, NoAnswer) else answer.as_json()
                click.echo(msgspec.json.encode(said))
            elif isinstance(answer, NoAnswer):
                click.echo(f"warning: {answer.error}", err=True)
            else:
                click.echo(_answer_line(answer, 0))
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _answer_line(answered: Answered, width: int) -> str:
    return f"{answered.sample:{width}}  {answered.answer.text}"
