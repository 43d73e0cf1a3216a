"""Data that are no plain arrays, from their files through training to what a device answers."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from compress.baseline import baseline
from compress.cli import cli
from compress.data.sources import Data
from compress.data.splits import load_task
from compress.export.proven import Export, export
from compress.networks import Mlp
from compress.quantize.static import QuantizeStatic, quantize_static
from compress.train.fit import Fit
from compress.train.optimizers import Adam
from deploy import load
from deploy.errors import UserError
from deploy.evaluate import predict_classes
from deploy.preprocess import apply
from deploy.session import open_model
from deploy.streams import Stream


def done(*words):
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle trained on a table with gaps, a column of texts, and numbers of all sizes."""
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    lines = ["income,colour,ill"]
    for number in range(240):
        ill = number % 2
        income = "" if number % 9 == 0 else f"{rng.normal(50_000 + 30_000 * ill, 8_000):.1f}"
        colour = "?" if number % 11 == 0 else ("red", "blue")[ill]
        lines.append(f"{income},{colour},{('no', 'yes')[ill]}")
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    data = ["--data", f"csv:{folder / 't.csv'}", "--label-column", "ill"]
    keras, onnx, test = folder / "m.keras", folder / "m.onnx", folder / "test.npz"
    first = ["--categorical", "colour", "--clean", '{"missing": "median"}', "--preprocess",
             '[{"op": "one_hot_categories"}, {"op": "standardize"}]']  # fmt: skip
    done("train", *data, *first, "--network", "mlp", "--epochs", 15, "--batch-size", 16, "--out", keras,
         "--learning-rate", 0.02)  # fmt: skip
    done("export", keras, *data, "--out", onnx)  # the rest is known from the model
    done("evalset", *data, *first, "--out", test)
    done("bundle", onnx, "--data", test, "--out", folder / "m.lship")
    return folder / "m.lship"


def test_a_device_answers_for_rows_of_texts_with_gaps_as_training_saw_them(bundle, tmp_path):
    (tmp_path / "new.csv").write_text(
        "colour,note,income\nred,x,40000\nblue,y,\n,z,85000\ngreen,,20000\n"
    )
    answers = json.loads(done("predict", bundle, tmp_path / "new.csv", "--json").stdout)
    assert [answer["label"] for answer in answers] == ["no", "yes", "yes", "no"]
    assert answers[2]["sample"] == "new.csv[2]"
    rows = [
        {"income": 40_000, "colour": "red"},
        {"income": None, "colour": "blue"},
        {"income": "85000", "colour": ""},
        {"income": 20_000.0, "colour": "green"},
    ]
    model = load(bundle)
    assert model.predict(rows).labels == ["no", "yes", "yes", "no"]
    assert model.predict(rows[0]).label == "no"
    same = model.predict(np.float32([[40_000, 1]]))  # what a row is once it is read
    np.testing.assert_array_equal(same.scores, model.predict(rows[0]).scores)


def test_a_row_that_lacks_a_column_is_one_line(bundle, tmp_path):
    (tmp_path / "new.csv").write_text("colour\nred\n")
    result = CliRunner().invoke(cli, ["predict", str(bundle), str(tmp_path / "new.csv")])
    assert result.exit_code == 2
    assert "row 1 lacks column 'income'" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    with pytest.raises(UserError, match="row 1: column 'income' must hold numbers, got 'lots'"):
        load(bundle).predict({"income": "lots", "colour": "red"})


def test_a_model_of_a_table_keeps_its_self_test(bundle):
    done("selftest", bundle)


def test_a_stream_of_images_trains_exports_quantizes_and_answers_as_arrays_do(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(160):
        label, path = number % 2, tmp_path / f"c{number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        image = rng.integers(0, 90, (44 + number % 3, 40, 3), np.uint8)
        image[:, 20 * label : 20 + 20 * label] += 120
        Image.fromarray(image).save(path, compress_level=0)
    settings = {"image_size": (40, 40), "calibration_samples": 16}
    answers = []
    for memory_mb in (1, 1000):
        data = Data(source=f"images:{tmp_path}", memory_mb=memory_mb, **settings)
        task = load_task(data, seed=0)
        assert isinstance(task.train.x, Stream) == (memory_mb == 1)
        fitting = Fit(epochs=2, batch_size=16, optimizer=Adam(learning_rate=0.003))
        model, _ = baseline(Mlp(hidden=(4,)), fitting, task, seed=0)
        exported = export(model, Export(), task.validation.x[:8])
        int8 = quantize_static(exported, QuantizeStatic(), task)
        opened = open_model(int8.SerializeToString())
        opened.metadata = opened.metadata.__class__(preprocess=task.preprocess)
        predicted = predict_classes(opened, task.test.raw)
        direct = opened.run(apply(task.preprocess, task.test.raw[:]))
        np.testing.assert_array_equal(predicted, direct.argmax(axis=1))
        answers.append((predicted == task.test.y).mean())
    assert min(answers) > 0.9
