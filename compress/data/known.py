"""The data sets that go by a name, and where they come from."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.data.labelled import Labelled
from deploy.errors import UserError, needs_extra
from deploy.evalset import pair, read_arrays
from deploy.record import TaskKind

FOLDER_VARIABLE = "LIGHTSHIP_DATA"
"""Environment variable that names a folder of ``NAME.npz`` files."""

_NAMES = ("x_train", "y_train", "x_test", "y_test")
_PATIENCE_S = 30.0
_SAMPLE = Path(__file__).with_name("samples") / "mnist_sample.npz"
_DIGITS = tuple("0123456789")
_MNIST_LICENCE = "MNIST: Yann LeCun, Corinna Cortes, Christopher J. C. Burges; CC BY-SA 3.0"


@dataclass(frozen=True, slots=True)
class _Known:
    labels: tuple[str, ...]
    licence: str
    task: TaskKind = "classification"
    in_scikit_learn: bool = False


KNOWN = {
    "mnist-sample": _Known(_DIGITS, _MNIST_LICENCE),
    "mnist": _Known(_DIGITS, _MNIST_LICENCE),
    "fashion_mnist": _Known(
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        "Fashion-MNIST: Zalando SE; MIT",
    ),
    "cifar10": _Known(
        (
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        ),
        "CIFAR-10: Alex Krizhevsky, Vinod Nair, Geoffrey Hinton; no licence stated by its authors",
    ),
    "digits": _Known(
        _DIGITS,
        "Optical Recognition of Handwritten Digits: E. Alpaydin, C. Kaynak, UCI; CC BY 4.0",
        in_scikit_learn=True,
    ),
    # The second class is the positive one of precision, recall and F1: what must not be missed.
    "breast_cancer": _Known(
        ("benign", "malignant"),
        "Breast Cancer Wisconsin (Diagnostic): W. Wolberg, O. Mangasarian, N. Street, W. Street, "
        "UCI; CC BY 4.0",
        in_scikit_learn=True,
    ),
    "diabetes": _Known(
        ("progression",),
        "Diabetes: B. Efron, T. Hastie, I. Johnstone, R. Tibshirani; no licence stated by its authors",
        task="regression",
        in_scikit_learn=True,
    ),
}


def read_known(name: str) -> Labelled:
    """Read a known set: from the package or from scikit-learn, which both need no network, from ``LIGHTSHIP_DATA``, or from its home on the network.

    Args:
        name: a key of ``KNOWN``.

    Raises:
        UserError: if ``LIGHTSHIP_DATA`` is no folder, the set's file there is damaged, or the set
            cannot be downloaded.
        MissingExtraError: if the set has to be downloaded and tf-keras is not installed.
    """
    if KNOWN[name].in_scikit_learn:
        return _read_from_scikit_learn(name)
    if name == "mnist-sample":
        where, arrays = str(_SAMPLE), read_arrays(_SAMPLE, _NAMES)
    elif (path := _path_in_folder(name)) is not None:
        where, arrays = str(path), read_arrays(path, _NAMES)
    else:
        where, arrays = name, _download(name)
    x_train, y_train, x_test, y_test = arrays
    return Labelled(
        train=pair(x_train, y_train, where=f"{where}: training part"),
        test=pair(x_test, y_test, where=f"{where}: test part"),
        labels=KNOWN[name].labels,
        licence=KNOWN[name].licence,
    )


def _read_from_scikit_learn(name: str) -> Labelled:
    with needs_extra("compress"):
        from sklearn import datasets
    about = KNOWN[name]
    loaded = getattr(datasets, f"load_{name}")()
    x, y = loaded.data.astype("float32"), loaded.target
    if name == "digits":
        x = loaded.images.astype("uint8")  # 0 to 16, 8 × 8
    elif name == "breast_cancer":
        y = 1 - y  # scikit-learn counts malignant as 0
    part = pair(x, y, where=name, task=about.task)
    return Labelled(train=part, test=None, labels=about.labels, licence=about.licence)


def _path_in_folder(name: str) -> Path | None:
    """Return the set's file in the folder that ``LIGHTSHIP_DATA`` names, or None if it has none."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise UserError(f"{FOLDER_VARIABLE}={folder}: no such folder; name one or unset it")
    path = Path(folder) / f"{name}.npz"
    return path if path.is_file() else None


def _download(name: str) -> tuple[Any, ...]:
    with needs_extra("compress"):
        import tf_keras
    try:
        # The downloader reports its progress on stdout, which belongs to results.
        with _patience(_PATIENCE_S), contextlib.redirect_stdout(sys.stderr):
            train, test = getattr(tf_keras.datasets, name).load_data()
    # The downloader raises Exception itself when the network fails.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{name}: cannot be downloaded ({reason}); put {name}.npz with {', '.join(_NAMES)} "
            f"into a folder and set {FOLDER_VARIABLE} to it, or use mnist-sample, which needs no network"
        ) from error
    return (*train, *test)


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Let a silent connection fail after a while: the downloader itself waits for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
