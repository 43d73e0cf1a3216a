import dataclasses
import re

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compress.data.task import Split, Task
from compress.quantize import mixed as module
from compress.quantize.mixed import QuantizeMixed, as_static, quantize_mixed, why_in_float
from compress.quantize.outputs import outputs_of
from compress.quantize.plots import plot_search
from compress.quantize.static import quantize_static
from compress.recipe import parse_recipe
from deploy.errors import UserError
from deploy.graph import array_of, producers, weighted_nodes
from deploy.record import Goal, Interval
from deploy.session import open_model
from tests.compress.quantize.networks import images, network, regression

NAMES = ("stem", "conv", "dense")


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def task(model):
    """A task whose classes are those that the float model gives, so that rounding can lose some."""

    def split(n, seed):
        x = images(n, seed=seed)
        scores = open_model(model.SerializeToString()).run(x)
        return Split(raw=x, x=x, y=scores.argmax(axis=-1))

    return Task(
        name="tiny", digest="", licence="", labels=("a", "b", "c"), preprocess=(),
        train=split(64, 1), calibration=split(64, 1), validation=split(200, 2), test=split(1, 3),
    )  # fmt: skip


def layers_in_int8(model):
    made_by = producers(model.graph)
    return {
        found.node.name
        for found in weighted_nodes(model.graph)
        if getattr(made_by.get(found.node.input[1]), "op_type", "") == "DequantizeLinear"
    }


@pytest.fixture
def rig(monkeypatch):
    """Put planted times in the place of the clock: a function of the layers that are int8."""
    timed = []

    def planted(speed_of):
        def race(paths, settings, *, seed, on_progress=None):
            assert not layers_in_int8(onnx.load(paths[0]))
            found = []
            for path in paths:
                int8 = layers_in_int8(onnx.load(path))
                timed.append(frozenset(int8))
                speed = speed_of(int8)
                found.append(Interval(value=speed, low=speed, high=speed))
            on_progress(settings.processes, settings.processes)
            return tuple(found)

        def timing(*_args, **_named):
            return lambda models: [1.0 for _ in models]  # no number of columns gains

        monkeypatch.setattr(module, "race", race)
        monkeypatch.setattr(module, "timing", timing)
        monkeypatch.setattr("compress.quantize.sensitivity._saved_us", lambda *_: {})
        return timed

    return planted


FREE = QuantizeMixed(max_drop_points=100)
ALL = frozenset(NAMES)


@pytest.mark.parametrize(
    "best", [set(), {"stem"}, {"conv"}, {"stem", "dense"}, {"conv", "dense"}, ALL]
)
def test_the_planted_best_choice_is_found(model, task, rig, best):
    """Each layer that is not as in the best choice costs a tenth: any climb leads there."""
    rig(lambda int8: 2 - 0.1 * len(int8 ^ best))
    made, search = quantize_mixed(model, FREE, task, seed=0)
    assert layers_in_int8(made) == best
    assert set(search.chosen.floats) == ALL - best


def test_a_best_choice_that_no_start_contains_is_climbed_to(model, task, rig, monkeypatch):
    timed = rig(
        lambda int8: {frozenset({"stem", "dense"}): 3.0, ALL: 2.0}.get(frozenset(int8), 1.0)
    )
    monkeypatch.setattr(module._Search, "_starts", lambda self, layers: [self.all_int8])
    made, _ = quantize_mixed(model, FREE, task, seed=0)
    assert layers_in_int8(made) == {"stem", "dense"}
    assert timed


