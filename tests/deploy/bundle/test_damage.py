"""A damaged bundle is never accepted, and never anything but refused in one line."""

import hashlib
import random

import pytest

from deploy.bundle.container import SUMS, seal, sums, to_zip, unpack
from deploy.bundle.manifest import decode
from deploy.bundle.opened import checked
from deploy.errors import BundleError

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
