import random
import struct

import numpy as np
import pytest

from deploy.errors import UserError
from deploy.tflite import (
    OPERATORS,
    computes_in_int8,
    is_tflite,
    layer_facts,
    macs_of,
    read_tflite,
)
from tests.deploy import tiny_tflite

WEIGHTS = np.array([[1.0, 0.0], [0.0, -1.0], [0.5, 0.25]])


def test_a_file_is_known_by_its_bytes_not_by_its_name():
    assert is_tflite(tiny_tflite.linear(WEIGHTS))
    assert not is_tflite(b"\x08\x08\x12\x00TFL2")
    assert not is_tflite(b"TFL")


def test_the_graph_is_read_as_it_was_written():
    model = read_tflite(tiny_tflite.linear(WEIGHTS, metadata={"a": "b"}))
    (op,) = model.operators
    assert (op.kind, op.version, op.inputs, op.outputs) == ("FULLY_CONNECTED", 1, (0, 1, 2), (3,))
    given, weight = model.tensors[0], model.tensors[1]
    assert (given.name, given.shape, given.free, given.dtype) == ("x", (1, 3), (0,), "float32")
    np.testing.assert_array_equal(weight.stored(), WEIGHTS.T)
    assert model.metadata == {"lightship": b'{"a": "b"}'}


def test_the_facts_of_a_layer_are_those_of_its_bytes():
    model = read_tflite(tiny_tflite.linear(WEIGHTS))
    (facts,) = layer_facts(model, {"dense": "a reason", "other": "no layer"})
    assert (facts.name, facts.kind, facts.note) == ("dense", "FULLY_CONNECTED", "a reason")
    assert (facts.parameters, facts.zeros, facts.bits) == (6, 2, 32)
    assert macs_of(model, *model.weighted()[0]) == 6


def test_a_zero_in_int8_is_a_stored_value_that_equals_the_zero_point():
    model = read_tflite(tiny_tflite.linear(WEIGHTS, int8=True))
    (facts,) = layer_facts(model, {})
    assert (facts.zeros, facts.bits) == (2, 8)
    assert model.quantized
    assert computes_in_int8(model, *model.weighted()[0])


def test_a_float_file_is_not_called_quantized():
    model = read_tflite(tiny_tflite.linear(WEIGHTS))
    assert not model.quantized
    assert not computes_in_int8(model, *model.weighted()[0])


def test_what_is_no_tflite_file_is_refused_in_a_sentence():
    for content in (b"", b"garbage", b"\0" * 64):
        with pytest.raises(UserError, match=r"is no \.tflite file"):
            read_tflite(content)


def test_a_list_that_is_longer_than_the_file_is_refused_before_it_is_read():
    content = bytearray(tiny_tflite.linear(WEIGHTS))
    place = content.index(
        struct.pack("<I", 3) + struct.pack("<3i", 0, 1, 2)
    )  # an operator's inputs
    content[place : place + 4] = b"\xff\xff\xff\x7f"
    with pytest.raises(UserError, match="does not fit the file"):
        read_tflite(bytes(content))


def test_damage_is_refused_or_read_but_nothing_else_is_raised():
    whole, rng = tiny_tflite.linear(WEIGHTS, int8=True), random.Random(0)  # noqa: S311
    refused = 0
    for _ in range(3000):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(8, len(content))] = rng.randrange(256)
        try:
            read_tflite(bytes(content[: rng.choice([len(whole), rng.randrange(len(whole))])]))
        except UserError:
            refused += 1
    assert refused > 1000


def test_operators_bear_the_names_that_tensorflow_gives_them():
    schema = pytest.importorskip("tensorflow.lite.python.schema_py_generated")
    theirs = {n: name for name, n in vars(schema.BuiltinOperator).items() if isinstance(n, int)}
    assert all(theirs[number] == name for number, name in OPERATORS.items())
