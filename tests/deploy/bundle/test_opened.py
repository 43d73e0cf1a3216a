import hashlib

import msgspec
import numpy as np
import onnxruntime as ort
import pytest

from deploy.bundle.container import GOLDEN, MANIFEST, MODEL, read_container
from deploy.bundle.golden import Golden
from deploy.bundle.golden import encode as encode_golden
from deploy.bundle.manifest import Manifest, decode, encode
from deploy.bundle.opened import checked, file_facts, is_bundle, open_bundle
from deploy.errors import BundleError, UserError
from tests.deploy.bundle import tiny


def rebuilt(path, change=lambda said: said, **files):
    """Return the files of a bundle with changed ones, the digests made to fit."""
    contents = {**read_container(path), **files}
    manifest = decode(contents.pop(MANIFEST), "here")
    facts = {name: file_facts(content) for name, content in sorted(contents.items())}
    manifest = change(msgspec.structs.replace(manifest, files=facts))
    return {**contents, MANIFEST: encode(manifest)}


def replaced(part, **changes):
    return lambda said: msgspec.structs.replace(
        said, **{part: msgspec.structs.replace(getattr(said, part), **changes)}
    )


def test_a_rebuilt_bundle_opens_if_nothing_else_was_changed(lship):
    assert checked(rebuilt(lship), "here").manifest == open_bundle(lship).manifest


def test_file_and_folder_have_one_digest(lship, folder):
    assert open_bundle(lship).digest == open_bundle(folder).digest
    listed = (folder / "SHA256SUMS").read_bytes()
    assert open_bundle(folder).digest == hashlib.sha256(listed).hexdigest()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: msgspec.structs.replace(m, labels=("a", "b")), "2 labels for scores of shape"),
        (replaced("raw", shape=(3, 1)), r"samples \(12, 1, 3\), not 12 of \(3, 1\)"),
        (replaced("golden", samples=11), "not 11"),
        (replaced("requires", ir_version=9), "other versions than manifest.json says"),
        (lambda m: msgspec.structs.replace(m, files={}), "lists other files than there are"),
    ],
)
def test_a_bundle_that_contradicts_itself_is_refused(lship, change, said):
    with pytest.raises(BundleError, match=said):
        checked(rebuilt(lship, change), "here")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'{"schema": 2}',
        b'{"schema": 1}',
        b"[" * 100_000,
        b'{"schema": 1, "novelty": 1}',
        b"\xff",
    ],
)
def test_a_manifest_that_is_none_is_refused(text):
    with pytest.raises(BundleError, match="here: "):
        decode(text, "here")


def test_an_unknown_key_in_the_manifest_is_refused(lship):
    text = encode(open_bundle(lship).manifest).replace(b'"schema"', b'"novelty": 1, "schema"', 1)
    with pytest.raises(BundleError, match="unknown field `novelty`"):
        decode(text, "here")


def test_a_model_that_is_not_the_one_described_is_not_run(lship):
    bundle = checked(rebuilt(lship, replaced("input", shape=(4,))), "here")
    with pytest.raises(BundleError, match="the model takes"):
        bundle.session()


def test_a_model_that_does_not_open_is_the_bundles_fault(lship):
    broken = tiny.model().replace(b"Gemm", b"Gemn")
    bundle = checked(rebuilt(lship, **{MODEL: broken}), "here")
    with pytest.raises(BundleError, match="ONNX Runtime cannot open it"):
        bundle.session()


def test_golden_scores_of_another_shape_are_refused(lship):
    golden = Golden(x=open_bundle(lship).golden.x, scores=np.zeros((12, 4), np.float32))
    with pytest.raises(BundleError, match=r"holds scores \(12, 4\) for 12 samples"):
        checked(rebuilt(lship, **{GOLDEN: encode_golden(golden)}), "here")


def test_an_older_onnxruntime_is_told_what_to_install(lship, monkeypatch):
    bundle = open_bundle(lship)
    monkeypatch.setattr(ort, "__version__", "1.9.1")
    with pytest.raises(UserError, match=r"needs ONNX Runtime 1\.12 or newer, this is 1\.9\.1"):
        bundle.session()


def test_the_session_has_the_manifests_options(lship):
    bundle = checked(rebuilt(lship, replaced("session", threads=2)), "here")
    count = lambda model: model._engine.session.get_session_options().intra_op_num_threads  # noqa: E731
    assert count(bundle.session()) == 2
    assert count(bundle.session(threads=1)) == 1


def test_a_bundle_is_told_from_a_model_by_its_first_bytes(lship, folder, tmp_path):
    model, _ = tiny.write_model(tmp_path / "m")
    assert [is_bundle(path) for path in (lship, folder, model)] == [True, True, False]
    assert isinstance(open_bundle(folder).manifest, Manifest)