def test_a_thin_layer_computes_the_fastest_number_of_columns_wherever_it_is_int8(
    model, task, rig, monkeypatch
):
    timed = rig(lambda int8: 1 + len(int8))
    wide = []

    def columns_of(made):
        return {f.node.name: f.weight.dims[0] // 8 for f in weighted_nodes(made.graph)[:2]}

    def timing(*_args, **_named):
        return lambda models: [1 + (columns_of(one)["stem"] == 4) for one in models]

    def drop(self, made):
        wide.append((layers_in_int8(made), columns_of(made)))
        return 0.0

    monkeypatch.setattr(module, "timing", timing)
    monkeypatch.setattr(module._Search, "_drop", drop)
    made, search = quantize_mixed(model, FREE, task, seed=0)
    assert search.columns == {"stem": 4}
    assert columns_of(made) == {"stem": 4, "conv": 1}
    assert {"stem" in int8 for int8, _ in wide} == {True, False}
    assert all(columns["stem"] == (4 if "stem" in int8 else 1) for int8, columns in wide)
    plain = quantize_static(model, as_static(FREE, ()), task)
    x = images(20, seed=5)
    np.testing.assert_array_equal(
        open_model(made.SerializeToString()).run(x), open_model(plain.SerializeToString()).run(x)
    )
    assert timed


def test_what_is_chosen_was_tried_last_is_allowed_and_no_slower_than_either_end(model, task, rig):
    rng = np.random.default_rng(0)
    speeds = {}
    rig(lambda int8: speeds.setdefault(frozenset(int8), rng.uniform(0.5, 2)))
    for _ in range(5):
        speeds.clear()
        _, search = quantize_mixed(model, FREE, task, seed=0)
        last = {frozenset(tried.floats): tried for tried in search.tried if tried.final}
        assert search.chosen == last[frozenset(search.chosen.floats)]
        assert search.chosen.drop_points <= FREE.max_drop_points
        assert search.chosen.speedup >= max(last[ALL].speedup, last[frozenset()].speedup)


def test_what_loses_too_much_is_neither_timed_nor_chosen(model, task, rig, monkeypatch):
    """Each layer in int8 is made to cost two points; one may be."""
    monkeypatch.setattr(module._Search, "_drop", lambda self, made: 2.0 * len(layers_in_int8(made)))
    timed = rig(lambda int8: 1 + len(int8) + ("conv" in int8))
    made, search = quantize_mixed(model, QuantizeMixed(max_drop_points=3), task, seed=0)
    assert layers_in_int8(made) == {"conv"}
    # All int8 is timed in the last round alone, so that the record says what it would have given.
    assert [int8 for int8 in timed if len(int8) > 1] == [ALL]
    refused = [tried for tried in search.tried if tried.drop_points > 3]
    assert {tried.speedup for tried in refused} == {None, 5.0}


def test_what_may_be_lost_of_a_regression_is_per_cent_of_its_error(task, rig):
    """A float model without error: whatever int8 costs is too much, however fast it is."""
    model, x = regression(), task.validation.x
    exact = dataclasses.replace(task.validation, y=np.float32(outputs_of(model, x)))
    goal = Goal(task="regression", metric="mae")
    values = dataclasses.replace(task, validation=exact, goal=goal)
    rig(lambda int8: 1 + len(int8))
    made, search = quantize_mixed(model, QuantizeMixed(max_drop_points=50), values, seed=0)
    assert layers_in_int8(made) == set()
    assert search.chosen.drop_points == 0
    blurred = dataclasses.replace(exact, y=exact.y + np.float32([100, 1e5, 100]))
    values = dataclasses.replace(values, validation=blurred)
    made, search = quantize_mixed(model, QuantizeMixed(max_drop_points=5), values, seed=0)
    assert layers_in_int8(made) == ALL
    assert abs(search.chosen.drop_points) < 5


def test_float_is_what_remains_where_nothing_may_be_lost(model, task, rig, monkeypatch):
    monkeypatch.setattr(
        module._Search, "_drop", lambda self, made: 0.1 * bool(layers_in_int8(made))
    )
    rig(lambda int8: 1 + len(int8))
    made, search = quantize_mixed(model, QuantizeMixed(max_drop_points=0), task, seed=0)
    assert made.SerializeToString() == model.SerializeToString()
    assert search.chosen.speedup == 1


def test_no_choice_is_made_or_shortly_timed_twice_in_one_round(model, task, rig, monkeypatch):
    made = []
    real = quantize_static

    def spy(model, static, *rest, **named):
        made.append(static.exclude)
        return real(model, static, *rest, **named)

    monkeypatch.setattr(module, "quantize_static", spy)
    rig(lambda int8: 1 + len(int8))
    quantize_mixed(model, FREE, task, seed=0)
    # All int8 is made once more, to find the columns of thin layers in; the chosen, to be compared.
    first, *once, chosen, same = made
    assert (first, same) == ((), chosen)
    assert len(once) == len(set(once)) <= 2**3 - 1


@pytest.mark.parametrize(("stored", "dtype"), [("float16", np.float16), ("int8", np.int8)])
def test_float_layers_take_fewer_bits_and_the_scores_stay_close(model, task, rig, stored, dtype):
    rig(lambda int8: 2.0 if int8 == {"conv"} else 1.0)
    step = QuantizeMixed(max_drop_points=100, float_storage=stored)
    made, search = quantize_mixed(model, step, task, seed=0)
    assert layers_in_int8(made) == {"conv"}
    assert search.chosen.stored == stored
    kinds = {f.node.name: array_of(f.weight).dtype for f in weighted_nodes(made.graph)}
    assert kinds["stem"] == kinds["dense"] == dtype
    x = images(20, seed=5)
    np.testing.assert_allclose(
        open_model(made.SerializeToString()).run(x),
        open_model(model.SerializeToString()).run(x),
        atol=0.05,
    )


@pytest.mark.parametrize("lost", [9.0, np.nan])
def test_float_layers_keep_float32_where_fewer_bits_lose_too_much(
    model, task, rig, monkeypatch, lost
):
    def drop(self, made):
        kinds = [array_of(found.weight).dtype for found in weighted_nodes(made.graph)]
        return lost if np.float16 in kinds else 0.0

    monkeypatch.setattr(module._Search, "_drop", drop)
    rig(lambda int8: 2.0 if int8 == {"conv"} else 1.0)
    _, search = quantize_mixed(model, QuantizeMixed(float_storage="float16"), task, seed=0)
    assert search.chosen.stored == "float32"


def test_a_weight_too_large_for_float16_keeps_float32(task, rig):
    large = network()
    kernel = next(t for t in large.graph.initializer if t.name == "dense/kernel")
    kernel.CopyFrom(numpy_helper.from_array(array_of(kernel) + np.float32(1e5), kernel.name))
    rig(lambda int8: 2.0 if int8 == {"conv"} else 1.0)
    step = QuantizeMixed(max_drop_points=100, float_storage="float16")
    assert quantize_mixed(large, step, task, seed=0)[1].chosen.stored == "float32"


def test_the_input_is_left_alone_and_nothing_is_left_behind(task, rig, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    given = network()
    before = given.SerializeToString()
    rig(lambda int8: 1 + len(int8))
    quantize_mixed(given, FREE, task, seed=0)
    assert given.SerializeToString() == before
    assert not list(tmp_path.iterdir())


def test_every_layer_that_stayed_in_float_has_its_reason(model, task):
    made = quantize_static(model, as_static(FREE, {"stem"}), task)
    assert why_in_float(model, FREE, made) == {
        "stem": "float was the better choice where it was measured"
    }


def test_progress_comes_to_its_end_in_every_stage(model, task, rig):
    heard = {}
    rig(lambda int8: 1 + len(int8))
    quantize_mixed(model, FREE, task, seed=0, on_search=lambda what, *at: heard.update({what: at}))
    assert heard
    assert all(done == total for done, total in heard.values())


def test_a_real_clock_gives_intervals_around_what_it_saw(model, task, monkeypatch):
    quick = module.Bench(processes=5, sessions_per_process=1, rounds=1, block_ms=0.2, batch=1)
    monkeypatch.setattr(module, "_ROUGH", quick)
    monkeypatch.setattr(module, "_FINE", quick)
    monkeypatch.setattr("compress.quantize.layout._TIMED", quick)
    monkeypatch.setattr(module, "_CLIMBS", 0)
    monkeypatch.setattr(module._Search, "_starts", lambda self, layers: [self.all_int8])
    _, search = quantize_mixed(model, FREE, task, seed=0)
    timed = [tried for tried in search.tried if tried.speedup is not None]
    assert all(tried.low <= tried.speedup <= tried.high for tried in timed)
    assert {tried.floats for tried in timed if tried.final} == {(), tuple(sorted(NAMES))}


# What goes wrong.


def test_a_task_without_validation_samples_is_refused(model, task):
    import dataclasses

    none = dataclasses.replace(task, validation=Split(raw=[], x=images(0), y=np.zeros(0, np.int64)))
    with pytest.raises(UserError, match="needs validation samples to decide on"):
        quantize_mixed(model, FREE, none, seed=0)


def test_a_quantized_model_is_refused(model, task):
    quantized = quantize_static(model, as_static(FREE, ()), task)
    with pytest.raises(UserError, match="quantized already"):
        quantize_mixed(quantized, FREE, task, seed=0)


RECIPE = """
name = "tiny"
data = { source = "mnist-sample" }
network = { kind = "mlp" }
train = { epochs = 1 }
[[variant]]
name = "mixed"
from = "baseline"
step = { kind = "quantize_mixed", STEP }
"""


def test_a_recipe_asks_for_it():
    text = RECIPE.replace("STEP", 'max_drop_points = 0.5, float_storage = "int8"')
    (variant,) = parse_recipe(text).variants
    assert variant.step == QuantizeMixed(max_drop_points=0.5, float_storage="int8")


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ("max_drop_points = -1", "≥ 0, got -1"),
        ("percentile = 99.9", 'percentile needs calibration = "percentile"'),
        ('float_storage = "float8"', "no such value 'float8'; there are float32, float16, int8"),
        ("threads = 0", "≥ 1, got 0"),
    ],
)
def test_a_recipe_that_asks_for_nonsense_is_refused_in_one_line(step, reason):
    with pytest.raises(UserError, match=re.escape(reason)):
        parse_recipe(RECIPE.replace("STEP", step))


def test_the_search_is_drawn(model, task, rig, tmp_path):
    rig(lambda int8: 1 + len(int8))
    _, search = quantize_mixed(model, FREE, task, seed=0)
    plot_search(search, tmp_path / "search.svg")
    assert "speed-up over float" in (tmp_path / "search.svg").read_text("utf-8")
