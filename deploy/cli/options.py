"""Options that several commands have, and what they mean."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
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


def require_place(
    option: str, place: Path | None, *taken: Path | None, suffixes: Sequence[str] = ()
) -> None:
    """Refuse a place for a result before the work, not after it.

    Args:
        option: what names the place.
        place: None is no place, which is fine.
        taken: what is read, and the places of other results; of a folder all that is in it, of a
            model its record too.
        suffixes: what the name may end in; with none, in anything.

    Raises:
        UserError: if the name ends otherwise, the place is taken or is no file, or none can be made
            there.
    """
    from deploy.errors import UserError
    from deploy.record import record_path

    if place is None:
        return
    if suffixes and place.suffix not in suffixes:
        raise UserError(f"{option}: must end in {', '.join(suffixes)}, got {place}")
    with _reachable(option, place):
        has = {path.resolve() for one in taken if one for path in (one, record_path(one))}
        if has & {place.resolve(), *place.resolve().parents}:
            raise UserError(
                f"{option}: {place} is taken: it is what is read, or another result; name another "
                "file"
            )
        if place.exists() and not place.is_file():
            what = "folder" if place.is_dir() else "device, a pipe or a socket"
            raise UserError(f"{option}: {place} is a {what}; name a file")
        _require_writable(place.parent)


def signatures_of(*bundles: Path | None) -> list[Path]:
    """Return where the signatures of bundles are, if they have any."""
    from deploy.bundle.signature import signature_path

    return [signature_path(bundle) for bundle in bundles if bundle is not None]


def require_folder(option: str, place: Path) -> None:
    """Refuse a folder for results in which no file can be made, before the work, not after it.

    Raises:
        UserError: if none can be made there.
    """
    with _reachable(option, place):
        _require_writable(place)


@contextlib.contextmanager
def _reachable(option: str, place: Path) -> Iterator[None]:
    """Let what the system says of a place in the block be said in one line."""
    from deploy.errors import UserError

    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:  # also links in a circle, and a zero byte
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"{option}: {place} cannot be written: {why}; name another place"
        ) from error


def _require_writable(folder: Path) -> None:
    """Raise an OSError if no file can be made in a folder, or in the one where it will be made."""
    import tempfile

    absolute = folder.absolute()
    there = next(one for one in (absolute, *absolute.parents) if one.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass  # permissions alone do not tell: file systems differ
    except OSError as error:
        raise OSError(error.errno, f"{there} takes no file ({error.strerror})") from error


def require_picture(option: str, place: Path | None, *taken: Path | None) -> None:
    """Refuse a place for a picture, as ``require_place`` does, before there is something to draw.

    Raises:
        UserError: as ``require_place`` does.
        MissingExtraError: if matplotlib is not installed.
    """
    from deploy.errors import needs_extra

    require_place(option, place, *taken, suffixes=(".svg", ".png", ".pdf"))
    if place is not None:
        with needs_extra("report"):
            import matplotlib.figure  # noqa: F401  # drawing comes last; what it needs is asked first


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
