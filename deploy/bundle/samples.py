"""Samples to predict, from image files, folders of them, tables and arrays."""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.bundle.manifest import Tensor
from deploy.errors import UserError, needs_extra
from deploy.preprocess import ImageSize, Preprocess, resize_images
from deploy.tables import read_rows, samples_of, table_of

Array = npt.NDArray[Any]

_IMAGES = (".png", ".jpg", ".jpeg")
SUFFIXES = frozenset({*_IMAGES, ".npy"})
"""What can be read, by the end of its name."""
_MODES = {1: "L", 3: "RGB"}
_MOST_FILE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Samples:
    """Raw samples ``x`` ``(n, ...)`` and what to call each."""

    x: Array
    names: tuple[str, ...]


def read_samples(path: Path, raw: Tensor, preprocess: Preprocess = ()) -> Samples:
    """Read what a bundle can answer for.

    Args:
        path: a PNG or JPEG image, a folder of such, a ``.csv`` table with a header line, or an
            ``.npy`` file with one sample or several.
        raw: what one sample is; images become grey or coloured to fit it.
        preprocess: the model's own; images keep their size unless it begins with ``image_size``,
            and it begins with ``table`` if samples are rows of a table.

    Raises:
        UserError: if a file is missing, unreadable, or of another size.
        MissingExtraError: if an image is given and Pillow is not installed.
    """
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in _IMAGES)
        if not files:
            raise UserError(f"{path}: holds no .png or .jpg images; give a folder that does")
        x = np.stack([_image(p, raw, preprocess) for p in files])
        return Samples(x, tuple(p.name for p in files))
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; give an image, a folder of images, a .csv table or an .npy array"
        )
    if path.suffix.lower() in _IMAGES:
        return Samples(_image(path, raw, preprocess)[None], (path.name,))
    if path.suffix.lower() == ".csv":
        return _rows(path, preprocess)
    if path.suffix.lower() != ".npy":
        raise UserError(f"{path}: must be a .png, .jpg, .csv or .npy file, or a folder of images")
    array = _array(path)
    x = array[None] if array.shape == raw.shape else array
    return Samples(x, tuple(f"{path.name}[{index}]" for index in range(len(x))))


def _array(path: Path) -> Array:
    try:
        if path.stat().st_size > _MOST_FILE_BYTES:
            raise UserError(f"{path}: is larger than {_MOST_FILE_BYTES:,} bytes; split it")
        with warnings.catch_warnings():
            # numpy advises whoever reads a file of Python 2 to write it anew.
            warnings.simplefilter("ignore")
            array: Array = np.lib.format.open_memmap(path, mode="r")
    # What numpy's header reader, a parser of Python literals, meets in foreign bytes.
    except (
        ValueError,
        OSError,
        EOFError,
        SyntaxError,
        TypeError,
        TokenError,
        MemoryError,
    ) as error:
        objects = "Python objects" in str(error) or "pickle" in str(error)
        reason = "Python objects are refused" if objects else str(error)
        raise UserError(f"{path}: not a readable .npy file ({reason})") from error
    if not isinstance(array, np.ndarray) or array.ndim == 0 or array.dtype.kind not in "biuf":
        raise UserError(f"{path}: must hold an array of numbers")
    return np.asarray(array)


def _rows(path: Path, preprocess: Preprocess) -> Samples:
    table = table_of(preprocess)
    if table is None:
        raise UserError(f"{path}: this model's samples are no rows of a table; give an .npy array")
    x = samples_of(read_rows(path), table, where=str(path))
    return Samples(x, tuple(f"{path.name}[{index}]" for index in range(len(x))))


def _image(path: Path, raw: Tensor, preprocess: Preprocess) -> Array:
    """Read one image: transparency, and the orientation that a camera notes, are ignored."""
    height, width, *rest = (*raw.shape, 0, 0)[: max(2, len(raw.shape))]
    mode = _MODES.get(rest[0] if rest else 1)
    if mode is None or len(raw.shape) not in {2, 3} or raw.dtype != "uint8":
        raise UserError(
            f"{path}: this model takes {raw.dtype} samples of shape {raw.shape}, which no image "
            "file is; give an .npy array"
        )
    with needs_extra("images"):
        from PIL import Image
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            resized = bool(preprocess) and isinstance(preprocess[0], ImageSize)
            # Known from the header: nothing is unpacked yet.
            if image.size != (width, height) and not resized:
                raise UserError(
                    f"{path}: is {image.size[0]}×{image.size[1]} pixels, the model takes "
                    f"{width}×{height}; bring it to that size first"
                )
            if image.mode[0] in "IF":  # Pillow would clip them to 255
                raise UserError(f"{path}: has more than 8 bits a pixel; save it with 8")
            pixels = np.asarray(image.convert(mode))
    # What Pillow's PNG and JPEG readers raise on damaged files.
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable PNG or JPEG image ({error})") from error
    if resized:
        pixels = resize_images(pixels.reshape(1, *pixels.shape[:2], -1), height, width)
    return pixels.reshape(raw.shape)
