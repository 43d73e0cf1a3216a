"""The keys under which results are kept: what they hang on, and what not."""

import dataclasses
import importlib
import shutil
import sys

import msgspec
import pytest

from compress import plan
from compress.data.splits import load_task
from compress.networks import PythonFunction
from compress.recipe import parse_recipe
from deploy.errors import UserError

RECIPE = """
name = "small"
[data]
source = "digits"
[network]
kind = "mlp"
[train]
epochs = 1
[[variant]]
name = "pruned"
from = "baseline"
[variant.step]
kind = "magnitude_prune"
final_sparsity = 0.5
fine_tune = { epochs = 1 }
[[variant]]
name = "int8"
from = "pruned"
step = { kind = "quantize_static" }
"""
MIXED = """
[[variant]]
name = "mixed"
from = "pruned"
step = { kind = "quantize_mixed", max_drop_points = 100 }
"""


@pytest.fixture(scope="module")
def recipe():
    return parse_recipe(RECIPE)


def test_another_seed_shares_nothing(recipe):
    task = load_task(recipe.data, seed=0)
    keys = {stage.model_key for stage in plan.plan(recipe, task).values()}
    reseeded = msgspec.structs.replace(recipe, seed=1)
    other = {stage.model_key for stage in plan.plan(reseeded, task).values()}
    assert not keys & other


def test_other_names_and_licences_of_equal_samples_share_nothing(recipe):
    task = load_task(recipe.data, seed=0)
    keys = {stage.model_key for stage in plan.plan(recipe, task).values()}
    renamed = dataclasses.replace(task, name="other", licence="other")
    assert not keys & {stage.model_key for stage in plan.plan(recipe, renamed).values()}


def test_another_machine_searches_again(monkeypatch):
    searched = parse_recipe(RECIPE + MIXED)
    task = load_task(searched.data, seed=0)
    here = plan.plan(searched, task)
    other = msgspec.structs.replace(plan.this_environment(), cpu="another")
    monkeypatch.setattr(plan, "this_environment", lambda: other)
    there = plan.plan(searched, task)
    assert {name for name in here if here[name] != there[name]} == {"mixed"}


def test_changed_code_of_lightship_shares_nothing(recipe, monkeypatch):
    task = load_task(recipe.data, seed=0)
    keys = {stage.model_key for stage in plan.plan(recipe, task).values()}
    monkeypatch.setattr(plan, "code_digest", lambda *rooms: "changed")
    assert not keys & {stage.model_key for stage in plan.plan(recipe, task).values()}


def test_changed_code_that_prunes_trains_no_baseline_again(recipe, monkeypatch):
    task = load_task(recipe.data, seed=0)
    before = plan.plan(recipe, task)
    real = plan.code_digest
    monkeypatch.setattr(
        plan, "code_digest", lambda *of: real(*of) + "changed" * ("compress/prune" in of)
    )
    after = plan.plan(recipe, task)
    assert before["baseline"] == after["baseline"]
    assert before["pruned"].keras_key != after["pruned"].keras_key


@pytest.mark.parametrize(
    "file", ["evaluate.py", "goals.py", "intervals.py", "metrics.py", "session.py"]
)
def test_what_decides_between_quantized_models_is_part_of_their_key(recipe, monkeypatch, file):
    task = load_task(recipe.data, seed=0)
    before = plan.plan(recipe, task)
    real = plan.code_digest
    monkeypatch.setattr(
        plan, "code_digest", lambda *of: real(*of) + "changed" * (f"deploy/{file}" in of)
    )
    after = plan.plan(recipe, task)
    assert {name for name in before if before[name] != after[name]} == {"int8"}


