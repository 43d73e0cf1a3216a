"""The commands as a user meets them; the steps themselves are tested in their own rooms."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import tf_keras
from click.testing import CliRunner

from compress.cli import cli
from compress.quantize import lint, mixed
from deploy.evalset import EvalSet
from deploy.session import open_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def data(folder):
    """Two classes of 6×6 images: bright on the left, bright on the right."""
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    x = rng.integers(0, 60, size=(200, 6, 6), dtype=np.uint8)
    x[y == 0, :, :3] += 150
    x[y == 1, :, 3:] += 150
    np.savez(folder / "sides.npz", x=x, y=y)
    return f"npz:{folder / 'sides.npz'}"


def invoke(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def done(*words):
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    return result


def one_line(*words):
    """Return the one line in which a command refuses, having checked that it is one."""
    result = invoke(*words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    # Progress may stand above: it begins before what is wrong can be known.
    *_, last = result.stderr.splitlines()
    assert last.startswith("error: ")
    assert result.stderr.count("error: ") == 1
    return last


@pytest.fixture(scope="module")
def keras(folder, data):
    out = folder / "model.keras"
    done("train", "--data", data, "--network", "mlp", "--epochs", 3, "--out", out,
         "--learning-rate", 0.01, "--batch-size", 32)  # fmt: skip
    return out


@pytest.fixture(scope="module")
def pruned(folder, data, keras):
    out = folder / "pruned.keras"
    done("prune", keras, "--data", data, "--final-sparsity", 0.75, "--skip", "dense2",
         "--epochs", 2, "--batch-size", 32, "--out", out)  # fmt: skip
    return out


@pytest.fixture(scope="module")
def onnx(folder, data, pruned):
    out = folder / "model.onnx"
    done("export", pruned, "--data", data, "--out", out)
    return out


@pytest.fixture(scope="module")
def int8(folder, data, onnx):
    out = folder / "int8.onnx"
    done("quantize", onnx, "--data", data, "--calibration", "percentile", "--out", out)
    return out


@pytest.fixture(scope="module")
def test_npz(folder, data):
    out = folder / "test.npz"
    done("evalset", "--data", data, "--out", out)
    return out


def test_every_step_leaves_a_record_of_its_own_file_beside_it(keras, pruned, onnx, int8):
    records = [
        json.loads((p.parent / f"{p.name}.json").read_text()) for p in (keras, pruned, onnx, int8)
    ]
    assert [record["step"]["kind"] for record in records] == [
        "train", "magnitude_prune", "export", "quantize_static",
    ]  # fmt: skip
    assert [record["parent"] for record in records[1:]] == [r["sha256"] for r in records[:-1]]


def test_the_record_of_a_pruned_model_says_why_a_layer_was_left_alone(pruned):
    record = json.loads((pruned.parent / "pruned.keras.json").read_text())
    by_name = {layer["name"]: layer for layer in record["layers"]}
    assert by_name["dense1"]["zeros"] == round(0.75 * by_name["dense1"]["parameters"])
    assert by_name["dense2"]["note"] == "skipped: 'dense2'"


def test_a_price_per_bit_prunes_by_what_the_weights_cost(data, keras, tmp_path):
    out = tmp_path / "coded.keras"
    brief = ("--data", data, "--epochs", 1, "--out", out)
    done("prune", keras, "--price-per-bit", 0.1, "--skip", "dense2", *brief)
    record = json.loads((tmp_path / "coded.keras.json").read_text())
    assert (record["step"]["kind"], record["step"]["price_per_bit"]) == ("entropy_prune", 0.1)
    by_name = {layer["name"]: layer for layer in record["layers"]}
    assert by_name["dense2"]["note"] == "skipped: 'dense2'"
    line = one_line("prune", keras, "--price-per-bit", 0.1, "--budget", "lamp", *brief)
    assert "leave --final-sparsity and --budget out, or it" in line


def test_the_quantized_file_answers_right_on_raw_samples(int8, test_npz):
    samples = EvalSet.load(test_npz)
    scores = open_model(int8).scores(samples.x)
    assert np.mean(scores.argmax(axis=1) == samples.y) > 0.95


@pytest.mark.parametrize("kind", ["dynamic", "float16", "weight-only"])
def test_every_kind_of_quantization_makes_a_smaller_file(kind, data, onnx, tmp_path):
    out = tmp_path / "small.onnx"
    done("quantize", onnx, "--data", data, "--kind", kind, "--out", out)
    assert out.stat().st_size < onnx.stat().st_size


@pytest.mark.parametrize("form", ["float", "int8"])
def test_a_litert_export_is_evaluated_beside_its_onnx_form(
    form, data, pruned, onnx, test_npz, tmp_path
):
    pytest.importorskip("ai_edge_litert", reason="the extra litert is not installed")
    out = tmp_path / "model.tflite"
    said = done(
        "export", pruned, "--data", data, "--format", "tflite", "--form", form, "--out", out
    )
    assert said.stdout.startswith(f"{out}  {out.stat().st_size:,} bytes")
    record = json.loads((tmp_path / "model.tflite.json").read_text())
    assert (record["format"], record["step"]["kind"]) == ("tflite", "litert")
    text = done("evaluate", out, "--data", test_npz, "--against", onnx).stdout
    assert "no detectable difference" in text


def test_options_of_one_format_are_refused_for_the_other(data, pruned, tmp_path):
    for words in (("--form", "int8"), ("--format", "tflite", "--opset", 17)):
        line = one_line("export", pruned, "--data", data, *words, "--out", tmp_path / "m")
        assert "--form is for --format tflite, --opset for onnx" in line


def trained(data, out, *more):
    words = ("train", "--data", data, "--network", "mlp", "--epochs", 3, "--batch-size", 32)
    return invoke(*words, "--out", out, *more)


def test_train_takes_every_key_of_a_recipes_train_table(data, tmp_path):
    out = tmp_path / "mlp.keras"
    settings = (
        "regularise.l2=0.01",
        "optimizer.momentum=0.5",
        "schedule={kind='step', at_epochs=[1]}",
    )
    sets = [word for setting in settings for word in ("--set", setting)]
    assert trained(data, out, "--optimizer", "sgd", *sets).exit_code == 0
    made = json.loads((tmp_path / "mlp.keras.json").read_text())["step"]["train"]
    assert made["regularise"]["l2"] == 0.01
    assert made["optimizer"]["momentum"] == 0.5
    assert made["schedule"]["at_epochs"] == [1]
    lines = (tmp_path / "mlp.epochs.csv").read_text().splitlines()
    assert len(lines) == 4
    assert "penalty" in lines[0]


def test_a_training_that_is_interrupted_says_how_to_go_on_and_goes_on(data, tmp_path, monkeypatch):
    out, stopped = tmp_path / "mlp.keras", tmp_path / "mlp.keras.unfinished"

    def interrupted(_watcher, epoch):
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    assert trained(data, tmp_path / "whole.keras").exit_code == 0
    with monkeypatch.context() as patched:
        patched.setattr("compress.progress.ConsoleWatcher.epoch_ended", interrupted)
        result = trained(data, out)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "stopped; the same command goes on where it was"
    assert stopped.exists()
    assert not out.exists()
    result = trained(data, out)
    assert result.exit_code == 0
    assert not stopped.exists()
    assert "epoch 3/3" in result.stderr
    assert "epoch 2/3" not in result.stderr
    again = tf_keras.models.load_model(out).get_weights()
    whole = tf_keras.models.load_model(tmp_path / "whole.keras").get_weights()
    assert all(map(np.array_equal, again, whole))


def test_a_learning_rate_is_found_and_its_curve_drawn(data, tmp_path):
    words = ("find-learning-rate", "--data", data, "--network", "mlp", "--batch-size", 32)
    result = invoke(*words, "--steps", 60, "--out", tmp_path / "rates.svg", "--json")
    assert result.exit_code == 0, result.output
    assert 1e-6 <= json.loads(result.stdout)["suggestion"] <= 10
    assert "<svg" in (tmp_path / "rates.svg").read_text()


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("optimizer.momentum", "--set: needs KEY=VALUE"),
        ("epochs.x=1", "'epochs' in 'epochs.x' is a value, not a table"),
        ("optimizer.nesterov=true", "optimizer: unknown key 'nesterov'"),
        ("schedule={kind='list', rates=[0.1]}", "one learning rate for each of 3 epochs, got 1"),
        ("early_stopping={patience=1, metric='val_auc'}", "there is no 'val_auc' here"),
        ("batch_size=9999", "9999 is more than the"),
    ],
)
def test_a_mistake_in_how_to_train_is_one_line_and_leaves_nothing(
    data, tmp_path, setting, complaint
):
    result = trained(data, tmp_path / "mlp.keras", "--set", setting)
    assert result.exit_code == 2
    assert complaint in result.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_mixed_model_has_its_search_and_its_picture_beside_it(data, onnx, tmp_path, monkeypatch):
    quick = mixed.Bench(processes=5, sessions_per_process=1, rounds=1, block_ms=0.2, batch=1)
    monkeypatch.setattr(mixed, "_ROUGH", quick)
    monkeypatch.setattr(mixed, "_FINE", quick)
    out, plot = tmp_path / "mixed.onnx", tmp_path / "search.svg"
    told = done("quantize", onnx, "--data", data, "--kind", "mixed", "--max-drop-points", 100,
                "--plot", plot, "--out", out)  # fmt: skip
    assert "layers stay in float" in told.stderr
    search = json.loads((tmp_path / "mixed.onnx.search.json").read_text())
    assert search["chosen"] in search["tried"]
    assert search["step"]["max_drop_points"] == 100
    assert plot.exists()
    record = json.loads((tmp_path / "mixed.onnx.json").read_text())
    assert record["step"]["kind"] == "quantize_mixed"


def test_an_int8_model_is_laid_out_for_its_kernels(int8, data, tmp_path):
    out = tmp_path / "faster.onnx"
    told = done("quantize", int8, "--data", data, "--kind", "layout", "--out", out)
    # It is an MLP.
    assert "no convolution of few channels could compute several columns at once" in told.stderr
    assert "transposes when it runs: 0, 0 before" in told.stderr
    record = json.loads((tmp_path / "faster.onnx.json").read_text())
    assert record["step"] == {"kind": "int8_layout", "columns": {}, "threads": 1}


def test_columns_that_no_layer_has_are_refused_with_those_there_are(int8, data, tmp_path):
    out = tmp_path / "faster.onnx"
    words = ("--kind", "layout", "--columns", "conv1=4", "--out", out)
    told = one_line("quantize", int8, "--data", data, *words)
    assert "'conv1' cannot compute 4 columns at once; there are no int8 convolutions" in told
    assert not out.exists()


def test_a_float_model_has_nothing_to_lay_out(onnx, data, tmp_path):
    out = tmp_path / "faster.onnx"
    told = one_line("quantize", onnx, "--data", data, "--kind", "layout", "--out", out)
    assert "has no int8 layers between QuantizeLinear and DequantizeLinear" in told
    assert not out.exists()


def test_corrections_and_bits_are_asked_for_on_the_command_line(onnx, data, tmp_path):
    out = tmp_path / "int4.onnx"
    corrections = ("--correct", "rounding", "--correct", "bias")
    scales = ("--weight-bits", 4, "--per-tensor")
    done("quantize", onnx, "--data", data, *scales, *corrections, "--out", out)
    step = json.loads((tmp_path / "int4.onnx.json").read_text())["step"]
    assert step["correct"] == ["rounding", "bias"]
    assert (step["weight_bits"], step["per_channel"]) == (4, False)


def test_the_record_of_an_automatic_calibration_says_what_was_chosen(data, onnx, tmp_path):
    out = tmp_path / "auto.onnx"
    told = done("quantize", onnx, "--data", data, "--calibration", "auto", "--out", out)
    chosen = json.loads((tmp_path / "auto.onnx.json").read_text())["step"]["calibration"]
    assert f"calibration: {chosen}\n" in told.stderr
    assert chosen != "auto"


def test_sensitivity_ranks_layers_in_a_table_and_as_json(data, onnx, tmp_path):
    plot = tmp_path / "layers.svg"
    lines = done("sensitivity", onnx, "--data", data, "--plot", plot).stdout.splitlines()
    found = json.loads(done("sensitivity", onnx, "--data", data, "--json").stdout)["layers"]
    assert {line.split()[0] for line in lines[1:]} == {layer["name"] for layer in found}
    assert plot.exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--plot", "a.svg"], "there is a search to draw with --kind mixed, got static"),
        (["--kind", "mixed", "--plot", "a.gif"], "must end in .svg, .png, .pdf, got a.gif"),
        (
            ["--kind", "mixed", "--target", "arm64"],
            "--target: is not for --kind mixed, which takes --",
        ),
        (
            ["--max-drop-points", 1],
            "--max-drop-points: is not for --kind static, which takes --cal",
        ),
        (
            ["--kind", "float16", "--threads", 2],
            "--threads: is not for --kind float16, which takes no",
        ),
        (
            ["--kind", "dynamic", "--exclude-type", "Conv"],
            "--exclude-type: is not for --kind dynamic",
        ),
        (["--columns", "conv1=4"], "--columns: is not for --kind static"),
        (["--kind", "layout", "--columns", "conv1=1"], "must be LAYER=N with N of 2 or more, as"),
        (
            ["--kind", "layout", "--columns", "4"],
            "must be LAYER=N with N of 2 or more, as conv1=4, got",
        ),
    ],
)
def test_an_option_of_another_kind_of_quantization_is_refused(words, reason, data, onnx, tmp_path):
    out = tmp_path / "out.onnx"
    assert reason in one_line("quantize", onnx, "--data", data, *words, "--out", out)
    assert not out.exists()


def test_evaluate_compares_two_models_sample_by_sample(onnx, int8, test_npz):
    text = done("evaluate", int8, "--data", test_npz, "--against", onnx).stdout
    assert "no detectable difference" in text


def test_evaluate_prints_nothing_but_json_when_asked(onnx, test_npz):
    found = json.loads(done("evaluate", onnx, "--data", test_npz, "--json").stdout)
    assert found["evaluation"]["samples"] == len(EvalSet.load(test_npz).y)
    assert found["comparison"] is None


def test_bench_prints_nothing_but_json_when_asked(onnx, int8):
    found = json.loads(done("bench", onnx, int8, "--processes", 5, "--json").stdout)
    assert [model["path"] for model in found["models"]] == [str(onnx), str(int8)]
    assert found["measurement"]["latencies"][0]["speedup"]["value"] == 1


def test_doctor_names_the_scheme_that_fits_this_machine():
    found = json.loads(done("doctor", "--json").stdout)
    assert found["environment"]["target"] in {"x86-vnni", "x86-avx2", "arm64"}
    assert done("doctor").stdout.startswith("processor")


def test_dry_run_prints_the_recipe_and_makes_nothing(data, tmp_path):
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        f'name = "small"\n[data]\nsource = "{data}"\n[network]\nkind = "mlp"\n[train]\nepochs = 1\n'
    )
    text = done("run", recipe, "--dry-run", "--out", tmp_path / "out").stdout
    assert "batch_size = 128" in text
    assert "# to do  baseline" in text
    assert not (tmp_path / "out").exists()


def test_dry_run_refuses_layers_that_the_network_does_not_have(data, tmp_path):
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        f'name = "small"\n[data]\nsource = "{data}"\n[network]\nkind = "mlp"\n[train]\nepochs = 1\n'
        '[[variant]]\nname = "sparse"\nfrom = "baseline"\n[variant.step]\n'
        'kind = "magnitude_prune"\nfinal_sparsity = 0.5\nskip = ["conv9"]\n'
        "fine_tune = { epochs = 1 }\n"
    )
    line = one_line("run", recipe, "--dry-run")
    assert line.startswith("error: variant 'sparse': skip: no layer is named 'conv9'")


def test_what_every_command_takes_is_said_in_its_help():
    for name in cli.commands:
        assert "--help" in done(name, "--help").stdout


def test_help_imports_neither_tensorflow_nor_numpy_nor_onnxruntime():
    code = (
        "import sys\nsys.argv = ['lightship', '--help']\n"
        "from compress.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'tensorflow', 'numpy', 'onnxruntime', 'rich'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.endswith("[]\n")


def test_tensorflow_says_nothing_when_it_is_imported():
    code = (
        "from compress.quiet import quiet_tensorflow\n"
        "quiet_tensorflow()\n"
        "import tf_keras\n"
        "tf_keras.layers.Dense(1)(tf_keras.layers.Input((1,)))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("", "")


def test_an_import_of_tensorflow_that_fails_still_shows_what_it_printed(tmp_path):
    (tmp_path / "tensorflow.py").write_text(
        "import os\nos.write(2, b'why')\nraise ImportError('no')"
    )
    code = (
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n"
        "from compress.quiet import quiet_tensorflow\n"
        "quiet_tensorflow()\n"
        "import tensorflow\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "why" in run.stderr
    assert "ImportError: no" in run.stderr


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken():
        raise ZeroDivisionError

    monkeypatch.setattr("deploy.doctor.examine", broken)
    assert isinstance(invoke("doctor").exception, ZeroDivisionError)


def mistakes(data, keras, onnx, int8, test_npz, tmp_path):
    """Return commands that cannot work, by what is wrong with them, with the line they must print."""
    train = ("train", "--out", tmp_path / "a.keras", "--network", "mlp", "--data")
    prune = ("prune", keras, "--data", data, "--epochs", 1)
    quantize = ("quantize", onnx, "--data", data)
    missing = tmp_path / "no.onnx"
    return {
        "unknown source": ((*train, "minst"), r"source 'minst' is unknown"),
        "unknown network": (
            ("train", "--data", data, "--network", "lenet5"), "did you mean lenet_5"
        ),
        "batch above data": ((*train, data, "--batch-size", 4000), "batch_size: 4000 is more than"),
        "not a Keras name": (
            ("train", "--data", data, "--network", "mlp", "--epochs", 1, "--out", tmp_path / "a.h5"),
            "must end in .keras",
        ),
        "sparsity of 1.5": ((*prune, "--final-sparsity", 1.5), "final_sparsity: .* got 1.5"),
        "no such layer": ((*prune, "--skip", "conv9"), "skip: no layer is named 'conv9'"),
        "prune ONNX": (("prune", onnx, "--data", data), "model.onnx"),
        "no model": (("quantize", missing, "--data", data), "no.onnx"),
        "quantized twice": (("quantize", int8, "--data", data), "it is quantized already"),
        "exclude nothing": ((*quantize, "--exclude", "conv9"), "conv9"),
        "unknown recipe": (("run", "lenet5"), "did you mean lenet_5"),
        "no such run": (("report", tmp_path / "no"), "results.json"),
        "no samples": (("evaluate", onnx, "--data", tmp_path / "no.npz"), "no.npz"),
        "not a model": (("evaluate", test_npz, "--data", test_npz), "test.npz"),
        "bench nothing": (("bench",), r"Missing argument 'MODELS...'; see .* bench --help"),
        "misspelt command": (("evalute", onnx), "no command 'evalute', did you mean evaluate"),
        "bench a missing file": (("bench", missing), "no.onnx"),
    }  # fmt: skip


def test_a_mistake_is_one_line_with_exit_code_2(data, keras, onnx, int8, test_npz, tmp_path):
    for name, (command, line) in mistakes(data, keras, onnx, int8, test_npz, tmp_path).items():
        said = one_line(*command)
        assert re.search(line, said), f"{name}: {said}"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--exclude", "conv9"), "exclude: 'conv9' matches no node"),
        (("--exclude-type", "Conv"), "exclude_types: the model has no 'Conv'"),
        (("--kind", "mixed", "--threads", 9999, "--trust-model"), "threads: must be at most"),
        (("--kind", "layout"), "int8_layout: the model has no int8 layers"),
    ],
)
def test_what_is_cheap_to_see_is_said_before_samples_are_looked_at(
    words, reason, data, onnx, tmp_path, monkeypatch
):
    monkeypatch.setattr(lint, "lint_calibration", lambda *_: ("it was looked at",))
    result = invoke("quantize", onnx, "--data", data, *words, "--out", tmp_path / "out.onnx")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {reason}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "command", [("quantize",), ("quantize", "--kind", "mixed"), ("sensitivity",)]
)
def test_a_model_that_is_quantized_already_is_refused_in_one_line_alone(command, data, int8):
    result = invoke(*command, int8, "--data", data)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: model: it is quantized already")
    assert result.stderr.count("\n") == 1


def test_what_is_read_is_never_written_over(data, keras, onnx, folder):
    source = folder / "sides.npz"
    for words, taken in (
        (("prune", keras, "--data", data, "--teacher", keras, "--out", keras), keras),
        (("distill", keras, "--data", data, "--network", f"keras:{keras}", "--out", keras), keras),
        (("train", "--data", data, "--network", f"keras:{keras}", "--out", keras), keras),
        (("quantize", onnx, "--data", data, "--out", onnx), onnx),
        (("evalset", "--data", data, "--out", source), source),
    ):
        before = taken.read_bytes()
        assert one_line(*words).startswith(f"error: --out: {taken} is taken")
        assert taken.read_bytes() == before


@pytest.mark.parametrize(
    "words", [("quantize", "--kind", "mixed"), ("sensitivity",)], ids=lambda words: words[0]
)
def test_a_picture_that_cannot_be_written_is_refused_before_the_work(words, data, keras, onnx):
    result = invoke(*words, onnx, "--data", data, "--plot", keras / "a.svg")
    assert result.exit_code == 2
    assert result.stderr.startswith(
        f"error: --plot: {keras / 'a.svg'} cannot be written: {keras} takes"
    )
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["--out", "--store"])
def test_a_run_folder_that_cannot_be_made_is_refused_before_anything_is_trained(option, keras):
    result = invoke("run", "demo", option, keras / "run")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {option}: {keras / 'run'} cannot be written")
    assert result.stderr.count("\n") == 1


def test_a_refused_command_writes_nothing(data, onnx, tmp_path):
    out = tmp_path / "out.onnx"
    one_line("quantize", onnx, "--data", data, "--exclude", "conv9", "--out", out)
    assert list(tmp_path.iterdir()) == []
