"""Options that several commands have, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

# Everything but click is imported inside the commands: --help answers at once.
if TYPE_CHECKING:
    from deploy.record import SessionOptions


FILE = click.Path(path_type=Path, dir_okay=False)


FOLDER = click.Path(path_type=Path, file_okay=False)


FILE_OR_FOLDER = click.Path(path_type=Path)


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on stdout; everything else goes to stderr."
)


threads_option = click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads a session."
)


memory_limit_option = click.option(
    "--memory-limit",
    metavar="SIZE",
    help="What a process that opens one model may hold in all, such as 64MB (Linux).",
)


arena_option = click.option(
    "--arena/--no-arena", default=None, help="Keep a run's memory for the next.  [default: arena]"
)


trust_model_option = click.option(
    "--trust-model",
    is_flag=True,
    help="Do not try a model file first in a process with limits on memory and time.",
)


public_key_option = click.option(
    "--public-key",
    type=FILE,
    help="Refuse a bundle unless BUNDLE.sig was made with this key's other half.",
)


def require_another(option: str, place: Path | None, *taken: Path | None) -> None:
    """Refuse a place for a result that something else has: what is read, or another result.

    Raises:
        UserError: if ``place`` is one of those ``taken``, or lies in one that is a folder.
    """
    from deploy.errors import UserError

    all_taken = {path.resolve() for path in taken if path}
    if place is not None and all_taken & {place.resolve(), *place.resolve().parents}:
        raise UserError(
            f"{option}: {place} is taken: it is what is read, or another result; name another file"
        )


def size_asked(option: str, text: str | None) -> int | None:
    """Return the bytes that an option such as ``64MB`` asks for."""
    from deploy.sizes import parse_size

    return None if text is None else parse_size(text, what=option)


def require_harmless_models(trusted: bool, options: SessionOptions, *models: Path | None) -> None:
    """Try models of unknown makers where they can do no harm, unless they are trusted."""
    from deploy.isolation import require_harmless
    from deploy.session import require_startable

    require_startable(options.threads)  # of a trusted model too, before anything long
    for model in models:
        if model is not None and not trusted:
            require_harmless(model, options)
