"""The verdict, on made times: a sentence must not hang on how busy this machine is."""

import msgspec

from deploy.audit import Audit, table
from deploy.audit.verdict import verdict


def made(*, stem, reference_stem, conversions=2.0, other=5.0, int8=True):
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
            "verdict": "",
        },
        Audit,
    )  # fmt: skip


def test_a_stem_that_is_slower_in_int8_is_blamed_by_name():
    found = made(stem=50.0, reference_stem=40.0)
    assert verdict(found) == (
        "will not speed up on this machine, because 75% of the time is 'stem', a 1-channel Conv, "
        "slower in int8 (50.0 µs) than in float (40.0 µs): exclude it, or try lightship "
        "quantize --kind layout, by which 'stem' may compute several columns at once; 2 of 2 layers "
        "run in int8, 100% of the multiply-accumulates"
    )


def test_what_grew_most_is_blamed_for_a_model_that_became_slower():
    found = made(stem=10.0, reference_stem=10.0, conversions=60.0)
    assert verdict(found).startswith(
        "is 2.4× slower on this machine, because 71% of the time is quantizing, dequantizing"
    )


def test_a_float_layer_that_takes_most_of_the_time_is_blamed_with_its_reason():
    found = made(stem=90.0, reference_stem=90.0, int8=False)
    assert "84% of the time is 'stem', in float: its bias is float" in verdict(found)


def test_a_model_that_is_faster_is_said_to_be_and_its_slow_layers_are_named():
    found = made(stem=3.0, reference_stem=2.5)
    assert verdict(found) == (
        "its kernels take 1.4× less time than fp32.onnx's here; 2 of 2 layers run in int8, 100% of "
        "the multiply-accumulates; slower in int8: stem: try lightship quantize --kind layout, by "
        "which 'stem' may compute several columns at once"
    )


def test_the_table_has_a_line_a_layer_and_what_to_do():
    lines = table(made(stem=90.0, reference_stem=90.0, int8=False))
    assert lines[0].split() == ["layer", "kind", "MACs", "share", "kernel", "µs", "against", "µs"]
    assert "float: stem: its bias is float; store it" in lines


def test_an_audit_goes_to_json_and_back():
    found = made(stem=3.0, reference_stem=2.5)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Audit) == found
