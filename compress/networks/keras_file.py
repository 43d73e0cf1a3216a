"""A network that lies in a file, opened without running code of its maker."""

from __future__ import annotations

import contextlib
import json
import zipfile
from pathlib import Path
from typing import Any

import msgspec

from compress.networks.config import NetworkConfig
from compress.networks.embedded_code import embedded_code
from compress.networks.from_keras3 import from_keras3
from compress.networks.python_function import working_folder_importable
from deploy.errors import UserError, needs_extra


class KerasFile(NetworkConfig, frozen=True, tag="keras"):
    """A ``.keras`` or ``.h5`` file of tf-keras or Keras 3, with the weights it holds."""

    path: str
    """Relative to the working folder, or absolute."""
    trust_code: bool = False
    """Load the file even where it holds code of its maker, which then runs."""


class _Contents(msgspec.Struct, frozen=True):
    """What a file says of itself before anything in it is built."""

    config: dict[str, Any]
    keras_version: str


def load_keras(path: Path, *, trust_code: bool = False) -> Any:
    """Return the uncompiled ``tf_keras.Model`` of a file, with its weights.

    The config is read and searched for code before either Keras sees the file: tf-keras runs the
    code of a ``Lambda`` layer in an ``.h5`` file without a word. A file of Keras 3 is opened by
    Keras 3 and rebuilt by ``from_keras3``.

    Args:
        path: a ``.keras``, ``.h5`` or ``.hdf5`` file.
        trust_code: load a file that holds code of its maker, and let that code run.

    Raises:
        UserError: if there is no such file, it is damaged or of another format, holds weights
            alone or code that is not trusted, or has a layer that tf-keras cannot build.
    """
    with needs_extra("compress"):
        import tf_keras
    contents = _look_into(path)
    try:
        code = next(embedded_code(contents.config), None)
    except RecursionError as error:
        raise UserError(
            f"{path}: its config is nested too deeply to be a network; save the network again"
        ) from error
    if code is not None and not trust_code:
        raise UserError(
            f"{path}: holds {code}: loading it would run code from the file; "
            f"give --trust-code if you trust whoever made it"
        )
    is_keras3 = contents.keras_version.startswith("3.")
    if is_keras3:
        with needs_extra("compress"):
            import keras
    loader = keras.saving.load_model if is_keras3 else tf_keras.saving.load_model
    try:
        # Trusted code may lie in a module beside the file's user.
        with working_folder_importable() if trust_code else contextlib.nullcontext():
            model = loader(str(path), compile=False, safe_mode=not trust_code)
    # Keras raises whatever the first odd entry of a file leads to.
    except Exception as error:
        maker = "Keras 3" if is_keras3 else "tf-keras"
        raise UserError(f"{path}: {maker} cannot build it: {_one_line(error)}") from error
    return from_keras3(model, where=str(path)) if is_keras3 else model


def _look_into(path: Path) -> _Contents:
    """Read the config the loader will read, by the loader's own rule of which format it is."""
    if path.is_dir():
        what = "SavedModel folder" if (path / "saved_model.pb").exists() else "folder"
        raise UserError(f"{path}: is a {what}; save the network as a .keras file and give that")
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a .keras or .h5 file")
    if path.suffix not in {".keras", ".h5", ".hdf5"}:
        raise UserError(f"{path}: needs a file named .keras, .h5 or .hdf5, got {path.suffix!r}")
    if path.suffix == ".keras" and zipfile.is_zipfile(path):
        return _look_into_archive(path)
    return _look_into_hdf5(path)


def _look_into_archive(path: Path) -> _Contents:
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
            version = json.loads(archive.read("metadata.json"))["keras_version"]
        return msgspec.convert({"config": config, "keras_version": version}, _Contents)
    # The unpackers raise their own exceptions, and others for an archive that is locked, of a
    # foreign version or nested without end.
    except Exception as error:
        raise UserError(
            f"{path}: is no .keras archive, or is damaged ({_one_line(error)})"
        ) from error


def _look_into_hdf5(path: Path) -> _Contents:
    import h5py

    if not h5py.is_hdf5(path):
        raise UserError(f"{path}: is damaged, or neither a .keras archive nor an HDF5 file")
    try:
        with h5py.File(path, "r") as file:
            config, version = file.attrs.get("model_config"), file.attrs.get("keras_version", "")
        found = {} if config is None else json.loads(config)
        # Older files hold bytes where newer ones hold text.
        version = version.decode() if isinstance(version, bytes) else version
        contents = {"config": found, "keras_version": version}
        checked = msgspec.convert(contents, _Contents)
    # HDF5's own errors come as whatever Python exception looked closest.
    except Exception as error:
        raise UserError(f"{path}: is a damaged HDF5 file ({_one_line(error)})") from error
    if config is None:
        raise UserError(
            f"{path}: holds no network, at most weights; save it whole with model.save(...)"
        )
    return checked


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
