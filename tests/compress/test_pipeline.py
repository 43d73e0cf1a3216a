import os
import signal
import subprocess
import sys
from datetime import datetime, timezone

import msgspec
import numpy as np
import pytest
import tf_keras

from compress import pipeline
from compress.data.splits import load_task
from compress.networks import KerasFile, load_keras
from compress.plan import plan
from compress.quantize import mixed
from compress.recipe import parse_recipe, to_toml
from compress.store import Store
from deploy.bundle.make import bundle_run
from deploy.bundle.opened import open_bundle
from deploy.bundle.selftest import selftest
from deploy.errors import MissingExtraError, UserError
from deploy.evalset import EvalSet
from deploy.evaluate import predict_classes
from deploy.machine import this_target
from deploy.packing.packed import pack
from deploy.record import read_record, sha256_of
from deploy.report.results import read_results
from deploy.report.runtimes import runtime_lines
from deploy.report.verdict import best_variant
from deploy.session import open_model

RECIPE = """
name = "small"
[data]
source = "npz:{data}"
calibration_samples = 50
[network]
kind = "mlp"
hidden = [16]
[train]
epochs = 3
batch_size = 32
optimizer = {{ kind = "adam", learning_rate = 0.01 }}
[bench]
processes = 5
sessions_per_process = 1
rounds = 2
block_ms = 0.2
[[variant]]
name = "pruned"
from = "baseline"
[variant.step]
kind = "magnitude_prune"
final_sparsity = 0.5
fine_tune = {{ epochs = 2, batch_size = 32, optimizer = {{ kind = "adam", learning_rate = 0.01 }} }}
[[variant]]
name = "int8"
from = "pruned"
step = {{ kind = "quantize_static" }}
"""
STARTED = datetime(2026, 1, 2, tzinfo=timezone.utc)


