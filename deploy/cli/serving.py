"""``lightship serve``: answers over HTTP."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from deploy.cli.command import print_json
from deploy.cli.options import (
    FILE,
    FILE_OR_FOLDER,
    json_option,
    public_key_option,
)

# Everything but click is imported inside the commands: --help answers at once.


@click.command("serve")
@click.argument("bundles", type=FILE_OR_FOLDER, nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 is everyone.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one."
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads a run.  [default: as bundled]")
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Samples of one run that may come from several requests.",
)
@click.option(
    "--queue",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Requests of a model that may wait; the next is refused.",
)
@click.option(
    "--deadline-ms",
    type=click.FloatRange(min=0, min_open=True),
    default=1000.0,
    show_default=True,
    help="Longest wait in the queue.",
)
@click.option(
    "--max-body-mb",
    type=click.FloatRange(min=0, min_open=True),
    default=16.0,
    show_default=True,
    help="Largest request, in millions of bytes.",
)
@click.option(
    "--timeout-s",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Longest time for a request to arrive.",
)
@click.option(
    "--api-key-file", type=FILE, help="One API key a line; else $LIGHTSHIP_API_KEY, else none."
)
@click.option("--tls-cert", type=FILE, help="PEM certificate, with --tls-key.")
@click.option("--tls-key", type=FILE, help="Its PEM key, without a password.")
@public_key_option
@json_option
def serve_command(bundles: tuple[Path, ...], as_json: bool, **asked: Any) -> None:
    """Answer for BUNDLES over HTTP, in the Open Inference Protocol v2, until SIGTERM or SIGINT.

    Needs the extra 'serve'. One line, with --json one document, says when it is ready and where.

    \b
    lightship serve runs/demo/best.lship
    lightship serve digits.lship clothes.lship --host 0.0.0.0 --api-key-file keys.txt
    """
    from deploy.errors import needs_extra

    with needs_extra("serve"):
        from deploy.serve.command import serve

    def ready(said: dict[str, object], lines: list[str]) -> None:
        if as_json:
            print_json(said)
            sys.stdout.flush()
            return
        for line in lines:
            click.echo(line)

    def warn(line: str) -> None:
        click.echo(f"warning: {line}", err=True)

    serve(bundles, **asked, on_ready=ready, warn=warn)
