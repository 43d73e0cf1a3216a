"""The errors a user can meet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


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
