import dataclasses
import re

import numpy as np
import pytest

from compress.quantize import layout as module
from compress.quantize.layout import Int8Layout, columns_by_timing, int8_layout
from compress.quantize.static import QuantizeStatic
from compress.recipe import parse_recipe
from compress.steps import check_layer_names
from deploy.bench import Bench
from deploy.errors import ParityError, UserError
from deploy.graph import weighted_nodes
from deploy.kernels import int8_layers
from deploy.record import Interval
from tests.compress.quantize.applying import apply, run
from tests.compress.quantize.networks import images, network, task_with


@pytest.fixture(scope="module")
def int8():
    return apply(network(), QuantizeStatic())


@pytest.fixture(scope="module")
def task():
    task = task_with(images())
    return dataclasses.replace(task, validation=task.train)


def columns_of(model):
    """Return how many columns stem and conv compute at once: they have eight outputs each."""
    return {f.node.name: f.weight.dims[0] // 8 for f in weighted_nodes(model.graph)[:2]}


@pytest.mark.parametrize("best", [{}, {"stem": 4}, {"conv": 2}, {"stem": 2, "conv": 4}])
def test_each_layer_gets_the_columns_that_are_timed_fastest(int8, best):
    def timed(models):
        wanted = {"stem": 1, "conv": 1, **best}
        return [
            1 + 0.1 * sum(columns_of(m)[name] == n for name, n in wanted.items()) for m in models
        ]

    assert columns_by_timing(int8, timed) == best


def test_what_gains_no_more_than_noise_is_left_as_it_is(int8):
    assert columns_by_timing(int8, lambda models: [1 + 0.001 * i for i in range(len(models))]) == {}


def test_a_real_clock_decides_and_no_answer_changes(int8, task, monkeypatch):
    quick = Bench(processes=5, sessions_per_process=1, rounds=1, block_ms=0.2, batch=1)
    monkeypatch.setattr(module, "_TIMED", quick)
    heard = []
    made, done = int8_layout(
        int8, Int8Layout(), task, seed=0, on_timing=lambda what, *at: heard.append(at)
    )
    assert isinstance(done.columns, dict)
    assert heard[-1] == (5, 5)
    assert int8_layers(made) == int8_layers(int8)
    np.testing.assert_array_equal(run(made, images(9, seed=7)), run(int8, images(9, seed=7)))


def test_columns_that_are_given_are_not_timed(int8, task, monkeypatch):
    monkeypatch.delattr(module, "race")
    made, done = int8_layout(int8, Int8Layout(columns={"stem": 4}), task, seed=0)
    assert columns_of(made) == {"stem": 4, "conv": 1}
    assert done.columns == {"stem": 4}


def test_the_threads_that_are_asked_for_are_timed_with(int8, monkeypatch):
    asked = []

    def race(paths, settings, **_):
        asked.append(settings.threads)
        return [Interval(value=1.0, low=1.0, high=1.0) for _ in paths]

    monkeypatch.setattr(module, "race", race)
    assert module.timing(int8, 2, seed=0)([int8, int8]) == [1.0, 1.0]
    assert asked == [2]


def test_what_is_laid_out_may_be_laid_out_again(int8, task, monkeypatch):
    monkeypatch.setattr(module, "timing", lambda *_, **__: lambda models: [1.0 for _ in models])
    once, _ = int8_layout(int8, Int8Layout(columns={"stem": 4, "conv": 2}), task, seed=0)
    twice, done = int8_layout(once, Int8Layout(), task, seed=0)
    assert done.columns == {}
    assert twice.SerializeToString() == once.SerializeToString()


def test_infinite_logarithms_are_the_same_answers_where_they_are_the_same(int8):
    """A probability that underflows has the logarithm −∞."""

    class Outputs:
        def __init__(self, *values):
            self.values = iter([np.float64(value) for value in values])

        def __call__(self, *_, **__):
            return next(self.values)

    def compared(before, after):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "outputs_of", Outputs(before, after))
            module.require_same_answers(int8, int8, images(1), logarithms=True)

    compared([[-np.inf, 0.0]], [[-np.inf, 0.0]])
    with pytest.raises(ParityError):
        compared([[-np.inf, 0.0]], [[-9.0, 0.0]])


# What goes wrong.


def test_a_model_for_another_machine_is_not_timed_here(task):
    arm = apply(network(), QuantizeStatic(target="arm64"))
    with pytest.raises(
        UserError, match=r"the model is for arm64 and this is .*; say how many columns"
    ):
        int8_layout(arm, Int8Layout(), task, seed=0)
    made, _ = int8_layout(arm, Int8Layout(columns={"stem": 2}), task, seed=0)
    assert columns_of(made) == {"stem": 2, "conv": 1}


