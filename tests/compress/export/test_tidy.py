import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from compress.export import tidy as tidy_module
from compress.export.tidy import (
    PASSES,
    tidy,
    with_gemms,
    with_named_batch,
    with_positive_zeros,
    with_unique_node_names,
    without_dead_parts,
    without_identities,
    without_transpose_pairs,
)
from deploy.record import SessionOptions
from deploy.session import ort_options

TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)


def model_of(nodes, *, shape=(None, 4, 5, 3), output=(None, 4, 5, 3), constants=None):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def transpose(source, target, perm):
    return helper.make_node("Transpose", [source], [target], perm=perm)


def operators(model):
    return [node.op_type for node in model.graph.node]


def run(model, x):
    session = ort.InferenceSession(
        model.SerializeToString(),
        sess_options=ort_options(SessionOptions()),
        providers=["CPUExecutionProvider"],
    )
    return session.run(None, {"x": x})[0]


def sample(shape=(2, 4, 5, 3), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_a_transpose_and_its_inverse_vanish_across_elementwise_operators():
    model = model_of(
        [
            transpose("x", "a", TO_NCHW),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Mul", ["b", "two"], ["c"]),
            transpose("c", "y", TO_NHWC),
        ],
        constants={"two": np.float32([2])},
    )
    tidied = without_transpose_pairs(model)
    assert operators(tidied) == ["Relu", "Mul"]
    np.testing.assert_array_equal(run(tidied, sample()), run(model, sample()))


def test_transposes_on_both_sides_of_an_add_vanish_together():
    model = model_of(
        [
            transpose("x", "a", TO_NCHW),
            helper.make_node("Neg", ["x"], ["n"]),
            transpose("n", "b", TO_NCHW),
            helper.make_node("Add", ["a", "b"], ["c"]),
            transpose("c", "d", TO_NHWC),
            helper.make_node("Abs", ["d"], ["y"]),
        ]
    )
    tidied = without_transpose_pairs(model)
    assert operators(tidied) == ["Neg", "Add", "Abs"]
    np.testing.assert_array_equal(run(tidied, sample()), run(model, sample()))


def test_transposes_stay_where_a_constant_would_have_to_be_permuted():
    model = model_of(
        [
            transpose("x", "a", TO_NCHW),
            helper.make_node("Add", ["a", "row"], ["b"]),
            transpose("b", "y", TO_NHWC),
        ],
        constants={"row": np.arange(5, dtype=np.float32)},
    )
    assert operators(without_transpose_pairs(model)) == ["Transpose", "Add", "Transpose"]


def test_a_transpose_that_others_read_stays_for_them():
    model = model_of(
        [
            transpose("x", "a", TO_NCHW),
            transpose("a", "b", TO_NHWC),
            helper.make_node("ReduceMax", ["a"], ["m"], axes=[1], keepdims=0),
            helper.make_node("Unsqueeze", ["m", "last"], ["u"]),
            helper.make_node("Add", ["b", "u"], ["y"]),
        ],
        constants={"last": np.int64([3])},
    )
    tidied = without_transpose_pairs(model)
    assert operators(tidied).count("Transpose") == 1
    np.testing.assert_array_equal(run(tidied, sample()), run(model, sample()))


def test_transposes_stay_where_something_else_reads_between_them():
    model = model_of(
        [
            transpose("x", "a", TO_NCHW),
            helper.make_node("Relu", ["a"], ["r"]),
            transpose("r", "b", TO_NHWC),
            helper.make_node("ReduceMax", ["r"], ["m"], axes=[1], keepdims=0),
            helper.make_node("Unsqueeze", ["m", "last"], ["u"]),
            helper.make_node("Add", ["b", "u"], ["y"]),
        ],
        constants={"last": np.int64([3])},
    )
    tidied = without_transpose_pairs(model)
    assert operators(tidied).count("Transpose") == 2
    np.testing.assert_array_equal(run(tidied, sample()), run(model, sample()))


def test_two_transposes_that_do_not_undo_each_other_stay():
    model = model_of(
        [transpose("x", "a", (0, 2, 1, 3)), transpose("a", "y", (0, 3, 1, 2))],
        output=(None, 3, 5, 4),
    )
    assert operators(without_transpose_pairs(model)) == ["Transpose", "Transpose"]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_tidying_a_random_graph_of_transposes_changes_no_bit(data):
    """Shapes are followed by hand, so that every drawn graph is valid."""
    shapes = {"x": (2, 3, 4, 5)}
    nodes = []
    for index in range(data.draw(st.integers(1, 8))):
        kind = data.draw(st.sampled_from(["Transpose", "Transpose", "Relu", "Identity", "Add"]))
        source = data.draw(st.sampled_from(sorted(shapes)))
        name = f"t{index}"
        shapes[name] = shapes[source]
        if kind == "Transpose":
            perm = data.draw(
                st.sampled_from([TO_NCHW, TO_NHWC, (0, 1, 2, 3), (0, 2, 1, 3), (3, 0, 1, 2)])
            )
            shapes[name] = tuple(shapes[source][axis] for axis in perm)
            nodes.append(transpose(source, name, perm))
        elif kind == "Add":
            same = [other for other, shape in shapes.items() if shape == shapes[source]]
            other = data.draw(st.sampled_from(sorted(set(same) - {name})))
            nodes.append(helper.make_node("Add", [source, other], [name]))
        else:
            nodes.append(helper.make_node(kind, [source], [name]))
    nodes.append(helper.make_node("Neg", [f"t{len(nodes) - 1}"], ["y"]))
    model = model_of(nodes, shape=shapes["x"], output=shapes[f"t{len(nodes) - 2}"])
    tidied = tidy(model)
    onnx.checker.check_model(tidied, full_check=True)
    assert operators(tidied).count("Transpose") <= operators(model).count("Transpose")
    x = sample((2, 3, 4, 5))
    np.testing.assert_array_equal(run(tidied, x), run(model, x))


def test_identities_vanish_and_the_output_keeps_its_name():
    model = model_of(
        [
            helper.make_node("Identity", ["x"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Identity", ["b"], ["y"]),
        ]
    )
    tidied = without_identities(model)
    assert operators(tidied) == ["Relu"]
    assert tidied.graph.output[0].name == "y"
    np.testing.assert_array_equal(run(tidied, sample()), run(model, sample()))


def test_an_identity_from_input_to_output_stays():
    model = model_of([helper.make_node("Identity", ["x"], ["y"])])
    assert operators(without_identities(model)) == ["Identity"]


def dense(**changes):
    constants = {
        "w": sample((3, 2)),
        "b": np.float32([1, 2]),
    } | changes
    return model_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["p"], name="product"),
            helper.make_node("Add", ["b", "p"], ["y"], name="sum"),
        ],
        shape=(None, 3),
        output=(None, 2),
        constants=constants,
    )


