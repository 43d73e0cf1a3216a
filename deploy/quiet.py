"""Keeps what libraries write to file descriptor 2, past Python, off the terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def stderr_aside(*, drop: bool = False) -> Iterator[None]:
    """Catch what is written to file descriptor 2; print it only if the block fails.

    Args:
        drop: do not print it then either, because the error says it all.
    """
    import tempfile  # here: a device seldom needs it

    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        except BaseException:
            caught.seek(0)
            if not drop:
                os.write(terminal, caught.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
