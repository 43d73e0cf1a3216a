"""The memory of a process that opens a bundle and answers once, as a device's program does.

``python -m deploy.bundle.footprint BUNDLE THREADS [DIGEST]`` is that process: JSON on stdout.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from deploy.bundle.opened import open_bundle
from deploy.errors import BundleError, UserError
from deploy.memory import DoesNotFitError, limited_memory, peak_rss_bytes
from deploy.record import Record
from deploy.sizes import format_size

_TIME_LIMIT_S = 300


class Footprint(Record, frozen=True):
    """Peaks of resident memory in a new process."""

    empty_rss_bytes: int
    """Before the bundle was opened: Python, numpy and ONNX Runtime."""
    peak_rss_bytes: int
    """The bundle opened, kept, and asked for one answer."""


def footprint(path: Path, *, threads: int | None = None, digest: str | None = None) -> Footprint:
    """Open a bundle in a new process, let it answer one golden sample, and return what that took.

    Args:
        path: the bundle.
        threads: threads of one run, in place of the manifest's.
        digest: the one that the bundle has to have, since it is opened by its path again; it stands
            for a signature that was checked, whose check would count as the bundle's memory.

    Raises:
        UserError: if the process fails or takes too long, or the bundle is another one by now.
    """
    words = [str(path.absolute()), str(threads or 0), *([digest] if digest else [])]
    try:
        child = subprocess.run(
            [sys.executable, "-m", "deploy.bundle.footprint", *words],
            # `-m` looks here first: never in the user's folder, which may hold a `deploy` too.
            cwd=Path(__file__).resolve().parents[2],
            capture_output=True,
            timeout=_TIME_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{path}: no answer within {_TIME_LIMIT_S} s") from None
    if child.returncode != 0:
        lines = child.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise UserError(f"{path}: the process that opened it failed: {lines[-1][:300]}")
    return msgspec.json.decode(child.stdout, type=Footprint)


@contextlib.contextmanager
def fitting(
    path: Path,
    limit_bytes: int | None,
    *,
    threads: int | None = None,
    public_key: Path | None = None,
) -> Iterator[None]:
    """Hold this process to a limit while the block opens and runs a bundle.

    Raises:
        DoesNotFitError: if that takes more; it says how much.
        BundleError: if it takes more, and the bundle does not bear the signature asked for.
    """
    try:
        with limited_memory(limit_bytes):
            yield
    except DoesNotFitError as error:
        if limit_bytes is None:
            raise
        # The block may have ended before it came to the signature.
        digest = open_bundle(path, public_key=public_key).digest
        needed = footprint(path, threads=threads, digest=digest)
        raise DoesNotFitError(
            f"{path}: does not fit into {format_size(limit_bytes)}: opened, and asked for one "
            f"answer, it needed {format_size(needed.peak_rss_bytes)}, of which "
            f"{format_size(needed.empty_rss_bytes)} before it was opened; raise --memory-limit, "
            "give fewer samples at a time or take a smaller model"
        ) from error


def main() -> None:
    """Be the process that is measured."""
    from deploy.bundle.runtime import Runtime

    path, threads, *digest = sys.argv[1:]
    empty = peak_rss_bytes()
    bundle = open_bundle(Path(path))
    if digest not in ([], [bundle.digest]):
        raise BundleError(f"{path}: is another bundle than the one that was checked")
    runtime = Runtime(bundle, threads=int(threads) or None, warm_up=False)
    _ = runtime.predict(runtime.bundle.golden.x[:1]).label
    seen = Footprint(empty_rss_bytes=empty, peak_rss_bytes=peak_rss_bytes())
    sys.stdout.buffer.write(msgspec.json.encode(seen))


if __name__ == "__main__":
    main()
