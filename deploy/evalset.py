"""A set of labelled raw samples, as it lies beside a run or on a device."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.errors import UserError

_NAMES = (("x", "y"), ("x_test", "y_test"))


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSet:
    """Raw samples ``x`` of shape ``(n, ...)`` and their classes ``y`` of shape ``(n,)``."""

    x: npt.NDArray[Any]
    y: npt.NDArray[np.int64]

    @staticmethod
    def load(path: Path) -> EvalSet:
        """Read ``x`` and ``y`` (or ``x_test`` and ``y_test``) from an ``.npz`` file.

        Raises:
            UserError: if the file is missing, is no ``.npz``, lacks the arrays, holds Python
                objects, or has samples and labels that do not pair.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                for x_name, y_name in _NAMES:
                    if x_name in arrays and y_name in arrays:
                        x, y = arrays[x_name], arrays[y_name]
                        break
                else:
                    raise UserError(
                        f"{path}: needs arrays named x and y (or x_test and y_test), "
                        f"got {', '.join(sorted(arrays)) or 'none'}"
                    )
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; give an .npz with arrays x and y") from None
        except (
            ValueError,
            OSError,
            EOFError,
            AttributeError,
            TypeError,
            zipfile.BadZipFile,
        ) as error:
            raise UserError(f"{path}: not a readable .npz file ({error})") from error
        y = y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y
        if y.ndim != 1 or len(x) != len(y) or len(x) == 0:
            raise UserError(
                f"{path}: x and y must pair, one integer class a sample; "
                f"got x {x.shape} and y {y.shape}"
            )
        if not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
            raise UserError(
                f"{path}: y must be classes counted from 0, got {y.dtype} from {y.min()}"
            )
        return EvalSet(x=x, y=y.astype(np.int64))

    def save(self, path: Path) -> None:
        """Write the set as a compressed ``.npz`` that ``load`` reads back unchanged."""
        np.savez_compressed(path, x=self.x, y=self.y)
