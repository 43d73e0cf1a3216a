import re
from pathlib import Path

import pytest

from compress.networks import LeNet5
from compress.recipe import load_recipe, parse_recipe, to_toml
from compress.shipped import shipped_recipes
from deploy.errors import UserError

HEAD = """
name = "try"
[data]
source = "mnist-sample"
[network]
kind = "lenet_5"
[train]
epochs = 1
"""

PRUNED = """
[[variant]]
name = "pruned"
from = "baseline"
[variant.step]
kind = "magnitude_prune"
final_sparsity = 0.9
fine_tune = { epochs = 1 }
"""


def variant(name: str, parent: str, step: str = '{ kind = "quantize_static" }') -> str:
    return f'[[variant]]\nname = "{name}"\nfrom = "{parent}"\nstep = {step}\n'


def test_a_recipe_decodes_into_typed_values():
    recipe = parse_recipe(HEAD + PRUNED)
    assert recipe.network == LeNet5()
    assert recipe.variants[0].step.final_sparsity == 0.9


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_is_named_as_its_file_and_survives_a_round_trip(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert parse_recipe(to_toml(recipe)) == recipe


def test_the_promised_recipes_ship():
    promised = {"demo", "mnist_mlp", "lenet_300_100", "lenet_5", "fashion_resnet_8"}
    assert promised <= set(shipped_recipes())


def test_variants_may_be_written_before_their_parents():
    recipe = parse_recipe(HEAD + variant("pruned-int8", "pruned") + PRUNED)
    assert [v.name for v in recipe.variants] == ["pruned", "pruned-int8"]


def for_targets(targets: str, step: str = '{ kind = "quantize_static" }') -> str:
    return HEAD + variant("int8", "baseline", step) + f"targets = {targets}\n"


def test_a_variant_for_several_targets_becomes_one_for_each():
    recipe = parse_recipe(for_targets('["x86-vnni", "x86-avx2", "arm64"]'))
    assert {v.name: v.step.target for v in recipe.variants} == {
        "int8-x86-vnni": "x86-vnni", "int8-x86-avx2": "x86-avx2", "int8-arm64": "arm64",
    }  # fmt: skip
    assert parse_recipe(to_toml(recipe)) == recipe


MISTAKES = {
    "targets of a step that has none": (
        for_targets('["arm64"]', '{ kind = "float16" }'),
        "variant 'int8': targets: step 'float16' is the same for every machine",
    ),
    "targets beside a target": (
        for_targets('["arm64"]', '{ kind = "quantize_static", target = "x86-avx2" }'),
        "variant 'int8': targets: the step names target 'x86-avx2' itself; leave one out",
    ),
    "a target twice": (for_targets('["arm64", "arm64"]'), "'int8-arm64': this name is taken"),
    "no such target": (for_targets('["arm46"]'), "arm46.*did you mean arm64"),
    "not TOML": ("name = ", "not valid TOML"),
    "unknown key": (HEAD + "[tran]\nepochs = 1\n", r"unknown key 'tran'.*did you mean train\?"),
    "unknown key in a table": (
        HEAD.replace("epochs", "epoch"),
        r"train: unknown key 'epoch'.*did you mean epochs\?",
    ),
    "unknown key in a step": (
        HEAD + PRUNED.replace("final_sparsity", "final_sparsty"),
        r"variant 'pruned': step: unknown key 'final_sparsty'.*did you mean final_sparsity\?",
    ),
    "wrong type": (
        HEAD.replace("epochs = 1", 'epochs = "1"'),
        "train.epochs: must be a whole number, ≥ 1, got '1'",
    ),
    "sparsity of 1.5": (
        HEAD + PRUNED.replace("0.9", "1.5"),
        r"variant 'pruned': step.final_sparsity: must be a number, ≥ 0, < 1, got 1.5",
    ),
    "unknown network": (
        HEAD.replace("lenet_5", "lenet_6"),
        r"network.kind: no such kind 'lenet_6'; there are .*did you mean lenet_5\?",
    ),
    "unknown step": (
        HEAD + variant("a", "baseline", '{ kind = "quantise_static" }'),
        r"variant 'a': step.kind: no such kind 'quantise_static'.*did you mean quantize_static\?",
    ),
    "missing key": (
        HEAD.replace("epochs = 1", ""),
        "train: key 'epochs' is missing; it must be a whole number",
    ),
    "unknown parent": (
        HEAD + variant("a", "basline"),
        r"variant 'a': from = 'basline' does not exist; .*did you mean baseline\?",
    ),
    "cycle": (
        HEAD + variant("a", "b") + variant("b", "a"),
        "variants form a cycle: a → b → a",
    ),
    "its own parent": (HEAD + variant("a", "a"), "variants form a cycle: a → a"),
    "name taken": (HEAD + PRUNED + PRUNED, "variant 'pruned': this name is taken"),
    "the baseline's name": (HEAD + variant("baseline", "baseline"), "this name is taken"),
    "a name that is a path": (HEAD + variant("../a", "baseline"), r"name: .*got '../a'"),
    "a Keras step after an ONNX step": (
        HEAD + variant("int8", "baseline") + PRUNED.replace('"baseline"', '"int8"'),
        "step 'magnitude_prune' needs a Keras model, which 'int8' has no more after 'quantize_static'",
    ),
    "pruned after training for int8": (
        HEAD
        + variant("aware", "baseline", '{ kind = "quantize_aware", fine_tune = { epochs = 1 } }')
        + PRUNED.replace('"baseline"', '"aware"'),
        "step 'magnitude_prune' needs a Keras model, which 'aware' has no more",
    ),
    "quantized twice": (
        HEAD + variant("int8", "baseline") + variant("again", "int8", '{ kind = "float16" }'),
        "variant 'again': step 'float16' needs float32 weights, which 'int8' has no more",
    ),
    "LiteRT from a quantized model": (
        HEAD + variant("int8", "baseline") + variant("lite", "int8", '{ kind = "litert" }'),
        "variant 'lite': step 'litert' needs a Keras model, which 'int8' has no more",
    ),
    "LiteRT from what was trained for int8 in ONNX Runtime": (
        HEAD
        + variant("aware", "baseline", '{ kind = "quantize_aware", fine_tune = { epochs = 1 } }')
        + variant("lite", "aware", '{ kind = "litert" }'),
        "variant 'lite': step 'litert' needs a Keras model, which 'aware' has no more",
    ),
    "quantized after LiteRT": (
        HEAD + variant("lite", "baseline", '{ kind = "litert" }') + variant("int8", "lite"),
        "variant 'int8': step 'quantize_static' needs an ONNX model, which 'lite' has no more",
    ),
    "LiteRT in no such form": (
        HEAD + variant("lite", "baseline", '{ kind = "litert", form = "int4" }'),
        r"variant 'lite': step.form: no such value 'int4'; there are float, dynamic, int8",
    ),
    "nothing to train": (HEAD.split("[train]", maxsplit=1)[0], "train: .* has to be trained"),
    "variant is not a list": (HEAD + "[variant]\nname = 'a'\n", r"write \[\[variant\]\]"),
    "a variant without a name": (HEAD + "[[variant]]\n", "variant number 1: key 'name' is missing"),
    "a value that is none of a few": (
        HEAD.replace("[network]", "task = 'classify'\n[network]"),
        r"data.task: no such value 'classify'; .*did you mean classification\?",
    ),
    "a value that is none of a few, in a step": (
        HEAD + variant("a", "baseline", '{ kind = "quantize_static", calibration = "max" }'),
        r"variant 'a': step.calibration: no such value 'max'; there are minmax, moving_average, entropy",
    ),
    "a value that is none of a few, or nothing": (
        HEAD + variant("a", "baseline", '{ kind = "quantize_static", target = "arm" }'),
        r"step.target: no such value 'arm'; there are x86-vnni, x86-avx2, arm64 \(did you mean arm64",
    ),
    "a value that is none of a few, in a list": (
        HEAD.replace(
            "[network]",
            "preprocess = [{ op = 'scale' }, { op = 'cast', dtype = 'int' }]\n[network]",
        ),
        r"data.preprocess\[1\].dtype: no such value 'int'; there are float32, int32, int64, uint8",
    ),
    "an unknown operation": (
        HEAD.replace("[network]", "preprocess = [{ op = 'standardise' }]\n[network]"),
        r"data.preprocess\[0\].op: no such op 'standardise'; .*did you mean standardize\?",
    ),
    "an unknown key of an operation": (
        HEAD.replace("[network]", "preprocess = [{ op = 'scale', faktor = 2 }]\n[network]"),
        r"data.preprocess\[0\]: unknown key 'faktor'; there are .*did you mean factor\?",
    ),
    "an unknown augmentation": (
        HEAD.replace("[network]", "augment = [{ kind = 'rotate' }]\n[network]"),
        r"data.augment\[0\].kind: no such kind 'rotate'; .*did you mean rotation\?",
    ),
    "a rule of cleaning that contradicts itself": (
        HEAD.replace("[network]", "clean = { missing = 'constant' }\n[network]"),
        "data.clean: missing_value goes with",
    ),
    "unknown source": (HEAD.replace("mnist-sample", "minst"), r"source 'minst' is unknown"),
}


@pytest.mark.parametrize(("text", "line"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_is_one_line_that_names_the_place(text, line):
    with pytest.raises(UserError, match=line) as caught:
        parse_recipe(text, where="try.toml")
    assert str(caught.value).startswith("try.toml: ")
    assert "\n" not in str(caught.value)


def test_a_recipe_that_does_not_exist_names_those_that_ship():
    with pytest.raises(UserError, match=r"lenet5: cannot read .*did you mean lenet_5\?"):
        load_recipe("lenet5")


def test_data_are_looked_for_beside_the_recipe_first_then_in_the_working_folder(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "r.toml").write_text(HEAD.replace("mnist-sample", "npz:a.npz"))
    (tmp_path / "a.npz").touch()
    assert load_recipe("mine/r.toml").data.source == "npz:a.npz"
    (folder / "a.npz").touch()
    assert load_recipe("mine/r.toml").data.source == "npz:mine/a.npz"
    assert load_recipe(str(folder / "r.toml")).data.source == f"npz:{folder}/a.npz"
    absolute = HEAD.replace("mnist-sample", f"npz:{tmp_path}/b.npz")
    (folder / "r.toml").write_text(absolute)
    assert load_recipe("mine/r.toml").data.source == f"npz:{tmp_path}/b.npz"


def test_a_recipe_that_is_not_text_is_one_line(tmp_path):
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        load_recipe(str(tmp_path / "a.toml"))


def test_the_examples_of_the_page_on_data_are_recipes():
    page = Path(__file__).parents[2] / "docs" / "data.md"
    examples = re.findall(r"```toml\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        parse_recipe(HEAD.replace('[data]\nsource = "mnist-sample"\n', example))
