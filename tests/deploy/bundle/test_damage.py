"""A damaged bundle is never accepted, and never anything but refused in one line."""

import hashlib
import random
from pathlib import Path

import msgspec
import numpy as np
import pytest

from deploy.bundle.container import SUMS, read_container, seal, sums, to_zip, unpack
from deploy.bundle.manifest import Tensor, decode
from deploy.bundle.opened import checked
from deploy.bundle.samples import read_samples
from deploy.errors import BundleError, UserError
from deploy.evalset import EvalSet
from deploy.report.machines import read_bench
from tests.deploy.bundle import tiny
from tests.deploy.report.test_machines import benched

MUTATIONS = 10_000


def drawn_from(seed) -> random.Random:
    return random.Random(seed)  # noqa: S311  # to be drawn again, not to be secret


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Truncate, flip, insert, swap, repeat or overwrite."""
    at, end = sorted(rng.choices(range(len(data)), k=2))
    out = bytearray(data)
    match rng.randrange(6):
        case 0:
            del out[at:]
        case 1:
            out[at] ^= 1 << rng.randrange(8)
        case 2:
            out[at:at] = rng.randbytes(rng.randint(1, 8))
        case 3:
            out[at], out[end] = out[end], out[at]
        case 4:
            out[at:at] = out[at : min(end, at + 64)]
        case _:
            out[at : at + 4] = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"PK\5\6"])
    return bytes(out)


def opened(data):
    """Return the bundle, or None if it was refused in one line; let anything else through."""
    try:
        return checked(unpack(data, "here"), "here")
    except BundleError:
        return None


def test_no_damage_to_a_file_is_accepted(lship):
    data, rng, tried = lship.read_bytes(), drawn_from(0), 0
    assert opened(data) is not None
    for _ in range(MUTATIONS):
        changed = mutated(data, rng)
        if changed != data:
            tried += 1
            assert opened(changed) is None
    assert tried > 0.9 * MUTATIONS


def test_no_damage_under_a_new_seal_is_accepted_unless_every_file_is_as_it_was(lship):
    data, rng = lship.read_bytes(), drawn_from(1)
    files = unpack(data, "here")
    body, same = data[:-73], 0
    for _ in range(MUTATIONS):
        bundle = opened(seal(mutated(body, rng) + b"\0\0"))
        if bundle is not None:
            same += 1
            assert bundle.model == files["model.onnx"]
            assert bundle.digest == hashlib.sha256(sums(files)).hexdigest()
    assert same < 0.1 * MUTATIONS


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "golden.npz", "MODEL_CARD.md"])
def test_no_damage_under_new_digests_ends_in_anything_but_a_refusal(lship, name):
    """What someone can do who makes bundles: everything fits but what is inside."""
    files, rng = unpack(lship.read_bytes(), "here"), drawn_from(name)
    for _ in range(MUTATIONS // 4):
        changed = {**files, name: mutated(files[name], rng)}
        if name != "manifest.json":
            old, new = (hashlib.sha256(f[name]).hexdigest().encode() for f in (files, changed))
            manifest = files["manifest.json"].replace(old, new)
            size = b'"size_bytes": %d,\n      "sha256": "%s"'
            changed["manifest.json"] = manifest.replace(
                size % (len(files[name]), new), size % (len(changed[name]), new)
            )
            assert decode(changed["manifest.json"], "here").files[name].sha256 == new.decode()
        whole = {**changed, SUMS: sums(changed)}
        opened(seal(to_zip(whole, compress=False)))


def opened_folder(path):
    """As ``opened``, for the folder."""
    try:
        return checked(read_container(path), "here")
    except BundleError:
        return None


def test_no_damage_to_a_folder_is_accepted(folder):
    rng, tried = drawn_from(2), 0
    files = {file: file.read_bytes() for file in sorted(folder.iterdir())}
    assert opened_folder(folder) is not None
    for turn in range(MUTATIONS // 2):
        file = list(files)[turn % len(files)]
        changed = mutated(files[file], rng)
        if changed != files[file]:
            tried += 1
            file.write_bytes(changed)
            assert opened_folder(folder) is None
            file.write_bytes(files[file])
    assert tried > 0.9 * MUTATIONS // 2


def answered(read, *given):
    """Say whether something was read; let nothing through but a refusal."""
    try:
        read(*given)
    except UserError:
        return False
    return True


def damaged_files(content, path, read, *given, turns):
    """Damage a file again and again; return how often it was read all the same."""
    rng, accepted = drawn_from(path.suffix), 0
    path.write_bytes(content)
    assert answered(read, path, *given)
    for _ in range(turns):
        path.write_bytes(mutated(content, rng))
        accepted += answered(read, path, *given)
    return accepted


def test_damaged_arrays_are_read_or_refused(tmp_path):
    """Nothing says what the bytes of a loose file were: what still is an array is one."""
    tiny.samples(9).save(tmp_path / "made.npz")
    content = (tmp_path / "made.npz").read_bytes()
    accepted = damaged_files(content, tmp_path / "x.npz", EvalSet.load, turns=MUTATIONS // 4)
    assert accepted < 0.5 * MUTATIONS // 4  # a zip file has checksums
    np.save(tmp_path / "made.npy", tiny.samples(9).x)
    raw = Tensor(shape=(1, 3), dtype="uint8")
    content = (tmp_path / "made.npy").read_bytes()
    damaged_files(content, tmp_path / "x.npy", read_samples, raw, turns=MUTATIONS // 4)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_damaged_images_are_read_or_refused(kind, tmp_path):
    image = pytest.importorskip("PIL.Image", reason="the extra 'images' is not installed")
    pixels = drawn_from(kind).randbytes(16 * 16 * 3)
    image.frombytes("RGB", (16, 16), pixels).save(tmp_path / "made.img", kind)
    raw = Tensor(shape=(16, 16, 3), dtype="uint8")
    content = (tmp_path / "made.img").read_bytes()
    damaged_files(content, tmp_path / f"x.{kind}", read_samples, raw, turns=MUTATIONS // 4)


def test_damaged_measurements_are_read_or_refused(tmp_path):
    content = msgspec.json.encode(benched("baseline", "int8"))
    damaged_files(content, tmp_path / "pi4.json", read_bench, turns=MUTATIONS // 4)
    assert not answered(read_bench, Path("/dev/zero"))
    (tmp_path / "deep.json").write_bytes(b"[" * 1_000_000)
    assert not answered(read_bench, tmp_path / "deep.json")


def test_arrays_that_say_they_unpack_to_more_than_any_set_are_not_unpacked(tmp_path):
    np.savez(tmp_path / "bomb.npz", **dict.fromkeys("abcxy", np.zeros(3)))
    content, size = (tmp_path / "bomb.npz").read_bytes(), (128 + 24).to_bytes(4, "little")
    claimed = content.replace(size + size, size + b"\xfe\xff\xff\xff")
    (tmp_path / "bomb.npz").write_bytes(claimed)
    with pytest.raises(UserError, match=r"unpacks to 21,474,836,470 bytes"):
        EvalSet.load(tmp_path / "bomb.npz")
