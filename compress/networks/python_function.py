"""A network that a function of the user's own code builds."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from compress.networks.config import NetworkConfig
from deploy.errors import UserError


class PythonFunction(NetworkConfig, frozen=True, tag="function"):
    """A function called as ``function(input_shape, classes)`` that returns a ``tf_keras.Model``.

    ``input_shape`` is the tuple of one sample's sizes without the batch axis. The module is looked
    for in the working folder first, then where Python looks. It is the user's own code: it runs.
    """

    function: Annotated[str, Meta(pattern=r"^\w+(\.\w+)*:\w+$")]
    """``module:function``, for example ``nets.small:make``."""


def call_function(network: PythonFunction, *, input_shape: tuple[int, ...], classes: int) -> Any:
    """Return what the function returns; an exception of the function itself passes through.

    Raises:
        UserError: if the module or the function is not there.
    """
    module_name, _, function_name = network.function.partition(":")
    with working_folder_importable():
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
                raise UserError(
                    f"{network.function}: no module named {error.name!r} in {Path.cwd()} or among "
                    f"the installed ones; run from the folder that holds it"
                ) from error
            raise UserError(
                f"{network.function}: the module imports {error.name!r}, which is not installed"
            ) from error
        function = getattr(module, function_name, None)
        if not callable(function):
            raise UserError(
                f"{network.function}: {module_name!r} has no function {function_name!r}; "
                f"write one that takes (input_shape, classes)"
            )
        return function(input_shape, classes)


def module_file(network: PythonFunction) -> Path | None:
    """Return the file of the function's module, or None if it has none; nothing is run."""
    with working_folder_importable():
        try:
            spec = importlib.util.find_spec(network.function.partition(":")[0])
        except ModuleNotFoundError:
            return None
    return Path(spec.origin) if spec and spec.origin else None


@contextlib.contextmanager
def working_folder_importable() -> Iterator[None]:
    """Look for modules in the working folder first while the block lasts."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
