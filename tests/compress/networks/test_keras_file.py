"""Networks in files: opened, or refused before any code of theirs runs."""

import json
import shutil
import warnings
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tf_keras

from compress.networks import KerasFile, build, load_keras
from deploy.errors import UserError


def small(library, *extra):
    layers = library.layers
    return library.Sequential(
        [
            layers.Input((6, 6, 2)),
            layers.DepthwiseConv2D(3),
            layers.BatchNormalization(),
            layers.Flatten(),
            *extra,
            layers.Dense(3, activation="softmax"),
        ]
    )


def save(model, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both Keras call .h5 a format of the past
        model.save(path)
    return path


def assert_same(model, loaded):
    samples = np.random.default_rng(0).normal(size=(4, 6, 6, 2)).astype("float32")
    assert isinstance(loaded, tf_keras.Model)
    np.testing.assert_allclose(
        np.asarray(loaded(samples, training=False)),
        np.asarray(model(samples, training=False)),
        atol=1e-6,
    )


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "m.hdf5"])
@pytest.mark.parametrize("library", [tf_keras, keras], ids=["tf_keras", "keras3"])
def test_a_file_of_either_keras_gives_its_network_and_weights(library, name, tmp_path):
    model = small(library)
    assert_same(model, load_keras(save(model, tmp_path / name)))


def test_a_compiled_model_is_opened_without_its_loss(tmp_path):
    def my_loss(y, z):
        return tf_keras.losses.sparse_categorical_crossentropy(y, z)

    model = small(tf_keras)
    model.compile("adam", loss=my_loss)
    assert_same(model, load_keras(save(model, tmp_path / "m.keras")))
    assert_same(model, load_keras(save(model, tmp_path / "m.h5")))


def test_arithmetic_between_layers_is_no_foreign_code(tmp_path):
    x = tf_keras.Input((6, 6, 2))
    y = tf_keras.layers.Flatten()(x * 2.0 + 1.0)
    model = tf_keras.Model(x, tf_keras.layers.Dense(3)(y))
    assert_same(model, load_keras(save(model, tmp_path / "m.keras")))


def test_build_keeps_the_weights_of_the_file_whatever_the_seed(tmp_path):
    model = small(keras)
    path = save(model, tmp_path / "m.keras")
    network = KerasFile(path=str(path))
    for seed in (1, 2):
        assert_same(model, build(network, input_shape=(6, 6, 2), classes=3, seed=seed))


def test_build_refuses_a_file_that_does_not_fit_the_task(tmp_path):
    path = save(small(tf_keras), tmp_path / "m.keras")
    with pytest.raises(UserError, match=r"m.keras: gives outputs of shape \(3,\), .* 10 classes"):
        build(KerasFile(path=str(path)), input_shape=(6, 6, 2), classes=10, seed=0)


def with_lambda(library, witness):
    layers = library.layers
    return library.Sequential(
        [
            layers.Input((6, 6, 2)),
            layers.Flatten(),
            layers.Lambda(eval(f"lambda x: (open({str(witness)!r}, 'w').close(), x)[1]"), name="spy"),  # noqa: S307 - a Lambda is what is tested
            layers.Dense(3, activation="softmax"),
        ]
    )  # fmt: skip


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
@pytest.mark.parametrize("library", [tf_keras, keras], ids=["tf_keras", "keras3"])
def test_a_lambda_in_a_file_does_not_run(library, name, tmp_path):
    witness = tmp_path / "it ran"
    path = save(with_lambda(library, witness), tmp_path / name)
    witness.unlink()
    with pytest.raises(UserError, match=rf"{name}: holds the Lambda layer 'spy': .* --trust-code"):
        load_keras(path)
    assert not witness.exists()


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
@pytest.mark.parametrize("library", [tf_keras, keras], ids=["tf_keras", "keras3"])
def test_a_trusted_lambda_runs(library, name, tmp_path):
    witness = tmp_path / "it ran"
    model = with_lambda(library, witness)
    path = save(model, tmp_path / name)
    witness.unlink()
    assert_same(model, load_keras(path, trust_code=True))
    assert witness.exists()


