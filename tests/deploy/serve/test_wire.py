import json
import math
import struct

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.serve.refused import RefusedError
from deploy.serve.wire import DATATYPES, Asked, Reader, TensorSpec, Wanted, answer
from tests.deploy.serve.client import binary, question

SPEC = TensorSpec("x", "UINT8", (2, 3))
READER = Reader(SPEC, np.dtype("uint8"), ("label", "scores"))
X = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)


def read(body, json_bytes=None, reader=READER):
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    return reader.read(body, json_bytes)


def refused(body, json_bytes=None, reader=READER):
    with pytest.raises(RefusedError) as caught:
        read(body, json_bytes, reader)
    assert caught.value.status == 400
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@given(st.data())
def test_every_type_means_the_same_nested_flat_and_binary(data):
    dtype = np.dtype(data.draw(st.sampled_from(sorted(DATATYPES))))
    finite = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    x = data.draw(hnp.arrays(dtype, (2, 2, 3), elements=hnp.from_dtype(dtype, **finite)))
    reader = Reader(TensorSpec("x", DATATYPES[dtype.name], (2, 3)), dtype, ("label",))
    about = {"datatype": DATATYPES[dtype.name]}
    body, headers = binary(x, **about)
    for asked in (
        read(question(x, **about), reader=reader),
        read(question(x, **about) | question(x, **about, data=x.ravel().tolist()), reader=reader),
        read(body, int(headers["Inference-Header-Content-Length"]), reader=reader),
    ):
        assert asked.samples.dtype == dtype
        np.testing.assert_array_equal(asked.samples, x)


@given(st.binary(max_size=200), st.none() | st.integers(0, 300))
def test_any_bytes_are_read_or_refused_with_a_reason(body, json_bytes):
    refused(body, json_bytes)


WRONG = {
    "another name": (question(X, name="y"), "inputs[0].name: must be 'x', got 'y'"),
    "another type": (question(X, datatype="FP32"), "datatype must be UINT8, got 'FP32'"),
    "no batch axis": (question(X[0]), "shape must be [-1, 2, 3]"),
    "no sample": (question(X[:0]), "one sample or more"),
    "another shape": (question(X, shape=[2, 3, 2]), "got [2, 3, 2]"),
    "a negative shape": (question(X, shape=[-2, 2, 3]), "malformed request"),
    "a huge shape": (question(X, shape=[1 << 39, 2, 3]), "shape says"),
    "too few values": (question(X, data=[1, 2]), "is of shape [2], shape says [2, 2, 3]"),
    "ragged": (question(X, data=[[[1, 2, 3], [4, 5]], [[1, 2, 3], [4, 5, 6]]]), "x.data"),
    "nested otherwise": (question(X, data=X.reshape(4, 3).tolist()), "x.data: Expected"),
    "a fraction": (question(X, data=[0.5] * 12), "x.data: Expected `int`, got `float`"),
    "a bool": (question(X, data=[True] * 12), "Expected `int`, got `bool`"),
    "beyond the type": (question(X, data=[256] * 12), "x.data: Expected `int` <= 255"),
    "no data": ({"inputs": [{"name": "x", "datatype": "UINT8", "shape": [2, 2, 3]}]}, "neither"),
    "data twice": (question(X, parameters={"binary_data_size": 12}), "give one of them"),
    "no input": ({"inputs": []}, "must be one, 'x', got 0"),
    "two inputs": ({"inputs": question(X)["inputs"] * 2}, "must be one, 'x', got 2"),
    "an unknown output": ({**question(X), "outputs": [{"name": "y"}]}, "there are label, scores"),
    "an output twice": ({**question(X), "outputs": [{"name": "label"}] * 2}, "asked for twice"),
    "classification": (
        {**question(X), "outputs": [{"name": "label", "parameters": {"classification": 3}}]},
        "classification is not offered",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "why"), WRONG.values(), ids=list(WRONG))
def test_what_the_model_does_not_take_is_refused(body, why):
    assert why in refused(body)


def test_numbers_that_json_or_the_type_do_not_have_are_refused():
    reader = Reader(TensorSpec("x", "FP32", (1,)), np.dtype("float32"), ("label",))
    text = '{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":[%s]}]}'
    for number in ("NaN", "Infinity", "1e999"):
        refused((text % number).encode(), reader=reader)
    assert "cannot hold" in refused((text % "1e39").encode(), reader=reader)
    assert read((text % "3").encode(), reader=reader).samples == 3


def test_a_byte_too_many_or_too_few_is_refused():
    body, headers = binary(X)
    end = int(headers["Inference-Header-Content-Length"])
    assert read(body, end).samples.tolist() == X.tolist()
    assert "after the JSON come 11" in refused(body[:-1], end)
    assert "after the JSON come 13" in refused(body + b"x", end)
    assert "binary_data_size is 13" in refused(binary(X, size=13)[0], end)
    assert "the body has" in refused(body, len(body) + 1)
    assert "malformed" in refused(body, end - 1)
    plain = json.dumps(question(X)).encode()
    assert "no binary_data_size" in refused(plain + b"x", len(plain))


def test_a_bool_is_a_byte_of_0_or_1():
    reader = Reader(TensorSpec("x", "BOOL", (1,)), np.dtype("bool"), ("label",))
    body, headers = binary(np.array([[2]], np.uint8), datatype="BOOL")
    why = refused(body, int(headers["Inference-Header-Content-Length"]), reader)
    assert "a byte of 0 or 1" in why


def test_brackets_without_end_do_not_exhaust_the_stack():
    data = "[" * 100_000
    text = f'{{"inputs":[{{"name":"x","datatype":"UINT8","shape":[2,2,3],"data":{data}}}]}}'
    refused(text.encode())


def test_null_is_as_good_as_leaving_a_field_out():
    asked = read({**question(X), "id": None, "parameters": None, "outputs": None})
    assert asked.outputs == (Wanted("label", False), Wanted("scores", False))
    assert (asked.id, asked.timeout_s) == (None, None)


def test_what_a_client_asks_for_is_what_it_gets():
    parameters = {"binary_data_output": True, "timeout": 1500, "unknown": {"is": "ignored"}}
    outputs = [{"name": "scores", "parameters": {"binary_data": False}}, {"name": "label"}]
    asked = read({**question(X), "id": "7", "parameters": parameters, "outputs": outputs})
    assert asked.outputs == (Wanted("scores", False), Wanted("label", True))
    assert (asked.id, asked.timeout_s) == ("7", 0.0015)


def test_an_answer_has_its_binary_tensors_behind_it_in_order():
    scores = np.array([[0.5, math.pi]], np.float32)
    asked = Asked(X[:1], (Wanted("scores", True), Wanted("label", True)), "7", None)
    tensors = [
        (TensorSpec("scores", "FP32", (2,)), scores),
        (TensorSpec("label", "BYTES", ()), ["é"]),
    ]
    body, end = answer({"model_name": "m"}, asked, tensors)
    said = json.loads(body[:end])
    assert said["id"] == "7"
    assert said["outputs"] == [
        {
            "name": "scores",
            "datatype": "FP32",
            "shape": [1, 2],
            "parameters": {"binary_data_size": 8},
        },
        {"name": "label", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}},
    ]
    assert body[end:] == struct.pack("<2f", *scores[0]) + b"\2\0\0\0" + "é".encode()
