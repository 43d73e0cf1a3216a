"""Keeps what TensorFlow's C++ prints while it is imported off the terminal."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from types import ModuleType

_CHATTY = frozenset({"tensorflow", "tf_keras"})


def quiet_tensorflow() -> None:
    """Silence TensorFlow from here on: its log, and what it prints when it is first imported.

    Setting ``TF_CPP_MIN_LOG_LEVEL`` alone is not enough: some lines are written before anything
    reads it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the chatty modules as everyone else does, and makes their import silent."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _CHATTY:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            loader = spec.loader
            execute = loader.exec_module

            def execute_silently(module: ModuleType) -> None:
                with _stderr_aside():
                    execute(module)

            loader.exec_module = execute_silently  # type: ignore[method-assign]  # this one loader
        return spec


@contextlib.contextmanager
def _stderr_aside() -> Iterator[None]:
    """Catch what is written to file descriptor 2; print it only if the block fails."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        except BaseException:
            caught.seek(0)
            os.write(terminal, caught.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
