import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from deploy import load
from deploy.bundle.make import bundle_model
from deploy.bundle.runtime import Predictions
from deploy.bundle.selftest import selftest
from deploy.errors import BundleError, MissingExtraError, UserError
from tests.deploy import tiny_onnx
from tests.deploy.bundle import tiny

ROOT = Path(__file__).resolve().parents[3]
GREEN = np.uint8([[10, 200, 30]])


@pytest.fixture(scope="module")
def runtime(lship):
    return load(lship)


def test_one_sample_gets_a_label_and_probabilities(runtime):
    answer = runtime.predict(GREEN)
    assert (answer.label, len(answer)) == ("green", 1)
    logits = GREEN[0] * (8 / 255)
    expected = np.exp(logits) / np.exp(logits).sum()
    assert answer.probabilities[0] == pytest.approx(expected, rel=1e-5)
    assert answer.probability == answer.probabilities[0, 1]


def test_a_batch_gets_a_label_each(runtime):
    batch = np.stack([GREEN, GREEN[:, ::-1], np.roll(GREEN, 1)])
    assert runtime.predict(batch).labels == ["green", "green", "blue"]
    assert runtime.predict(batch).probabilities.sum(axis=1) == pytest.approx(1)


def test_a_bundle_predicts_as_the_model_it_was_made_of(runtime):
    samples = tiny.samples(1000)
    assert np.mean(runtime.predict(samples.x).classes == samples.y) == 1
    assert len(runtime.predict(samples.x)) == 1000


def test_more_than_one_answer_is_no_single_label(runtime):
    with pytest.raises(ValueError, match="needs the answer to one sample, got 2"):
        _ = runtime.predict(np.stack([GREEN, GREEN])).label


def test_it_says_what_it_is(runtime):
    assert runtime.labels == ("red", "green", "blue")
    assert runtime.metadata.raw.shape == (1, 3)


@pytest.mark.parametrize(("threads", "rule"), [(0, "1 or more"), (10**6, "at most")])
def test_threads_that_no_session_can_have_are_a_mistake_and_no_fault_of_the_bundle(
    lship, threads, rule
):
    for asked in (load, selftest):
        with pytest.raises(
            UserError, match=rf"^threads: must be {rule}.* got {threads}; "
        ) as caught:
            asked(lship, threads=threads)
        assert not isinstance(caught.value, BundleError)


def test_integers_of_another_width_are_taken_if_no_value_changes(runtime):
    assert runtime.predict(GREEN.astype(np.int64).tolist()).label == "green"
    with pytest.raises(UserError, match="takes uint8 samples, got values from 10 to 300"):
        runtime.predict(np.array([[10, 300, 30]]))


def test_floats_are_refused_where_bytes_were_learned(runtime):
    with pytest.raises(UserError, match="takes uint8 samples as they are read, got float64"):
        runtime.predict(GREEN / 255)


@pytest.mark.parametrize("shape", [(3,), (1, 1, 1, 3), (2, 3), (3, 1)])
def test_samples_of_another_shape_are_told_the_right_one(runtime, shape):
    with pytest.raises(UserError, match=r"takes one sample of shape \(1, 3\) or several"):
        runtime.predict(np.zeros(shape, np.uint8))


def test_no_samples_are_refused(runtime):
    with pytest.raises(UserError, match="there are no samples"):
        runtime.predict(np.zeros((0, 1, 3), np.uint8))


def test_prepared_inputs_skip_the_preprocessing(runtime):
    prepared = np.float32([[0.04, 0.8, 0.1]])
    assert runtime.predict_prepared(prepared).scores[0] == pytest.approx(8 * prepared[0])


def plain(tmp_path, **settings):
    """A bundle that has nothing to preprocess."""
    x = np.eye(3, dtype=np.float32)[np.arange(30) % 3]
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(30) % 3)
    (tmp_path / "plain.onnx").write_bytes(tiny_onnx.linear(np.eye(3), **settings))
    bundle_model(tmp_path / "plain.onnx", tmp_path / "x.npz", tmp_path / "plain.lship")
    return load(tmp_path / "plain.lship"), x


def test_without_preprocessing_the_array_itself_reaches_the_session(tmp_path):
    runtime, x = plain(tmp_path)
    seen = []
    run, runtime._run = runtime._run, lambda inputs: (seen.append(inputs), run(inputs))[1]
    one = x[:1]
    assert runtime.predict(one).labels == ["0"]
    assert seen[0] is one


def test_a_model_of_one_sample_at_a_time_takes_a_batch(tmp_path):
    runtime, x = plain(tmp_path, batch=1)
    assert runtime.predict(x[:5]).labels == ["0", "1", "2", "0", "1"]


def test_a_nan_has_no_class(tmp_path):
    runtime, _ = plain(tmp_path)
    answers = runtime.predict(np.float32([np.nan, 1, 2]))
    for ask in (lambda: answers.labels, lambda: answers.label, lambda: answers.probability):
        with pytest.raises(UserError, match="answered NaN"):
            ask()


def test_probabilities_are_not_softened_again():
    scores = np.float32([[0.25, 0.75]])
    assert Predictions(scores, ("a", "b"), logits=False).probability == 0.75
    assert Predictions(scores, ("a", "b"), logits=True).probability == pytest.approx(
        0.6225, abs=1e-4
    )


def test_huge_logits_do_not_overflow():
    scores = np.float32([[3e38, -3e38]])
    assert Predictions(scores, ("a", "b"), logits=True).probabilities.tolist() == [[1, 0]]


