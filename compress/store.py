"""Finished steps on disk: content-addressed, atomic, shared by every run that needs them."""

from __future__ import annotations

import ast
import contextlib
import errno
import functools
import hashlib
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from deploy.errors import UserError
from deploy.record import sha256_of

_DIGESTS = "digests.json"
_CANNOT_WRITE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EROFS,
    errno.EPERM,
    errno.ENOTDIR,
}
"""Errors of the disk, not of the step that was writing to it."""
_FORGOTTEN_SECONDS = 30 * 24 * 3600


def key_of(parts: Mapping[str, object]) -> str:
    """Return the name under which the result of ``parts`` is kept: equal parts, equal key.

    >>> key_of({"step": "a", "seed": 1}) == key_of({"seed": 1, "step": "a"})
    True
    """
    text = msgspec.json.encode(dict(parts), order="deterministic")
    return hashlib.sha256(text).hexdigest()[:32]


@functools.cache
def code_digest(*rooms: str) -> str:
    """Return one digest over the source of some of our own modules or folders of modules.

    A key that holds it changes when the code does that made the result, so that a new version of
    lightship, or a checkout that was pulled, never passes an old result off as its own. Comments,
    docstrings and layout are left out: words make no other result.

    Args:
        rooms: paths from the folder that holds the packages, such as ``compress/train``.
    """
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for room in rooms:
        path = root / room
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(root).as_posix()}\n".encode())
            digest.update(_digest_of(file))
    return digest.hexdigest()


@functools.cache
def _digest_of(file: Path) -> bytes:
    return hashlib.sha256(code_of(file.read_text(encoding="utf-8")).encode()).digest()


def code_of(source: str) -> str:
    """Return what Python makes of a source, without its comments, docstrings and layout.

    >>> code_of("x = 1  # one") == code_of("x=1; 'One.'")
    True
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [statement for statement in body if not _is_text(statement)]
    return ast.dump(tree)


def _is_text(statement: ast.AST) -> bool:
    """Say whether a statement is a string by itself, such as a docstring."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


class Store:
    """A folder of finished steps, one sub-folder per key.

    A step is written beside its place and renamed into it, so a folder under a key is complete;
    it also holds the digest of each of its files, so a damaged one is found out and made again.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._partial = root / "partial"

    def find(self, key: str) -> Path | None:
        """Return the finished folder of ``key``, or None if it is missing or damaged."""
        folder = self.root / key
        try:
            digests = msgspec.json.decode((folder / _DIGESTS).read_bytes(), type=dict[str, str])
            intact = bool(digests) and all(
                sha256_of(folder / name) == digest for name, digest in digests.items()
            )
        except (OSError, msgspec.MsgspecError):
            return None
        return folder if intact else None

    def add(self, key: str, fill: Callable[[Path], None]) -> Path:
        """Let ``fill`` write files into an empty folder, then give it its final name at once.

        Raises:
            UserError: if the disk is full or the store cannot be written.
        """
        self._sweep()
        aside = self._partial / f"{_owner()}-{uuid.uuid4().hex}"
        final = self.root / key
        try:
            try:
                aside.mkdir(parents=True)
            except OSError as error:
                raise UserError(
                    f"{self.root}: cannot keep finished steps here: {error.strerror}; "
                    f"give another folder with --store"
                ) from error
            fill(aside)
            files = sorted(path for path in aside.iterdir() if path.is_file())
            digests = {path.name: sha256_of(path) for path in files}
            (aside / _DIGESTS).write_bytes(msgspec.json.encode(digests))
            for path in (*files, aside / _DIGESTS):
                _flush(path)
            if final.exists() and self.find(key) is None:
                shutil.rmtree(final)
            try:
                aside.rename(final)
            except OSError:
                if self.find(key) is None:  # else another run finished the same step first
                    raise
            _flush(self.root)
            self.unfinished(key).unlink(missing_ok=True)
        except OSError as error:
            if error.errno in _CANNOT_WRITE:
                raise UserError(
                    f"{self.root}: cannot keep the finished step: {error.strerror}; "
                    f"make room or give another folder with --store, then run the same command again"
                ) from error
            raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return final

    def unfinished(self, key: str) -> Path:
        """Return where the training that makes ``key`` keeps its checkpoint, until it is done."""
        return self.root / "unfinished" / f"{key}.npz"

    def remove(self, key: str) -> None:
        """Forget the result of ``key``, if there is one."""
        shutil.rmtree(self.root / key, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what killed runs left: half-written folders, and checkpoints nobody came back to."""
        for checkpoint in self.unfinished("").parent.glob("*.npz"):
            with contextlib.suppress(OSError):  # another run may do the same
                if time.time() - checkpoint.stat().st_mtime > _FORGOTTEN_SECONDS:
                    checkpoint.unlink()
        if not self._partial.is_dir():
            return
        host = _owner().rpartition("-")[0]
        for folder in self._partial.iterdir():
            owner, _, pid = folder.name.rpartition("-")[0].rpartition("-")
            if owner == host and pid.isdigit() and not _alive(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)


def _owner() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush(path: Path) -> None:
    """Force a file or folder onto the disk, so that a power cut cannot leave an empty one."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
