"""The zip file and the folder that a bundle is: read strictly, written the same way every time.

A zip file leaves much open: order, dates, extra fields, two copies of every size. Here nothing is
open. A file is accepted only if laying out what was read from it gives the very same bytes again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
import uuid
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import BundleError, UserError
from deploy.packing.packed import is_packed

MANIFEST, MODEL, GOLDEN, CARD, SUMS = (
    "manifest.json",
    "model.onnx",
    "golden.npz",
    "MODEL_CARD.md",
    "SHA256SUMS",
)
LIMITS: Mapping[str, int] = {
    CARD: 1 << 20,
    SUMS: 1 << 12,
    GOLDEN: 1 << 26,
    MANIFEST: 1 << 20,
    MODEL: 1 << 29,
}
"""The files of a bundle and the bytes that each may have at most; the model's name may be another."""
TFLITE, ORT, PACKED = "model.tflite", "model.ort", "model.lsp"
MODELS = (MODEL, TFLITE, ORT, PACKED)
"""What the model of a bundle is called, by its format; it sorts behind every other file."""
LARGEST_FILE = sum(LIMITS.values()) + (1 << 12)
MOST_TIMES_SMALLER = 200
"""How far a member may be compressed; what compresses further is stored as it is."""

_STORED, _DEFLATED = 0, 8
_DATE = 0x21  # 1 January 1980, the first that a zip file can say
_UNIX_FILE = 0o100644 << 16
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_SEAL = b"sha256:"
_SEAL_BYTES = len(_SEAL) + 64


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    method: int
    crc: int
    size: int
    payload: bytes | memoryview


def to_zip(files: Mapping[str, bytes], *, compress: bool) -> bytes:
    """Return a plain zip file, sorted by name, with one fixed date: equal files, equal bytes.

    Compressed bytes are those of the zlib in use; another build of zlib may give others.
    """
    members = []
    for name in sorted(files):
        content = files[name]
        payload, method = content, _STORED
        if compress:
            deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
            packed = deflate.compress(content) + deflate.flush()
            if len(packed) < len(content) <= MOST_TIMES_SMALLER * len(packed):
                payload, method = packed, _DEFLATED
        members.append(_Member(name, method, zlib.crc32(content), len(content), payload))
    return _lay_out(members)


def from_zip(data: bytes | memoryview, limits: Mapping[str, int], where: str) -> dict[str, bytes]:
    """Return the files in a zip file that ``to_zip`` wrote, and in no other.

    Args:
        data: the zip file.
        limits: the names of the files that it has to hold, and the bytes each may have at most.
        where: what an error names.

    Raises:
        BundleError: if a byte is not where ``to_zip`` would put it, a file is missing or too many,
            or one is larger than its limit or compressed further than anything real.
    """
    view, members, place = memoryview(data), [], 0
    for name in sorted(limits):
        try:
            header = _LOCAL.unpack_from(view, place)
        except struct.error:
            raise BundleError(f"{where}: is cut off before {name}") from None
        _, _, _, method, _, _, crc, packed, size, name_bytes, _ = header
        start = place + _LOCAL.size + len(name)
        if name_bytes != len(name) or bytes(view[place + _LOCAL.size : start]) != name.encode():
            raise BundleError(f"{where}: holds another file where {name} has to be")
        if size > limits[name]:
            raise BundleError(f"{where}: {name} says {size:,} bytes, {limits[name]:,} are allowed")
        if size > MOST_TIMES_SMALLER * packed or packed > len(view) - start:
            raise BundleError(f"{where}: {name} says {size:,} bytes from {packed:,} packed ones")
        place = start + packed
        members.append(_Member(name, method, crc, size, view[start:place]))
    if _lay_out(members) != view:
        raise BundleError(f"{where}: is not laid out as a bundle is; a byte was changed or added")
    return {member.name: _unpacked(member, where) for member in members}


