"""Labelled samples that lie in folders as image files, one folder per class."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.data.labelled import Labelled
from deploy.errors import UserError, needs_extra
from deploy.evalset import EvalSet
from deploy.preprocess import resize_images
from deploy.streams import MEMORY_BYTES, Spool, choose

_SUFFIXES = (".png", ".jpg", ".jpeg")
_GREY = ("1", "L", "LA")
_COLOUR = ("RGB", "RGBA", "P", "CMYK", "YCbCr")


def read_images(
    folder: Path, *, size: tuple[int, int] | None = None, memory_bytes: int = MEMORY_BYTES
) -> Labelled:
    """Read PNG and JPEG images from one sub-folder per class, which gives the class its name.

    If the folder holds ``train/`` and ``test/``, the class folders lie in those. Samples are uint8
    ``(n, height, width, channels)``: one channel if every image is grey, else three. Transparency
    and the orientation that a camera notes are ignored.

    Args:
        folder: where they lie.
        size: height and width that all images are brought to, as ``ImageSize`` says; None demands
            that all have one size.
        memory_bytes: more than this is kept on disk, each image decoded once.

    Raises:
        UserError: if a folder or image is missing, unreadable, of another kind or another size.
        MissingExtraError: if Pillow is not installed.
    """
    with needs_extra("compress"):
        import PIL.Image  # noqa: F401 - only to say at once that the extra is missing
    parts = {path.name for path in _folders(folder)}
    if not {"train", "test"} <= parts:
        labels = tuple(sorted(parts))
        train = _stack(_files(folder, labels), size, memory_bytes)
        return Labelled(train=train, test=None, labels=labels)
    if len(parts) > 2:
        others = ", ".join(sorted(parts - {"train", "test"}))
        raise UserError(f"{folder}: beside train and test lie {others}; keep only train and test")
    labels = tuple(path.name for path in _folders(folder / "train"))
    in_train = _files(folder / "train", labels)
    # Both at once: one image in colour, or of another size, concerns both parts.
    both = _stack(in_train + _files(folder / "test", labels), size, memory_bytes)
    first, rest = np.split(np.arange(len(both.y)), [len(in_train)])
    return Labelled(
        train=EvalSet(x=choose(both.x, first), y=both.y[first]),
        test=EvalSet(x=choose(both.x, rest), y=both.y[rest]),
        labels=labels,
    )


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder with one sub-folder per class")
    folders = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise UserError(f"{folder}: holds no sub-folders; put the images of each class into one")
    return folders


def _files(folder: Path, labels: Sequence[str]) -> list[tuple[Path, int]]:
    """Return every image file of a part with the number of its class."""
    files = []
    for sub in _folders(folder):
        if sub.name not in labels:
            raise UserError(f"{sub}: train has no class of this name, it has {', '.join(labels)}")
        found = sorted(p for p in sub.iterdir() if not p.name.startswith("."))
        for path in found:
            if path.suffix.lower() not in _SUFFIXES:
                raise UserError(
                    f"{path}: not a .png or .jpg image; move it out of the class folder"
                )
        if not found:
            raise UserError(f"{sub}: holds no images; add some or remove the folder")
        files += [(path, labels.index(sub.name)) for path in found]
    return files


def _all_grey(files: Sequence[tuple[Path, int]]) -> bool:
    modes = set()
    for path, _ in files:
        with _opened(path) as image:  # reads the header only
            modes.add(image.mode)
            if image.mode not in _GREY + _COLOUR:
                raise UserError(
                    f"{path}: needs 8 bits a channel, got mode {image.mode}; convert it"
                )
    return modes <= set(_GREY)


def _stack(
    files: Sequence[tuple[Path, int]], size: tuple[int, int] | None, memory_bytes: int
) -> EvalSet:
    """Read the images into one array, or one file on disk."""
    grey = _all_grey(files)
    first = files[0][0]
    with _opened(first) as image:
        width, height = image.size
    spool = Spool(memory_bytes)
    for path, _ in files:
        pixels = _pixels(path, "L" if grey else "RGB")
        if size is None and pixels.shape[:2] != (height, width):
            raise UserError(
                f"{path}: is {pixels.shape[1]}×{pixels.shape[0]} pixels and {first} is "
                f"{width}×{height}; set data.image_size = [height, width], or bring all to one size"
            )
        images = pixels.reshape(1, *pixels.shape[:2], 1 if grey else 3)
        spool.add(images if size is None else resize_images(images, *size))
    return EvalSet(x=spool.finish(), y=np.array([label for _, label in files], np.int64))


def _pixels(path: Path, mode: str) -> npt.NDArray[np.uint8]:
    with _opened(path) as image:
        return np.asarray(image.convert(mode))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a ``PIL.Image.Image``; what goes wrong inside the block is the file's fault."""
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            yield image
    # What Pillow's PNG and JPEG readers raise on damaged files.
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable PNG or JPEG image ({error})") from error
