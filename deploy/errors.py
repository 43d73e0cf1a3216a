"""The errors a user can meet."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping


class UserError(Exception):
    """A mistake that its user can mend: printed as one line, exit code 2.

    The message names the field or file, the rule, what was got and what to do.
    """


class MissingExtraError(UserError):
    """A feature was asked for whose extra dependencies are not installed."""


class BundleError(UserError):
    """A bundle is damaged, is none, or does not do what it promises: nothing of it was used."""


class ParityError(Exception):
    """A step that promised to change nothing changed the numbers: a bug, never a user's mistake."""


@contextlib.contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turn a failed import inside the block into one line that names the extra to install.

    Raises:
        MissingExtraError: if an import inside the block fails.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{error.name} is not installed: this needs the extra '{extra}', "
            f"install it with: pip install 'lightship[{extra}]'"
        ) from error


def as_given(text: str, given: Mapping[str, str]) -> str:
    """Return a text in which files are called as their user calls them.

    Args:
        text: what names files.
        given: what the user gave, by the name of the file that stands for it.

    >>> as_given("/scratch/1-a.onnx: is cut off", {"/scratch/1-a.onnx": "a.lship"})
    'a.lship: is cut off'
    """
    longest_first = sorted(given, key=len, reverse=True)  # one may be the beginning of another
    if not longest_first:
        return text
    any_of_them = "|".join(re.escape(name) for name in longest_first)
    return re.sub(rf"(?:\./)?({any_of_them})", lambda found: given[found[1]], text)


@contextlib.contextmanager
def naming_what_was_given(given: Mapping[str, str]) -> Iterator[None]:
    """Let the errors of the block call files as ``as_given`` does, not by names that nobody gave."""
    try:
        yield
    except UserError as error:
        error.args = (as_given(str(error), given),)
        raise