def _lay_out(members: list[_Member]) -> bytes:
    parts: list[bytes | memoryview] = []
    directory, place = [], 0
    for member in members:
        name = member.name.encode("ascii")
        facts = (0, member.method, 0, _DATE, member.crc, len(member.payload), member.size)
        header = _LOCAL.pack(b"PK\3\4", 20, *facts, len(name), 0) + name
        directory.append(
            _CENTRAL.pack(
                b"PK\1\2", 3 << 8 | 20, 20, *facts, len(name), 0, 0, 0, 0, _UNIX_FILE, place
            )
            + name
        )
        parts += [header, member.payload]
        place += len(header) + len(member.payload)
    central = b"".join(directory)
    count = len(members)
    end = _END.pack(b"PK\5\6", 0, 0, count, count, len(central), place, 0)
    return b"".join([*parts, central, end])


def _unpacked(member: _Member, where: str) -> bytes:
    content = bytes(member.payload)
    if member.method == _DEFLATED:
        inflate = zlib.decompressobj(-15)
        try:
            content = inflate.decompress(content, member.size + 1)
        except zlib.error as error:
            raise BundleError(f"{where}: {member.name} does not unpack ({error})") from error
        if not inflate.eof or inflate.unused_data or inflate.unconsumed_tail:
            raise BundleError(f"{where}: {member.name} does not unpack to {member.size:,} bytes")
    elif member.method != _STORED:
        raise BundleError(f"{where}: {member.name} is packed by method {member.method}, not 0 or 8")
    if len(content) != member.size or zlib.crc32(content) != member.crc:
        raise BundleError(f"{where}: {member.name} is not the {member.size:,} bytes it was")
    return content


def seal(zipped: bytes) -> bytes:
    """Add the SHA-256 of a zip file to it, as the comment that every zip file may end with."""
    head = zipped[:-2] + struct.pack("<H", _SEAL_BYTES)
    return head + _SEAL + hashlib.sha256(head).hexdigest().encode()