def test_a_layer_that_would_leave_int8_is_refused(int8, monkeypatch):
    floats = apply(network(), QuantizeStatic(exclude=("conv",)))
    monkeypatch.setattr(module, "spare_transposes", lambda _: floats)
    with pytest.raises(ParityError, match="laid out, conv would not run with the numbers"):
        module.laid_out(int8, {})


@pytest.mark.parametrize("part", ["validation", "calibration"])
def test_answers_are_compared_on_what_samples_there_are(int8, task, monkeypatch, part):
    none = task_with(images()).validation
    empty = {"validation", "calibration"} - {part}
    few = dataclasses.replace(task, **dict.fromkeys(empty, none))
    seen = []
    monkeypatch.setattr(module, "require_same_answers", lambda *given, **_: seen.append(given[2]))
    int8_layout(int8, Int8Layout(columns={}), few, seed=0)
    assert len(seen[0]) == len(images())


def test_a_float_model_is_refused(task):
    with pytest.raises(UserError, match=r"has no int8 layers .* quantize it first"):
        int8_layout(network(), Int8Layout(), task, seed=0)


def test_columns_that_do_not_fit_are_refused(int8, task):
    with pytest.raises(UserError, match="'stem' cannot compute 3 columns at once; there are"):
        int8_layout(int8, Int8Layout(columns={"stem": 3}), task, seed=0)


def test_answers_that_changed_are_refused(int8, task, monkeypatch):
    other = apply(network(seed=1), QuantizeStatic())
    monkeypatch.setattr(module, "laid_out", lambda *_: other)
    with pytest.raises(ParityError, match="a layout moved outputs by"):
        int8_layout(int8, Int8Layout(columns={}), task, seed=0)


RECIPE = """
name = "tiny"
data = { source = "mnist-sample" }
network = { kind = "mlp" }
train = { epochs = 1 }
[[variant]]
name = "int8"
from = "baseline"
step = { kind = "quantize_static" }
[[variant]]
name = "faster"
from = "int8"
step = { kind = "int8_layout"STEP }
"""


@pytest.mark.parametrize(
    ("step", "columns"), [("", "auto"), (", columns = { conv1 = 4 }", {"conv1": 4})]
)
def test_a_recipe_asks_for_it(step, columns):
    assert parse_recipe(RECIPE.replace("STEP", step)).variants[-1].step.columns == columns


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (", columns = { conv1 = 1 }", "step.columns.conv1: must be a whole number, ≥ 2, got 1"),
        (
            ", columns = { conv1 = 'four' }",
            "step.columns.conv1: must be a whole number, ≥ 2, got 'f",
        ),
        (
            ", columns = ['conv1']",
            "step.columns: must be 'auto' or a table of whole numbers, ≥ 2, ",
        ),
        (
            ", columns = 'some'",
            "step.columns: must be 'auto' or a table of whole numbers, ≥ 2, got",
        ),
        (", threads = 0", "step.threads: must be a whole number, ≥ 1, got 0"),
    ],
)
def test_a_recipe_that_asks_for_nonsense_is_refused_in_one_line(step, reason):
    with pytest.raises(UserError, match=re.escape(reason)):
        parse_recipe(RECIPE.replace("STEP", step))


@pytest.mark.parametrize("kind", ["quantize_dynamic", "float16"])
def test_a_recipe_takes_it_from_int8_layers_alone(kind):
    """Before anything is trained."""
    text = RECIPE.replace("STEP", "")
    with pytest.raises(UserError, match="needs int8 layers, which 'baseline' has not; take it"):
        parse_recipe(text.replace('from = "int8"', 'from = "baseline"'))
    with pytest.raises(UserError, match="needs int8 layers, which 'int8' has not; take it"):
        parse_recipe(text.replace("quantize_static", kind))


def test_a_recipe_lays_out_once():
    again = (
        RECIPE.replace("STEP", "")
        + """
    [[variant]]
    name = "again"
    from = "faster"
    step = { kind = "int8_layout" }
    """
    )
    with pytest.raises(UserError, match="step 'int8_layout': 'faster' is laid out already"):
        parse_recipe(again)


def test_columns_of_a_layer_that_the_network_lacks_are_refused_before_training():
    import tf_keras

    model = tf_keras.Sequential(
        [tf_keras.Input((8, 8, 1)), tf_keras.layers.Conv2D(2, 3, name="conv1")]
    )
    check_layer_names(model, Int8Layout(columns={"conv1": 2}))
    with pytest.raises(
        UserError, match=r"columns: no convolution is named 'conv2'; there are conv1"
    ):
        check_layer_names(model, Int8Layout(columns={"conv2": 2}))
