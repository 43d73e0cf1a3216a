"""Networks that the user's own function builds."""

import sys
import textwrap

import pytest

from compress.networks import PythonFunction, build
from deploy.errors import UserError

SOURCE = """
import tf_keras
from tf_keras import layers

def make(input_shape, classes):
    return tf_keras.Sequential([
        layers.Input(input_shape), layers.Flatten(), layers.Dense(classes, activation="softmax")
    ])

def makes_text(input_shape, classes):
    return "a model"

def fails(input_shape, classes):
    raise ZeroDivisionError("mine")

def takes_one(input_shape):
    raise AssertionError

def takes_three(input_shape, classes, width):
    raise AssertionError

def takes_names(*, input_shape, classes):
    raise AssertionError

def chats(input_shape, classes):
    print("building")
    return make(input_shape, classes)

print("importing")
number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("my_nets", "my_broken_nets"):
        sys.modules.pop(name, None)


def build_from(function, *, classes=3):
    return build(PythonFunction(function=function), input_shape=(4, 2), classes=classes, seed=0)


def test_a_function_in_the_working_folder_is_called_with_shape_and_classes(folder):
    (folder / "my_nets.py").write_text(SOURCE)
    before = list(sys.path)
    model = build_from("my_nets:make", classes=5)
    assert (model.input_shape, model.output_shape) == ((None, 4, 2), (None, 5))
    assert sys.path == before


def test_a_functions_network_starts_from_the_seed(folder):
    (folder / "my_nets.py").write_text(SOURCE)
    one, two = (build_from("my_nets:make").get_weights()[0] for _ in range(2))
    assert (one == two).all()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("no_such_nets:make", "no module named 'no_such_nets' in "),
        ("my_nets.inner:make", "no module named 'my_nets.inner' in "),
        ("my_nets:makes", "'my_nets' has no function 'makes'"),
        ("my_nets:number", "'my_nets' has no function 'number'"),
        ("my_nets:takes_one", r"must take \(input_shape, classes\); it takes \(input_shape\): too"),
        ("my_nets:takes_three", r"must take \(input_shape, classes\); .*argument: 'width'"),
        ("my_nets:takes_names", r"must take \(input_shape, classes\); it takes \(\*, input_shape"),
        ("my_nets:makes_text", "needs a tf_keras.Model, got builtins.str"),
    ],
)
def test_what_is_not_there_is_named(folder, function, message):
    (folder / "my_nets.py").write_text(SOURCE)
    with pytest.raises(UserError, match=rf"^{function}: {message}") as caught:
        build_from(function)
    assert "\n" not in str(caught.value)


def test_what_the_users_code_prints_stays_out_of_the_results(folder, capsys):
    (folder / "my_nets.py").write_text(SOURCE)
    build_from("my_nets:chats")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "importing\nbuilding\n")


def test_a_function_in_c_without_a_signature_is_called_all_the_same(folder):
    with pytest.raises(TypeError):
        build_from("builtins:getattr")


def test_a_module_that_misses_an_import_is_not_called_missing_itself(folder):
    (folder / "my_broken_nets.py").write_text("import no_such_dependency\n")
    with pytest.raises(UserError, match="the module imports 'no_such_dependency'"):
        build_from("my_broken_nets:make")


def test_an_exception_of_the_users_code_keeps_its_traceback(folder):
    (folder / "my_nets.py").write_text(textwrap.dedent(SOURCE))
    with pytest.raises(ZeroDivisionError, match="mine"):
        build_from("my_nets:fails")