def test_a_product_and_its_bias_become_one_gemm():
    model = dense()
    tidied = with_gemms(model)
    assert [(node.op_type, node.name) for node in tidied.graph.node] == [("Gemm", "product")]
    x = sample((4, 3))
    np.testing.assert_allclose(run(tidied, x), run(model, x), rtol=1e-6, atol=1e-6)


def test_a_bias_of_another_length_is_no_bias():
    assert operators(with_gemms(dense(b=np.float32([[1, 2]])))) == ["MatMul", "Add"]


def test_a_product_of_a_stack_of_matrices_stays():
    model = model_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["p"]),
            helper.make_node("Add", ["p", "b"], ["y"]),
        ],
        shape=(None, 7, 3),
        output=(None, 7, 2),
        constants={"w": sample((3, 2)), "b": np.float32([1, 2])},
    )
    assert operators(with_gemms(model)) == ["MatMul", "Add"]


def test_what_no_output_needs_is_dropped():
    model = model_of(
        [
            helper.make_node("Relu", ["x"], ["y"]),
            helper.make_node("Add", ["x", "c"], ["unread"]),
        ],
        constants={"c": np.float32([1]), "d": np.float32([1])},
    )
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    tidied = without_dead_parts(model)
    assert operators(tidied) == ["Relu"]
    assert not tidied.graph.initializer
    assert [entry.domain for entry in tidied.opset_import] == [""]


