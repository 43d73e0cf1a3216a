"""Measure and ship models with numpy and ONNX Runtime alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from deploy.bundle.runtime import Runtime

__all__ = ["load"]


def load(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    warm_up: bool = True,
    public_key: str | os.PathLike[str] | None = None,
) -> Runtime:
    """Open a bundle, checked whole before anything in it is used.

    Args:
        path: a ``.lship`` file, or a folder.
        threads: threads inside one run of the model; by default as many as it was measured with.
        warm_up: run the model once, so that the first answer takes no longer than the next.
        public_key: a PEM file; a bundle that was not signed with its other half is refused.

    Raises:
        UserError: if nothing is there, this ONNX Runtime is too old for the model, or ``threads`` is fewer
            than 1 or more than this machine can use.
        BundleError: if the bundle is damaged, is none, or contradicts itself.
    """
    from deploy.bundle import runtime  # here: importing `deploy` costs nothing

    return runtime.load(path, threads=threads, warm_up=warm_up, public_key=public_key)