def unseal(data: bytes, where: str) -> bytes:
    """Return the zip file without its seal, before a byte of it has been interpreted.

    Raises:
        BundleError: if the seal is missing or is of other bytes.
    """
    head, mark = data[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
    if is_packed(head):
        raise BundleError(
            f"{where}: is a packed model, no bundle; lightship bundle --packed makes one"
        )
    if not (head.startswith(b"PK\3\4") and mark.startswith(_SEAL)):
        raise BundleError(f"{where}: is no bundle, or is cut off; get it again")
    if mark[len(_SEAL) :] != hashlib.sha256(head).hexdigest().encode():
        raise BundleError(f"{where}: is damaged: its SHA-256 is not the one it carries")
    if head[-2:] != struct.pack("<H", _SEAL_BYTES):
        raise BundleError(f"{where}: is not laid out as a bundle is")
    return head[:-2] + b"\0\0"


def sums(files: Mapping[str, bytes]) -> bytes:
    """Return what ``sha256sum`` prints of the files: ``sha256sum -c SHA256SUMS`` checks them."""
    return sums_of({name: hashlib.sha256(files[name]).hexdigest() for name in files})


def sums_of(digests: Mapping[str, str]) -> bytes:
    """Return ``sums`` of files whose digests are known."""
    return b"".join(f"{digests[name]}  {name}\n".encode() for name in sorted(digests))


def read_container(path: Path) -> dict[str, bytes]:
    """Return the files of a bundle, whole and unchanged since they were written.

    Raises:
        UserError: if nothing is there or it cannot be read.
        BundleError: if it is damaged, or is no bundle.
    """
    where = str(path)
    try:
        kind = path.stat()
        if stat.S_ISDIR(kind.st_mode):
            return _listed(_read_folder(path), where)
        if stat.S_ISREG(kind.st_mode):
            return unpack(_read_file(path, LARGEST_FILE, os.O_RDONLY), where)
    except FileNotFoundError:
        raise UserError(f"{where}: no such file; give a bundle") from None
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from error
    raise UserError(f"{where}: neither a file nor a folder; give a bundle")


def limits(model: str) -> Mapping[str, int]:
    """Return the limits of a bundle whose model is called so."""
    return {name: size for name, size in LIMITS.items() if name != MODEL} | {model: LIMITS[MODEL]}


def model_name(files: Collection[str]) -> str:
    """Return what the model among a bundle's files is called; ``MODEL`` where none is known."""
    return next((name for name in MODELS if name in files), MODEL)


def unpack(data: bytes, where: str) -> dict[str, bytes]:
    """Return the files in a ``.lship`` file, but for ``SHA256SUMS``, which they all match.

    Raises:
        BundleError: if it is damaged, or is no bundle.
    """
    zipped = unseal(data, where)
    # The directory ends with the last name: a guess, which reading the whole then proves or not.
    last = zipped[: -_END.size][-max(map(len, MODELS)) :].decode("ascii", "replace")
    model = next((name for name in MODELS if last.endswith(name)), MODEL)
    return _listed(from_zip(zipped, limits(model), where), where)


def _listed(files: dict[str, bytes], where: str) -> dict[str, bytes]:
    if files.pop(SUMS) != sums(files):
        raise BundleError(f"{where}: is damaged: a file is not the one that {SUMS} lists")
    return files


def _read_folder(path: Path) -> dict[str, bytes]:
    with os.scandir(path) as entries:
        found: dict[str, Path] = {}
        for entry in entries:
            if entry.name not in (*LIMITS, *MODELS):
                raise BundleError(f"{path}: {entry.name!r} does not belong into a bundle")
            if not entry.is_file(follow_symlinks=False):
                raise BundleError(f"{path}: {entry.name} has to be a file, not a link or a folder")
            found[entry.name] = Path(entry.path)
    allowed = limits(model_name(found))
    missing = sorted(allowed.keys() - found.keys())
    if missing:
        raise BundleError(f"{path}: is no whole bundle, it lacks {', '.join(missing)}")
    if len(found) > len(allowed):
        raise BundleError(f"{path}: holds more than one model")
    # A link that has taken a file's place since is not followed.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)
    return {name: _read_file(file, allowed[name], flags) for name, file in found.items()}


def _read_file(path: Path, limit: int, flags: int) -> bytes:
    with os.fdopen(os.open(path, flags | getattr(os, "O_BINARY", 0)), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        # One byte more than there should be, and not `limit`: read() makes room for all it may get.
        content = file.read(size + 1) if size <= limit else b""
    if size > limit or len(content) > limit:
        raise BundleError(f"{path}: is larger than the {limit:,} bytes that are allowed")
    return content


def write_container(files: Mapping[str, bytes], path: Path) -> None:
    """Write a bundle: one file if ``path`` ends in ``.lship``, else a folder; whole or not at all.

    Raises:
        UserError: if a file is larger than a bundle may hold, the folder is there already, or the
            disk does not take it.
    """
    whole = {**files, SUMS: sums(files)}
    allowed = limits(model_name(whole))
    for name, content in whole.items():
        if len(content) > allowed[name]:
            raise UserError(
                f"{name}: has {len(content):,} bytes, a bundle takes {allowed[name]:,} at most"
            )
    if path.suffix == ".lship":
        _replace(path, lambda aside: aside.write_bytes(seal(to_zip(whole, compress=True))))
        return
    if path.exists():
        raise UserError(
            f"{path}: is there already; remove it, or name another folder or .lship file"
        )

    def fill(aside: Path) -> None:
        aside.mkdir()
        for name, content in whole.items():
            (aside / name).write_bytes(content)

    _replace(path, fill)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        UserError: if the disk does not take it, or something that is no file is in its place.
    """
    _replace(path, lambda aside: aside.write_bytes(content))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: is a device, a pipe or a socket; name a file")
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(aside)
        aside.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # what stopped the writing was said already
            _remove(aside)


def _remove(aside: Path) -> None:
    if aside.is_dir():
        for file in aside.iterdir():
            file.unlink()
        aside.rmdir()
    aside.unlink(missing_ok=True)