def rewritten(path, change):
    """Change the config in a ``.keras`` file."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    change(config)
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("library", [tf_keras, keras], ids=["tf_keras", "keras3"])
def test_a_layer_of_a_foreign_module_is_not_imported(library, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "foreign.py").write_text("open('it ran', 'w').close()")

    def change(config):
        config["config"]["layers"][-1]["module"] = "foreign"

    path = rewritten(save(small(library), tmp_path / "m.keras"), change)
    with pytest.raises(UserError, match=r"of the module 'foreign': .* --trust-code"):
        load_keras(path)
    assert not (tmp_path / "it ran").exists()


def test_a_layer_without_a_counterpart_is_refused_by_its_name(tmp_path):
    path = save(small(keras, keras.layers.RMSNormalization(name="rms")), tmp_path / "m.keras")
    with pytest.raises(UserError, match=r"m.keras: the layer 'rms' \(RMSNormalization\) has no"):
        load_keras(path)


def test_a_layer_that_tf_keras_does_not_know_is_one_line(tmp_path):
    def change(config):
        config["config"]["layers"][-1]["class_name"] = "Denser"

    path = rewritten(save(small(tf_keras), tmp_path / "m.keras"), change)
    with pytest.raises(UserError, match=r"m.keras: tf-keras cannot build it: .*Denser") as caught:
        load_keras(path)
    assert "\n" not in str(caught.value)


def missing(folder):
    return folder / "m.keras"


def saved_model(folder):
    (folder / "m").mkdir()
    (folder / "m" / "saved_model.pb").touch()
    return folder / "m"


def plain_folder(folder):
    return folder


def other_suffix(folder):
    return save(small(tf_keras), folder / "m.keras").rename(folder / "m.zip")


def text(folder):
    (folder / "m.keras").write_text("no archive")
    return folder / "m.keras"


def empty(folder):
    (folder / "m.h5").touch()
    return folder / "m.h5"


def cut_archive(folder):
    path = save(small(tf_keras), folder / "m.keras")
    path.write_bytes(path.read_bytes()[:-200])
    return path


def cut_hdf5(folder):
    path = save(small(tf_keras), folder / "m.h5")
    path.write_bytes(path.read_bytes()[:3000])
    return path


def archive_without_config(folder):
    with zipfile.ZipFile(folder / "m.keras", "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.1.0"}')
    return folder / "m.keras"


def archive_with_broken_config(folder):
    with zipfile.ZipFile(folder / "m.keras", "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.1.0"}')
        archive.writestr("config.json", "{")
    return folder / "m.keras"


def archive_without_version(folder):
    with zipfile.ZipFile(folder / "m.keras", "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", "{}")
    return folder / "m.keras"


def archive_named_h5(folder):
    return shutil.copy(save(small(tf_keras), folder / "m.keras"), folder / "m.h5")


def weights_only(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small(keras).save_weights(folder / "m.weights.h5")
    return folder / "m.weights.h5"


def broken_hdf5_config(folder):
    with h5py.File(folder / "m.h5", "w") as file:
        file.attrs["model_config"] = "{"
    return folder / "m.h5"


def packed(folder, config='{"class_name": "Sequential"}', **settings):
    with zipfile.ZipFile(folder / "m.keras", "w", **settings) as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.1.0"}')
        archive.writestr("config.json", config)
    return folder / "m.keras"


def changed_in_both_headers(path, change):
    """Change every header of a zip file; ``at`` is where it begins, ``central`` tells its kind."""
    content = bytearray(path.read_bytes())
    for magic, central in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 1)):
        at = content.find(magic)
        while at >= 0:
            change(content, at, central)
            at = content.find(magic, at + 4)
    path.write_bytes(content)
    return path


def archive_that_does_not_unpack(folder):
    path = packed(folder, compression=zipfile.ZIP_DEFLATED)

    def change(content, at, central):
        if not central:
            name = int.from_bytes(content[at + 26 : at + 28], "little")
            content[at + 30 + name : at + 34 + name] = b"\xff" * 4

    return changed_in_both_headers(path, change)


def encrypted_archive(folder):
    def change(content, at, central):
        content[at + 6 + 2 * central] |= 1

    return changed_in_both_headers(packed(folder), change)


def archive_of_a_later_zip(folder):
    def change(content, at, central):
        content[at + 4 + 2 * central] = 99

    return changed_in_both_headers(packed(folder), change)


def deeply_nested_archive(folder):
    return packed(folder, '{"a":' * 100_000 + "1" + "}" * 100_000)


def nested_within_what_json_reads(folder):
    return packed(folder, '{"a":' * 900 + "1" + "}" * 900)


def archive_with_a_list(folder):
    return packed(folder, "[]")


def hdf5_with_numbers(folder):
    with h5py.File(folder / "m.h5", "w") as file:
        file.attrs["model_config"] = "{}"
        file.attrs["keras_version"] = 3
    return folder / "m.h5"


def hdf5_with_a_list(folder):
    with h5py.File(folder / "m.h5", "w") as file:
        file.attrs["model_config"] = "[1]"
    return folder / "m.h5"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (missing, "m.keras: no such file"),
        (saved_model, "m: is a SavedModel folder; save the network as a .keras file"),
        (plain_folder, "is a folder; save the network"),
        (other_suffix, "m.zip: needs a file named .keras, .h5 or .hdf5, got '.zip'"),
        (text, "m.keras: is damaged, or neither a .keras archive nor an HDF5 file"),
        (empty, "m.h5: is damaged, or neither"),
        (cut_archive, "m.keras: is damaged, or neither"),
        (cut_hdf5, "m.h5: is a damaged HDF5 file"),
        (archive_without_config, "m.keras: is no .keras archive, or is damaged .*config.json"),
        (archive_with_broken_config, "m.keras: is no .keras archive, or is damaged"),
        (archive_without_version, "m.keras: is no .keras archive, .*keras_version"),
        (archive_named_h5, "m.h5: is damaged, or neither"),
        (weights_only, "m.weights.h5: holds no network, at most weights"),
        (broken_hdf5_config, "m.h5: is a damaged HDF5 file"),
        (archive_that_does_not_unpack, "m.keras: is no .keras archive, or is damaged .*Error -3"),
        (encrypted_archive, "m.keras: is no .keras archive, .*encrypted"),
        (archive_of_a_later_zip, "m.keras: is no .keras archive, .*version"),
        (deeply_nested_archive, "m.keras: is no .keras archive, .*recursion|nested too deeply"),
        (nested_within_what_json_reads, "m.keras: .*(recursion|nested|cannot build)"),
        (archive_with_a_list, "m.keras: is no .keras archive, or is damaged"),
        (hdf5_with_numbers, "m.h5: is a damaged HDF5 file"),
        (hdf5_with_a_list, "m.h5: is a damaged HDF5 file"),
    ],
)
def test_what_is_no_network_file_is_one_line_that_says_why(make, message, tmp_path):
    path = make(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load_keras(type(tmp_path)(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_60_damaged_files_are_opened_or_refused(name, tmp_path):
    content = save(tf_keras.Sequential([tf_keras.layers.Input((2,)), tf_keras.layers.Dense(2)]),
                   tmp_path / name).read_bytes()  # fmt: skip
    rng = np.random.default_rng(0)
    refused = []
    for _ in range(60):
        damaged = bytearray(content)
        for place in rng.integers(len(content), size=4):
            damaged[place] = rng.integers(256)
        (tmp_path / name).write_bytes(damaged)
        try:
            load_keras(tmp_path / name)
        except UserError as error:  # anything else fails the test
            refused.append(str(error))
    assert refused
    assert not any("\n" in line for line in refused)
