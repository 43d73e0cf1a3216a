"""The verdict, on made times: a sentence must not hang on how busy this machine is."""

import msgspec

from deploy.audit import Audit, table
from deploy.audit.verdict import verdict


def made(*, stem, reference_stem, speedup, conversions=2.0, other=5.0, int8=True):
    value, low, high = speedup

    def times(stem_us, conversions_us):
        return {
            "total_us": stem_us + 10 + conversions_us + other,
            "layers_us": stem_us + 10,
            "conversions_us": conversions_us,
            "other_us": other,
        }

    def layer(name, kind, took, reference, is_int8):
        return {
            "name": name, "kind": kind, "macs": 100, "kernel": "QLinearConv", "int8": is_int8,
            "why_not": None if is_int8 else "its bias is float",
            "remedy": None if is_int8 else "store it", "time_us": took, "reference_us": reference,
            "slower": took > reference,
        }  # fmt: skip

    return msgspec.convert(
        {
            "model": "int8.onnx", "against": "fp32.onnx", "onnxruntime": "1.32.0",
            "target": "x86-vnni", "session": {},
            "layers": [
                layer("stem", "1-channel Conv", stem, reference_stem, int8),
                layer("dense", "Gemm", 10.0, 20.0, True),
            ],
            "macs": 200, "int8_macs": 200 if int8 else 100, "int8_layers": 2 if int8 else 1,
            "conversions": 2, "pairs_left": 0, "layout_changes": 0, "float_islands": [],
            "times": times(stem, conversions),
            "reference_times": {
                **times(reference_stem, 0.0),
                "total_us": reference_stem + 20 + other,
                "layers_us": reference_stem + 20,
            },
            "speedup": {"value": value, "low": low, "high": high},
            "verdict": "",
        },
        Audit,
    )  # fmt: skip


def test_a_stem_that_is_slower_in_int8_is_blamed_by_name():
    found = made(stem=50.0, reference_stem=40.0, speedup=(1.01, 0.97, 1.05))
    assert verdict(found) == (
        "the model will not speed up on this machine (1.01× [0.97, 1.05]), because 75% of the time is 'stem', a "
        "1-channel Conv, slower in int8 (50.0 µs) than in float (40.0 µs): exclude it, or try lightship "
        "quantize int8.onnx --data DATA --kind layout --out faster.onnx, by which 'stem' may compute "
        "several columns at once; 2 of 2 layers run in int8, 100% of the multiply-accumulates"
    )


def test_what_grew_most_is_blamed_for_a_model_that_became_slower():
    found = made(stem=10.0, reference_stem=10.0, conversions=60.0, speedup=(0.4, 0.32, 0.5))
    assert verdict(found).startswith(
        "the model is 2.50× [2.00, 3.12] slower than fp32.onnx on this machine, because 71% of the time is "
        "quantizing, dequantizing"
    )


def test_a_float_layer_that_takes_most_of_the_time_is_blamed_with_its_reason():
    found = made(stem=90.0, reference_stem=90.0, int8=False, speedup=(1.03, 0.99, 1.06))
    assert "84% of the time is 'stem', in float: its bias is float" in verdict(found)


def test_a_model_that_is_faster_is_said_to_be_and_its_slow_layers_are_named():
    found = made(stem=3.0, reference_stem=2.5, speedup=(1.4, 1.34, 1.45))
    assert verdict(found) == (
        "the model is 1.40× [1.34, 1.45] as fast as fp32.onnx on this machine; 2 of 2 layers run in int8, 100% of "
        "the multiply-accumulates; slower in int8: stem: try lightship quantize int8.onnx "
        "--data DATA --kind layout --out faster.onnx, by which 'stem' may compute several columns at once"
    )


def test_sums_of_layer_times_decide_nothing_that_whole_calls_did_not_show():
    found = made(stem=90.0, reference_stem=40.0, speedup=(1.2, 1.1, 1.3))
    assert verdict(found).startswith("the model is 1.20× [1.10, 1.30] as fast as fp32.onnx")


def test_a_difference_inside_the_noise_is_called_noise_and_blamed_on_nothing():
    found = made(stem=50.0, reference_stem=40.0, speedup=(1.08, 0.92, 1.26))
    assert verdict(found) == (
        "the model cannot be told from fp32.onnx by its speed here (1.08× [0.92, 1.26]): the noise of this "
        "machine hides any difference; 2 of 2 layers run in int8, 100% of the multiply-accumulates"
    )


def test_nothing_is_blamed_where_nothing_more_is_in_int8():
    found = msgspec.structs.replace(
        made(stem=50.0, reference_stem=50.0, speedup=(1.0, 0.99, 1.02)), reference_int8_layers=2
    )
    assert verdict(found).startswith(
        "the model is as fast as fp32.onnx on this machine but for noise (1.00× [0.99, 1.02]), and has no"
    )


def test_the_table_has_a_line_a_layer_and_what_to_do():
    lines = table(made(stem=90.0, reference_stem=90.0, int8=False, speedup=(1.0, 0.98, 1.02)))
    assert lines[0].split() == ["layer", "kind", "MACs", "share", "kernel", "µs", "against", "µs"]
    assert "float: stem: its bias is float; store it" in lines


def test_an_audit_goes_to_json_and_back():
    found = made(stem=3.0, reference_stem=2.5, speedup=(1.4, 1.34, 1.45))
    assert msgspec.json.decode(msgspec.json.encode(found), type=Audit) == found
