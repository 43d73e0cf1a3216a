"""Bundles in which the model lies packed."""

import hashlib
import subprocess
import sys
import zipfile

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from deploy import load
from deploy.bundle.container import (
    MANIFEST,
    MODEL,
    PACKED,
    SUMS,
    read_container,
    seal,
    sums,
    to_zip,
)
from deploy.bundle.make import bundle_model
from deploy.bundle.manifest import decode, encode
from deploy.bundle.opened import checked, file_facts, open_bundle
from deploy.bundle.selftest import selftest
from deploy.bundle.unpack import to_bench
from deploy.cli import cli
from deploy.errors import BundleError
from deploy.packing.packed import pack
from tests.deploy.bundle import tiny
from tests.deploy.bundle.test_damage import MUTATIONS, drawn_from, mutated, opened


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A bundle file with the tiny model packed that no test may change."""
    folder = tmp_path_factory.mktemp("packed")
    bundle_model(*tiny.write_model(folder / "colours"), folder / "m.lship", form="packed")
    return folder / "m.lship"


def relisted(path, content, **about):
    """Return the files of a bundle with another packed model, and a manifest that lists it."""
    files = {**read_container(path), PACKED: content}
    manifest = decode(files[MANIFEST], "here")
    listed = {**manifest.files, PACKED: file_facts(content)}
    files[MANIFEST] = encode(msgspec.structs.replace(manifest, files=listed, **about))
    return files


def run(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def test_a_packed_bundle_answers_as_any_other_and_says_both_digests(packed):
    x, model = tiny.samples().x, tiny.model()
    assert load(packed).predict(x).labels == [tiny.LABELS[i] for i in tiny.samples().y]
    assert selftest(packed).passed
    bundle = open_bundle(packed)
    assert (bundle.model, bundle.model_name) == (model, MODEL)
    assert bundle.manifest.files[PACKED] == file_facts(pack(model))
    assert bundle.manifest.unpacked == file_facts(model)
    with to_bench([packed]) as ((file,), (named,)):
        assert file.read_bytes() == model
    assert named.sha256 == bundle.model_sha256 == hashlib.sha256(model).hexdigest()
    with zipfile.ZipFile(packed) as plain:
        assert plain.testzip() is None
        assert plain.namelist()[-1] == PACKED


def test_the_commands_make_and_open_it(tmp_path):
    model, data = tiny.write_model(tmp_path / "colours")
    told = run("bundle", model, "--data", data, "--packed", "-o", tmp_path / "m")
    assert told.exit_code == 0, told.output
    assert (tmp_path / "m" / PACKED).read_bytes() == pack(model.read_bytes())
    assert not (tmp_path / "m" / MODEL).exists()
    assert run("selftest", tmp_path / "m").exit_code == 0
    assert run("check", tmp_path / "m", "--max-size", "1MB").exit_code == 0
    np.save(tmp_path / "x.npy", tiny.samples().x[:2])
    told = run("predict", tmp_path / "m", tmp_path / "x.npy")
    assert told.exit_code == 0
    assert "red" in told.output
    refused = run("bundle", model, "--data", data, "--packed", "--format", "ort")
    assert (refused.exit_code, refused.output.count("\n")) == (2, 1)


def test_it_opens_where_nothing_but_numpy_and_onnxruntime_is(packed):
    program = (
        "import sys; sys.modules.update(dict.fromkeys(('onnx', 'zstandard', 'tensorflow', 'click')));"
        "from deploy import load; load(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", program, packed], check=True)


def test_no_damage_to_a_packed_bundle_is_accepted(packed):
    data, rng = packed.read_bytes(), drawn_from(5)
    assert opened(data) is not None
    for _ in range(MUTATIONS // 5):
        changed = mutated(data, rng)
        assert changed == data or opened(changed) is None


def test_no_damage_to_what_is_packed_is_accepted_under_new_digests(packed):
    content, rng = read_container(packed)[PACKED], drawn_from(6)
    for _ in range(MUTATIONS // 20):
        changed = mutated(content, rng)
        files = relisted(packed, changed)
        found = opened(seal(to_zip({**files, SUMS: sums(files)}, compress=False)))
        assert found is None or found.model == tiny.model()


def test_a_model_larger_than_the_manifest_says_is_refused_before_room_is_made(packed):
    bomb = pack(bytes(1 << 24))
    with pytest.raises(BundleError, match=r"^here: model\.lsp: says that it unpacks to 16,777,216"):
        checked(relisted(packed, bomb), "here")


def test_another_model_than_the_manifest_says_is_refused(packed):
    other = tiny.model(msgspec.structs.replace(tiny.ABOUT, data="other"))
    said = file_facts(tiny.model() + bytes(99))
    with pytest.raises(BundleError, match="holds another model than"):
        checked(relisted(packed, pack(other), unpacked=said), "here")
    with pytest.raises(BundleError, match="disagree on whether it is packed"):
        checked(relisted(packed, pack(other), unpacked=None), "here")
