"""How much memory this process has held at most, and how much it may."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from deploy.errors import UserError

_STATUS = Path("/proc/self/status")


class DoesNotFitError(UserError):
    """A model was opened or run under a limit of memory, and asked for more."""


def peak_rss_bytes() -> int:
    """Return the most memory that this process has held resident since it began."""
    # ru_maxrss of Linux survives exec and so holds the parent's peak too; VmHWM does not.
    peak = _status("VmHWM")
    if peak is not None:
        return peak
    import resource  # here: POSIX only

    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_rss if sys.platform == "darwin" else peak_rss * 1024


def rss_bytes() -> int | None:
    """Return the memory that this process holds resident now; None where the system does not say."""
    return _status("VmRSS")


@contextlib.contextmanager
def limited_memory(limit_bytes: int | None) -> Iterator[None]:
    """Let this process hold ``limit_bytes`` in all while the block runs, and not a page more.

    What it holds resident when the block begins counts. From there the kernel refuses private
    memory (RLIMIT_DATA) once the limit is reached; memory that is asked for and never touched
    counts as well, which errs on the safe side. None is no limit.

    Raises:
        UserError: if the system knows no such limit, or the process holds more already.
        DoesNotFitError: in place of the MemoryError that ends the block.
    """
    if limit_bytes is None:
        yield
        return
    resident, data = rss_bytes(), _status("VmData")
    if resident is None or data is None:
        raise UserError("memory-limit: needs Linux, whose kernel can hold a process to it")
    if resident >= limit_bytes:
        raise DoesNotFitError(
            f"memory-limit: Python, numpy and ONNX Runtime alone hold {resident:,} bytes here, "
            f"got a limit of {limit_bytes:,}; raise it"
        )
    import resource  # here: POSIX only

    before = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = data + limit_bytes - resident
    hard = before[1]
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    try:
        yield
    except DoesNotFitError:
        raise
    except Exception as error:
        if not is_short_of_memory(error):
            raise
        raise DoesNotFitError(f"memory-limit: {limit_bytes:,} bytes are too few") from error
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def is_short_of_memory(error: BaseException) -> bool:
    """Say whether an error, or one that it came from, means that memory ran out."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or re.search(
            r"bad[_ ]alloc|Failed to allocate memory", str(seen)
        ):
            return True
        seen = seen.__cause__
    return False


def _status(name: str) -> int | None:
    """Return an amount that Linux tells of this process, in bytes."""
    try:
        found = re.search(rf"{name}:\s*(\d+) kB", _STATUS.read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
