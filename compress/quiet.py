"""Keeps off the terminal what TensorFlow prints and nobody can act on."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from deploy.quiet import stderr_aside

_CHATTY = frozenset({"tensorflow", "tf_keras"})


def quiet_tensorflow() -> None:
    """Silence TensorFlow from here on: its log, and what it prints when it is first imported.

    Setting ``TF_CPP_MIN_LOG_LEVEL`` alone is not enough: some lines are written before anything
    reads it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").addFilter(_is_worth_saying)
    sys.meta_path.insert(0, _Finder())


def _is_worth_saying(record: logging.LogRecord) -> bool:
    """Pass over what TensorFlow says of many small trainings in one process: each has graphs of its own."""
    return "triggered tf.function retracing" not in record.getMessage()


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
                with stderr_aside():
                    execute(module)

            loader.exec_module = execute_silently  # type: ignore[method-assign]  # this one loader
        return spec