def test_an_unread_input_keeps_the_value_that_lets_it_be_left_out():
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], constants={"c": np.float32([1])})
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, (1,)))
    assert [tensor.name for tensor in without_dead_parts(model).graph.initializer] == ["c"]


@given(values=hnp.arrays(np.float32, (3, 2), elements=st.sampled_from([-0.0, 0.0, -1.5, 2.0])))
def test_no_weight_is_a_negative_zero_and_the_answers_are_the_same(values):
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        output=(None, 4, 5, 2),
        constants={"w": values},
    )
    tidied = with_positive_zeros(model)
    weights = numpy_helper.to_array(tidied.graph.initializer[0])
    assert not np.signbit(weights[weights == 0]).any()
    np.testing.assert_array_equal(weights, values)
    np.testing.assert_array_equal(run(tidied, sample()), run(model, sample()))


def test_a_negative_zero_that_something_is_divided_by_stays():
    model = model_of(
        [helper.make_node("Div", ["x", "w"], ["y"])], constants={"w": np.float32([-0.0])}
    )
    assert np.isneginf(run(tidy(model), 1 + np.abs(sample()))).all()


@pytest.mark.parametrize("deep", [1, 2])
def test_a_negative_zero_that_a_branch_reads_too_stays(deep):
    made = helper.make_tensor_value_info("z", TensorProto.FLOAT, (1, 1))
    node = helper.make_node("Reciprocal", ["w"], ["z"])
    for _ in range(deep):
        branch = helper.make_graph([node], "branch", [], [made])
        node = helper.make_node("If", ["yes"], ["z"], then_branch=branch, else_branch=branch)
    model = model_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            node,
            helper.make_node("Add", ["product", "z"], ["y"]),
        ],
        shape=(None, 1),
        output=(None, 1),
        constants={"w": np.float32([[-0.0]]), "yes": np.array(True)},
    )
    assert np.isneginf(run(with_positive_zeros(model), sample((2, 1)))).all()


def test_a_free_first_axis_is_named_batch_and_a_fixed_one_is_not():
    free = with_named_batch(model_of([helper.make_node("Relu", ["x"], ["y"])]))
    assert free.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert free.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    fixed = model_of([helper.make_node("Relu", ["x"], ["y"])], shape=(2, 3), output=(2, 3))
    assert with_named_batch(fixed).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2


def test_nodes_without_a_name_of_their_own_get_one():
    model = model_of(
        [
            helper.make_node("Relu", ["x"], ["a"], name="same"),
            helper.make_node("Relu", ["a"], ["b"], name="same"),
            helper.make_node("Relu", ["b"], ["y"]),
        ]
    )
    named = with_unique_node_names(model)
    assert [node.name for node in named.graph.node] == ["same", "b", "y"]


@pytest.mark.parametrize("run_pass", PASSES, ids=lambda run_pass: run_pass.__name__)
def test_a_pass_leaves_its_input_alone_and_keeps_metadata(run_pass):
    model = model_of(
        [
            helper.make_node("Identity", ["x"], ["i"]),
            transpose("i", "a", TO_NCHW),
            transpose("a", "b", TO_NHWC),
            helper.make_node("MatMul", ["b", "w"], ["p"]),
            helper.make_node("Add", ["p", "c"], ["y"]),
        ],
        output=(None, 4, 5, 2),
        constants={"w": sample((3, 2)), "c": np.float32([1, 2])},
    )
    model.metadata_props.add(key="who", value="someone")
    before = model.SerializeToString()
    result = run_pass(model)
    assert model.SerializeToString() == before
    assert result.metadata_props[0].value == "someone"


def test_every_pass_of_the_module_is_in_the_list():
    public = {name for name in vars(tidy_module) if name.startswith(("with_", "without_"))}
    assert public == {run_pass.__name__ for run_pass in PASSES}
