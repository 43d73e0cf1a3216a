"""A network that a function of the user's own code builds."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
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

    What the user's code prints goes to stderr: stdout belongs to results.

    Raises:
        UserError: if the module or the function is not there, or the function does not take
            ``(input_shape, classes)``.
    """
    module_name, _, function_name = network.function.partition(":")
    with working_folder_importable(), contextlib.redirect_stdout(sys.stderr):
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
        why_not = _why_not_called(function, input_shape, classes)
        if why_not is not None:
            raise UserError(f"{network.function}: must take (input_shape, classes); {why_not}")
        return function(input_shape, classes)


def _why_not_called(function: Callable[..., Any], *arguments: object) -> str | None:
    """Say why a function does not take these arguments, or None if it does or cannot be asked."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built in C have none
        return None
    try:
        signature.bind(*arguments)
    except TypeError as error:
        return f"it takes {' '.join(str(signature).split())}: {error}"
    return None


@contextlib.contextmanager
def working_folder_importable() -> Iterator[None]:
    """Look for modules in the working folder first while the block lasts."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
