import onnx
from onnx import TensorProto, helper

from compress.export.metadata import with_metadata
from deploy.preprocess import Scale
from deploy.session import ModelMetadata, open_model


def relu():
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "graph",
        [value("x", TensorProto.FLOAT, (None, 2))],
        [value("y", TensorProto.FLOAT, (None, 2))],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_the_file_gives_back_what_was_written():
    metadata = ModelMetadata(
        step={"kind": "export"}, parent="ab", preprocess=(Scale(),), labels=("cat", "dog"),
        data="mnist", data_licence="CC BY-SA 3.0", versions={"onnx": "1"},
    )  # fmt: skip
    model = with_metadata(relu(), metadata)
    onnx.checker.check_model(model, full_check=True)
    assert open_model(model.SerializeToString()).metadata == metadata


def test_old_entries_of_ours_go_and_those_of_others_stay():
    model = relu()
    model.metadata_props.add(key="author", value="someone")
    model.metadata_props.add(key="lightship.gone", value="1")
    before = model.SerializeToString()
    result = with_metadata(model, ModelMetadata(data="mnist"))
    props = {entry.key: entry.value for entry in result.metadata_props}
    assert props["author"] == "someone"
    assert "lightship.gone" not in props
    assert props["lightship.data"] == '"mnist"'
    assert model.SerializeToString() == before