def test_many_threads_get_their_own_answers(runtime):
    samples = tiny.samples(60)
    wrong = []

    def ask(offset):
        for turn in range(200):
            index = (offset + turn) % 60
            if runtime.predict(samples.x[index]).classes[0] != samples.y[index]:
                wrong.append(index)

    threads = [threading.Thread(target=ask, args=(7 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def grey_bundle(tmp_path):
    """A model of 2×2 grey images: is the brightest pixel the first, second, third or fourth?"""
    from deploy.preprocess import Reshape, Scale
    from deploy.session import ModelMetadata

    about = ModelMetadata(preprocess=(Reshape(shape=(4,)), Scale()), labels=tuple("abcd"))
    y = np.arange(40) % 4
    x = np.zeros((40, 2, 2), np.uint8)
    x.reshape(40, 4)[np.arange(40), y] = 255
    np.savez(tmp_path / "x.npz", x=x, y=y)
    (tmp_path / "g.onnx").write_bytes(tiny_onnx.linear(np.eye(4), metadata=about.to_props()))
    bundle_model(tmp_path / "g.onnx", tmp_path / "x.npz", tmp_path / "g.lship")
    return load(tmp_path / "g.lship"), x


def test_an_array_file_is_read(tmp_path):
    runtime, x = grey_bundle(tmp_path)
    np.save(tmp_path / "some.npy", x[:3])
    np.save(tmp_path / "one.npy", x[2])
    assert runtime.predict(tmp_path / "some.npy").labels == ["a", "b", "c"]
    assert runtime.predict(str(tmp_path / "one.npy")).label == "c"


def test_an_array_of_python_objects_is_refused(tmp_path, runtime):
    np.save(tmp_path / "evil.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(UserError, match="Python objects are refused"):
        runtime.predict(tmp_path / "evil.npy")


@pytest.mark.parametrize("name", ["none.png", "none.npy", "none"])
def test_a_missing_file_is_named(tmp_path, runtime, name):
    with pytest.raises(UserError, match=f"{name}: no such file"):
        runtime.predict(tmp_path / name)


def test_a_file_that_is_nothing_is_refused(tmp_path, runtime):
    for name in ("x.npy", "x.txt"):
        (tmp_path / name).write_bytes(b"\x93NUMPY\x01\x00\x02\x00((")
    with pytest.raises(UserError, match=r"x\.npy: not a readable \.npy file"):
        runtime.predict(tmp_path / "x.npy")
    with pytest.raises(UserError, match=r"x\.txt: must be a \.png, \.jpg, \.csv or \.npy file"):
        runtime.predict(tmp_path / "x.txt")
    with pytest.raises(UserError, match=r"holds no \.png or \.jpg images"):
        runtime.predict(tmp_path)


def test_images_are_read_and_answered_for(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="the extra 'images' is not installed")
    runtime, x = grey_bundle(tmp_path)
    (tmp_path / "folder").mkdir()
    for index in range(3):
        image.fromarray(x[index]).save(tmp_path / f"folder/{index}.png")
    image.fromarray(x[3]).convert("RGB").save(tmp_path / "colour.png")
    assert runtime.predict(tmp_path / "folder/1.png").label == "b"
    assert runtime.predict(tmp_path / "folder").labels == ["a", "b", "c"]
    assert runtime.predict(tmp_path / "colour.png").label == "d"


def test_an_image_of_another_size_is_refused_before_it_is_unpacked(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="the extra 'images' is not installed")
    runtime, _ = grey_bundle(tmp_path)
    image.new("L", (5, 3)).save(tmp_path / "wide.png")
    with pytest.raises(UserError, match="is 5×3 pixels, the model takes 2×2"):
        runtime.predict(tmp_path / "wide.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(UserError, match=r"broken\.png: not a readable PNG or JPEG"):
        runtime.predict(tmp_path / "broken.png")


def test_an_image_of_16_bits_is_refused_where_pillow_would_clip_it(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="the extra 'images' is not installed")
    runtime, x = grey_bundle(tmp_path)
    image.fromarray(x[1].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match=r"deep\.png: has more than 8 bits a pixel; save it with 8"):
        runtime.predict(tmp_path / "deep.png")


def test_without_pillow_an_image_ends_in_one_line(tmp_path, monkeypatch):
    runtime, _ = grey_bundle(tmp_path)
    (tmp_path / "x.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match="'images'"):
        runtime.predict(tmp_path / "x.png")


def test_a_samples_kind_that_no_image_has_is_told_so(tmp_path):
    runtime, _ = plain(tmp_path)
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(UserError, match="which no image file is"):
        runtime.predict(tmp_path / "x.png")


SCRIPT = """
import sys
import deploy
light = [m for m in ("numpy", "onnxruntime", "msgspec", "click") if m in sys.modules]
assert not light, f"import deploy brought {light}"
deploy.load(sys.argv[1]).predict([[1, 200, 3]])
heavy = ("tensorflow", "tf_keras", "onnx", "PIL", "matplotlib", "sklearn", "compress", "click",
         "deploy.report", "deploy.bundle.make", "deploy.bench")
print([m for m in heavy if m in sys.modules])
"""


def test_a_device_loads_nothing_that_it_does_not_need(lship):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(lship)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_a_part_of_the_answers_is_of_the_same_task():
    scores = np.float32([[0.9, 0.1], [0.2, 0.8]])
    every = Predictions(scores, ("a", "b"), logits=False, task="multi_label")
    assert every.part(1, 2).label_sets == [("b",)]
    with pytest.raises(UserError, match="multi-label, not classification"):
        _ = every.part(0, 1).labels