def test_a_function_that_builds_another_network_by_changed_imports_shares_nothing(
    recipe, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_nets.py").write_text(
        "import tf_keras\nfrom my_size import WIDTH\n"
        "def make(shape, classes):\n"
        "    layers = tf_keras.layers\n"
        "    return tf_keras.Sequential([layers.Input(shape), layers.Flatten(),"
        " layers.Dense(WIDTH), layers.Dense(classes, 'softmax')])\n"
    )
    own = msgspec.structs.replace(recipe, network=PythonFunction(function="my_nets:make"))
    task = load_task(recipe.data, seed=0)
    keys = []
    for width in (4, 4, 8):
        (tmp_path / "my_size.py").write_text(f"WIDTH = {width}\n")
        for name in ("my_nets", "my_size"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        keys.append(plan.plan(own, task)["baseline"].keras_key)
    assert keys[0] == keys[1] != keys[2]


BLOCKS = """
name = "shallow"
[data]
source = "digits"
[network]
kind = "resnet_8"
[train]
epochs = 1
[[variant]]
name = "shallow"
from = "baseline"
[variant.step]
kind = "prune_blocks"
blocks = ["add1"]
fine_tune = {{ epochs = 1 }}
{distill}
[[variant]]
name = "next"
from = "shallow"
[variant.step]
{step}
fine_tune = {{ epochs = 1 }}
"""


@pytest.mark.parametrize(
    ("step", "distill", "complaint"),
    [
        (
            'kind = "prune_blocks"\nblocks = ["add1"]',
            "",
            "variant 'next': blocks: no residual block that can go is named 'add1'; there are none",
        ),
        (
            'kind = "prune_channels"\nlayer_widths = { conv2 = 8 }',
            "",
            "variant 'next': layer_widths: no layer with channels is named 'conv2'",
        ),
        (
            'kind = "magnitude_prune"\nfinal_sparsity = 0.5\ndistill = { hints = { conv2 = "conv2" } }',
            "",
            "variant 'next': hints: the network that learns has no layer 'conv2'",
        ),
        (
            'kind = "magnitude_prune"\nfinal_sparsity = 0.5',
            'distill = { hints = { conv2 = "conv2" } }',
            "variant 'shallow': hints: the network that learns has no layer 'conv2'",
        ),
    ],
)
def test_what_a_block_took_along_cannot_be_named_after_it(step, distill, complaint):
    recipe = parse_recipe(BLOCKS.format(step=step, distill=distill))
    task = load_task(recipe.data, seed=0)
    with pytest.raises(UserError) as refusal:
        plan.check_names(recipe, task, plan.plan(recipe, task))
    assert complaint in str(refusal.value)


LAYOUT = """
name = "wide"
[data]
source = "digits"
[network]
kind = "resnet_8"
[train]
epochs = 1
[[variant]]
name = "given"
from = "baseline"
step = {{ {given} }}
[[variant]]
name = "int8"
from = "given"
step = {{ {int8} }}
[[variant]]
name = "wide"
from = "int8"
step = {{ kind = "int8_layout", columns = {{ conv1 = {columns} }} }}
"""
PRUNED = 'kind = "magnitude_prune", final_sparsity = 0.5, fine_tune = { epochs = 1 }'
SHALLOW = 'kind = "prune_blocks", blocks = ["add1"], fine_tune = { epochs = 1 }'
NARROW = 'kind = "prune_channels", target = { kind = "macs", keep_ratio = 0.5 }, fine_tune = { epochs = 1 }'
STATIC = 'kind = "quantize_static"'
AWARE = 'kind = "quantize_aware", fine_tune = { epochs = 1 }'


def check_layout(**how):
    recipe = parse_recipe(LAYOUT.format(**how))
    task = load_task(recipe.data, seed=0)
    plan.check_names(recipe, task, plan.plan(recipe, task))


@pytest.mark.parametrize(
    ("given", "int8"),
    [
        (PRUNED, STATIC),
        (SHALLOW, AWARE),
        ('kind = "fold_batch_norm"', f'{STATIC}, correct = ["equalise"]'),
    ],
)
def test_columns_that_do_not_fit_are_refused_before_training(given, int8):
    check_layout(given=given, int8=int8, columns=8)
    with pytest.raises(UserError) as refusal:
        check_layout(given=given, int8=int8, columns=3)
    assert str(refusal.value) == (
        "variant 'wide': columns: 'conv1' cannot compute 3 columns at once; there are conv1 [2, 4, 8]"
    )


def test_columns_of_a_layer_that_stays_in_float_are_refused_before_training():
    with pytest.raises(
        UserError, match="'conv1' cannot compute 4 columns at once; there are conv2"
    ):
        check_layout(given=PRUNED, int8=f'{STATIC}, exclude = ["conv1"]', columns=4)


def test_what_keeps_the_int8_model_from_being_made_is_said_of_it():
    with pytest.raises(UserError, match=r"^variant 'int8': exclude_types: the model has no 'Cnv'"):
        check_layout(given=PRUNED, int8=f'{STATIC}, exclude_types = ["Cnv"]', columns=4)


def test_columns_of_shapes_that_training_decides_wait_for_it():
    check_layout(given=NARROW, int8=STATIC, columns=3)


def test_what_comes_from_a_distilled_network_names_the_layers_of_that_network():
    small = 'kind = "distill", network = { kind = "mlp", hidden = [8, 8] }, train = { epochs = 1 }'
    text = LAYOUT.partition('[[variant]]\nname = "wide"')[0]

    def check(layer):
        recipe = parse_recipe(text.format(given=small, int8=f'{STATIC}, exclude = ["{layer}"]'))
        task = load_task(recipe.data, seed=0)
        plan.check_names(recipe, task, plan.plan(recipe, task))

    check("dense3")
    with pytest.raises(
        UserError, match=r"'int8': exclude: no layer is named 'conv1'; there are .*dense3"
    ):
        check("conv1")


def test_a_hint_of_the_teacher_may_name_what_a_block_took_along():
    step = (
        'kind = "magnitude_prune"\nfinal_sparsity = 0.5\ndistill = { hints = { conv1 = "conv3" } }'
    )
    recipe = parse_recipe(BLOCKS.format(step=step, distill=""))
    task = load_task(recipe.data, seed=0)
    plan.check_names(recipe, task, plan.plan(recipe, task))