class Heard:
    """A watcher that remembers which variants were made and which were there."""

    def __init__(self):
        self.made, self.reused, self.epochs, self.timed = [], [], 0, False
        self.searched = False

    def begins(self, variant, *, epochs):
        pass

    def epoch_ended(self, epoch):
        self.epochs += 1

    def ended(self, variant, *, reused):
        (self.reused if reused else self.made).append(variant)

    def search_advanced(self, what, done, total):
        self.searched = True

    def bench_advanced(self, done, total):
        self.timed = True


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three classes of 8×8 images that differ by which third of the rows is bright."""
    rng = np.random.default_rng(0)
    y = np.arange(3000) % 3  # 600 of them test: enough to tell that little was lost
    x = rng.integers(0, 80, size=(3000, 8, 8), dtype=np.uint8)
    for label in range(3):
        x[y == label, 2 * label : 2 * label + 3] += 120
    path = tmp_path_factory.mktemp("data") / "bars.npz"
    np.savez(path, x=x, y=y)
    return path


@pytest.fixture(scope="module")
def recipe(data):
    return parse_recipe(RECIPE.format(data=data))


def run(recipe, out, store):
    heard = Heard()
    results = pipeline.run(
        recipe,
        out=out,
        store=Store(store),
        watcher=heard,
        command="lightship run small.toml",
        now=STARTED,
    )
    return results, heard


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """A run folder, its store, its results and what its watcher heard."""
    folder = tmp_path_factory.mktemp("runs")
    return folder / "first", folder / "store", *run(recipe, folder / "first", folder / "store")


def test_a_run_lays_out_report_models_recipe_and_test_samples(finished):
    out, *_ = finished
    made = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    models = {f"variants/{name}/model.onnx" for name in ("baseline", "pruned", "int8")}
    models |= {f"variants/{name}/model.keras" for name in ("baseline", "pruned")}
    models |= {f"variants/{name}/epochs.csv" for name in ("baseline", "pruned")}
    records = {f"{model}.json" for model in models if not model.endswith(".csv")}
    tables = {"report.html", "report.md", "results.csv", "results.json"}
    assert made == models | records | tables | {"recipe.toml", "test.npz", "best.lship"}


def test_a_run_ends_with_a_bundle_of_the_verdicts_choice_that_passes_its_self_test(finished):
    out, _, results, _ = finished
    best = best_variant(results)
    assert open_bundle(out / "best.lship").manifest.lineage.variant == best.name
    assert open_bundle(out / "best.lship").manifest.quality.score.value == best.score
    assert selftest(out / "best.lship").passed


def test_results_are_what_was_written(finished):
    out, _, results, _ = finished
    assert read_results(out / "results.json") == results


def test_results_speak_of_the_very_files_in_the_run_folder(finished):
    out, _, results, _ = finished
    for variant in results.variants:
        model = out / variant.path
        assert variant.sha256 == sha256_of(model)
        assert variant.size_bytes == model.stat().st_size
        assert variant.packed_bytes == len(pack(model.read_bytes()))


def test_the_accuracy_in_the_results_is_that_of_the_file_on_the_test_samples(finished):
    out, _, results, _ = finished
    samples = EvalSet.load(out / "test.npz")
    for variant in results.variants:
        predicted = predict_classes(open_model(out / variant.path), samples.x)
        assert variant.score == np.mean(predicted == samples.y)


def test_every_variant_says_what_of_it_runs_in_int8(finished):
    seen = {v.name: (v.int8_layers, v.weighted_layers, v.macs) for v in finished[2].variants}
    macs = 64 * 16 + 16 * 3
    assert seen == {"baseline": (0, 2, macs), "pruned": (0, 2, macs), "int8": (2, 2, macs)}


def test_the_models_learned_something(finished):
    assert all(variant.score > 0.8 for variant in finished[2].variants)


def test_pruned_zeros_are_in_the_bytes_of_the_quantized_model_too(finished):
    by_name = {variant.name: variant for variant in finished[2].variants}
    for name in ("pruned", "int8"):
        first = by_name[name].layers[0]
        assert first.sparsity >= 0.5
    assert by_name["int8"].layers[0].bits == 8
    assert by_name["baseline"].layers[0].sparsity < 0.1


def test_training_for_int8_keeps_the_zeros_of_the_pruned_parent_in_the_bytes(
    finished, recipe, tmp_path
):
    step = 'kind = "quantize_aware"\nfine_tune = { epochs = 1, batch_size = 32 }'
    text = f'[[variant]]\nname = "aware"\nfrom = "pruned"\n[variant.step]\n{step}\n'
    results, heard = run(parse_recipe(to_toml(recipe) + text), tmp_path, finished[1])
    made = {variant.name: variant for variant in results.variants}["aware"]
    assert heard.made == ["aware"]
    assert made.int8_layers == made.weighted_layers == 2
    x = load_task(recipe.data, seed=recipe.seed).test.x
    path = tmp_path / made.path
    trained, opened = load_keras(path.with_suffix(".keras")), open_model(path)
    same = trained.predict(x, verbose=0).argmax(1) == opened.run(opened.cast(x)).argmax(1)
    assert made.keras_agreement == read_record(path).keras_agreement == same.mean()
    assert {v.keras_agreement for v in results.variants if v is not made} == {None}
    assert made.layers[0].sparsity >= 0.5


def test_every_record_names_the_blocks_that_a_pattern_took(recipe, tmp_path):
    inputs = tf_keras.layers.Input((8, 8, 1))
    y = tf_keras.layers.Conv2D(1, 3, padding="same", name="conv")(inputs)
    x = tf_keras.layers.Flatten()(tf_keras.layers.Add(name="add_me")([inputs, y]))
    network = tf_keras.Model(inputs, tf_keras.layers.Dense(3, activation="softmax")(x))
    network.save(tmp_path / "residual.keras")
    step = 'kind = "prune_blocks"\nblocks = ["add*"]\nfine_tune = { epochs = 1, batch_size = 32 }'
    text = f'[[variant]]\nname = "shallow"\nfrom = "baseline"\n[variant.step]\n{step}\n'
    more = parse_recipe(to_toml(recipe) + text).variants
    asked = msgspec.structs.replace(
        recipe,
        network=KerasFile(path=str(tmp_path / "residual.keras")),
        variants=tuple(v for v in more if v.name == "shallow"),
    )
    results, _ = run(asked, tmp_path / "out", tmp_path / "store")
    made = {variant.name: variant for variant in results.variants}["shallow"]
    path = tmp_path / "out" / made.path
    told = [made.step, open_model(path).metadata.step]
    told += [read_record(file).step for file in (path, path.with_suffix(".keras"))]
    assert [step["blocks"] for step in told] == 4 * [["add_me"]]


def test_the_model_file_alone_says_how_to_preprocess_and_where_it_comes_from(finished):
    out, _, results, _ = finished
    by_name = {variant.name: variant for variant in results.variants}
    about = open_model(out / by_name["int8"].path).metadata
    assert about.parent == by_name["pruned"].sha256
    assert about.step["kind"] == "quantize_static"
    assert about.labels == ("0", "1", "2")
    assert about.preprocess
    assert "tensorflow" in about.versions


def test_a_second_run_repeats_nothing(finished, recipe):
    out, store, first, _ = finished
    second, heard = run(recipe, out, store)
    assert heard.made == []
    assert heard.reused == ["baseline", "pruned", "int8"]
    assert not heard.timed
    assert second == first


def test_another_run_folder_shares_the_finished_steps(finished, recipe, tmp_path):
    _, store, *_ = finished
    _, heard = run(recipe, tmp_path / "second", store)
    assert heard.made == []


def test_a_changed_step_repeats_only_itself_and_its_children(finished, recipe, tmp_path):
    _, store, *_ = finished
    (pruned, int8) = recipe.variants
    coarser = msgspec.structs.replace(
        int8, step=msgspec.structs.replace(int8.step, per_channel=False)
    )
    _, heard = run(
        msgspec.structs.replace(recipe, variants=(pruned, coarser)), tmp_path / "changed", store
    )
    assert heard.made == ["int8"]


def test_a_damaged_step_is_made_again_with_the_same_weights(finished, recipe, tmp_path):
    _, store, results, _ = finished
    task = load_task(recipe.data, seed=recipe.seed)
    stage = plan(recipe, task)["pruned"]
    model = Store(store).find(stage.model_key) / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    again, heard = run(recipe, tmp_path / "again", store)
    assert heard.made == ["pruned"]
    assert heard.epochs == 0  # the Keras model was kept: only the export was repeated
    assert [v.score for v in again.variants] == [v.score for v in results.variants]


def test_a_variant_that_left_the_recipe_leaves_the_run_folder(finished, recipe, tmp_path):
    _, store, *_ = finished
    run(recipe, tmp_path / "out", store)
    run(msgspec.structs.replace(recipe, variants=()), tmp_path / "out", store)
    assert [folder.name for folder in (tmp_path / "out/variants").iterdir()] == ["baseline"]
    assert not (tmp_path / "out/best.lship").exists()


def test_folders_of_others_stay_in_the_run_folder(finished, recipe, tmp_path):
    _, store, *_ = finished
    notes = tmp_path / "out/variants/thesis/notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    (tmp_path / "out/variants/README.txt").write_text("mine too")
    run(recipe, tmp_path / "out", store)
    assert notes.read_text() == "mine"
    assert (tmp_path / "out/variants/README.txt").exists()


MIXED = """
[[variant]]
name = "mixed"
from = "pruned"
step = {{ kind = "quantize_mixed", max_drop_points = 100 }}
"""


def test_a_search_lies_beside_its_model_and_goes_with_it(
    finished, recipe, data, tmp_path, monkeypatch
):
    """The calibration samples are 50, which the report has to say."""
    _, store, *_ = finished
    quick = mixed.Bench(processes=5, sessions_per_process=1, rounds=1, block_ms=0.2, batch=1)
    monkeypatch.setattr(mixed, "_ROUGH", quick)
    monkeypatch.setattr(mixed, "_FINE", quick)
    searched = parse_recipe((RECIPE + MIXED).format(data=data))
    results, heard = run(searched, tmp_path / "out", store)
    assert heard.made == ["mixed"]
    assert heard.searched
    folder = tmp_path / "out/variants/mixed"
    search = msgspec.json.decode((folder / "search.json").read_bytes(), type=mixed.Mixed)
    assert search.chosen in search.tried
    assert (folder / "search.svg").exists()
    said = [warning for warning in results.warnings if "50 samples are few" in warning]
    assert [warning.split(":")[0] for warning in said] == ["int8, mixed"]
    _, heard = run(searched, tmp_path / "out", store)
    assert heard.made == []


LAID_OUT = """
[[variant]]
name = "partly"
from = "pruned"
step = {{ kind = "quantize_static", exclude = ["dense1"] }}
[[variant]]
name = "laid-out"
from = "partly"
step = {{ kind = "int8_layout" }}
"""


def test_what_is_laid_out_answers_as_its_parent_and_notes_what_its_parent_notes(
    finished, data, tmp_path
):
    _, store, *_ = finished
    results, heard = run(parse_recipe((RECIPE + LAID_OUT).format(data=data)), tmp_path, store)
    assert heard.made == ["partly", "laid-out"]
    partly, laid = (v for v in results.variants if v.name in {"partly", "laid-out"})
    assert laid.step == {"kind": "int8_layout", "columns": {}, "threads": 1}
    assert laid.agreement == 1
    assert {layer.name: layer.note for layer in laid.layers if layer.note} == {
        "dense1": "excluded by 'dense1'"
    }
    assert [layer.note for layer in laid.layers] == [layer.note for layer in partly.layers]


def test_a_layer_that_does_not_exist_is_refused_before_any_training(recipe, tmp_path):
    (pruned, int8) = recipe.variants
    typo = msgspec.structs.replace(
        int8, step=msgspec.structs.replace(int8.step, exclude=("dnse1",))
    )
    heard = Heard()
    with pytest.raises(UserError, match="variant 'int8': exclude: no layer is named 'dnse1'"):
        pipeline.run(
            msgspec.structs.replace(recipe, variants=(pruned, typo)),
            out=tmp_path / "out",
            store=Store(tmp_path / "store"),
            watcher=heard,
            command="",
            now=STARTED,
        )
    assert heard.epochs == 0


def test_a_variant_for_another_machine_says_so_in_the_report(finished, recipe, tmp_path):
    _, store, *_ = finished
    (pruned, int8) = recipe.variants
    other = "arm64" if this_target() != "arm64" else "x86-vnni"
    step = msgspec.structs.replace(int8.step, target=other)
    foreign = msgspec.structs.replace(int8, step=step)
    recipe = msgspec.structs.replace(recipe, variants=(pruned, foreign))
    results, _ = run(recipe, tmp_path / "out", store)
    assert any(f"int8 is made for {other} and was run on" in line for line in results.warnings)


LITERT = """
[[variant]]
name = "lite"
from = "pruned"
step = {{ kind = "litert", form = "float" }}
[[variant]]
name = "lite-int8"
from = "pruned"
step = {{ kind = "litert" }}
"""


def test_litert_variants_are_made_measured_reported_and_bundled_like_the_others(
    finished, data, tmp_path
):
    pytest.importorskip("ai_edge_litert", reason="the extra litert is not installed")
    _, store, *_ = finished
    recipe = parse_recipe((RECIPE + LITERT).format(data=data))
    out = tmp_path / "run"
    results, heard = run(recipe, out, store)
    assert sorted(heard.made) == ["lite", "lite-int8"]
    by_name = {variant.name: variant for variant in results.variants}
    lite, int8 = by_name["lite"], by_name["lite-int8"]
    assert (lite.format, lite.path) == ("tflite", "variants/lite/model.tflite")
    assert (lite.baseline_agreement, lite.agreement) == (by_name["pruned"].baseline_agreement, 1.0)
    assert (lite.int8_macs_share, int8.int8_macs_share) == (0.0, 1.0)
    assert all(variant.speedup is not None for variant in results.variants)
    dense = {layer.name: layer for layer in int8.layers}["dense1"]
    assert dense.bits == 8
    assert dense.zeros >= 0.5 * dense.parameters
    assert any(line.startswith("pruned: ") for line in runtime_lines(results))
    for variant in (lite, int8):
        assert sha256_of(out / variant.path) == variant.sha256
        bundle_run(out, tmp_path / f"{variant.name}.lship", variant=variant.name)
        found = selftest(tmp_path / f"{variant.name}.lship")
        assert found.passed
        assert "LiteRT" in found.sentence
    assert open_bundle(tmp_path / "lite.lship").manifest.latency.litert is not None
    _, again = run(recipe, out, store)
    assert again.made == []


def test_without_litert_a_recipe_that_needs_it_is_refused_before_any_training(
    data, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    recipe = parse_recipe((RECIPE + LITERT).format(data=data))
    with pytest.raises(MissingExtraError, match=r"pip install 'lightship\[litert\]'"):
        run(recipe, tmp_path / "out", tmp_path / "store")
    assert not (tmp_path / "out").exists()


def test_a_training_cut_off_between_two_epochs_goes_on_with_the_next_one(
    finished, recipe, tmp_path
):
    class Impatient(Heard):
        def epoch_ended(self, epoch):
            super().epoch_ended(epoch)
            if epoch.epoch == 2:
                raise KeyboardInterrupt

    alone = msgspec.structs.replace(recipe, variants=())
    store = Store(tmp_path / "store")
    (stage,) = plan(alone, load_task(alone.data, seed=0)).values()
    settings = {"out": tmp_path / "out", "store": store, "command": "", "now": STARTED}
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(alone, watcher=Impatient(), **settings)
    assert store.unfinished(stage.keras_key).exists()
    _, heard = run(alone, tmp_path / "out", tmp_path / "store")
    assert heard.epochs == 1  # of three
    assert not store.unfinished(stage.keras_key).exists()
    whole = finished[0] / "variants/baseline/model.onnx"
    x = np.load(finished[0] / "test.npz")["x"]
    scores = [
        open_model(path).scores(x)
        for path in (whole, tmp_path / "out/variants/baseline/model.onnx")
    ]
    assert np.array_equal(*scores)


def start(recipe_file, out):
    # A suite that runs in the background hands down an ignored SIGINT.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{listen}; from compress.cli import main; main()"]
    return subprocess.Popen(
        [*command, "run", str(recipe_file), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )


def read_until(stream, text):
    for line in stream:
        if text in line:
            return
    raise AssertionError(f"{text!r} was never printed")


def test_a_run_cut_off_in_training_goes_on_after_its_last_finished_step(data, tmp_path):
    long = RECIPE.format(data=data).replace(
        "fine_tune = { epochs = 2,", "fine_tune = { epochs = 4000,"
    )
    recipe_file = tmp_path / "small.toml"
    recipe_file.write_text(long)
    for how, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        child = start(recipe_file, tmp_path / "out")
        read_until(child.stderr, "pruned: epoch ")
        child.send_signal(how)
        stdout, stderr = child.communicate(timeout=60)
        assert child.returncode == code
        said = stderr.endswith("stopped; the same command goes on where it was\n")
        assert said == (how == signal.SIGINT)
        assert "Traceback" not in stderr
        assert stdout == ""
        assert not (tmp_path / "out/results.json").exists()
    _, heard = run(parse_recipe(RECIPE.format(data=data)), tmp_path / "out", tmp_path / ".store")
    assert heard.reused == ["baseline"]
    assert heard.made == ["pruned", "int8"]
