"""Keeps what TensorFlow's C++ prints while it is imported off the terminal."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
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
                with stderr_aside():
                    execute(module)

            loader.exec_module = execute_silently  # type: ignore[method-assign]  # this one loader
        return spec
