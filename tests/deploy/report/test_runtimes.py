import msgspec

from deploy.report.markdown import to_markdown
from deploy.report.runtimes import compared, runtime_lines
from deploy.report.table import columns_of
from tests.deploy.report.example import example


def with_litert(*, p50_ms=0.05, half=0.001, delta_low=-0.3, parent="baseline"):
    """Return the example with its variant float16 as a LiteRT form that takes so long."""
    results = example()
    changed = [
        msgspec.structs.replace(
            variant,
            name="litert-int8",
            parent=parent,
            format="tflite",
            step={"kind": "litert", "form": "int8"},
            p50_ms=p50_ms,
            p50_low_ms=p50_ms - half,
            p50_high_ms=p50_ms + half,
            delta_low=delta_low,
        )
        if variant.name == "float16"
        else variant
        for variant in results.variants
    ]
    return msgspec.structs.replace(results, variants=tuple(changed))


def test_the_faster_runtime_is_named_with_its_fastest_form():
    (one,) = compared(with_litert())
    assert (one.network.name, one.onnx.name, one.litert.name) == (
        "baseline",
        "int8",
        "litert-int8",
    )
    (line,) = runtime_lines(with_litert())
    assert line.startswith("baseline: LiteRT is best (litert-int8, 50.0")
    assert "1.7× as fast as ONNX Runtime (int8, 87.1" in line.replace("\u202f", " ")


def test_where_onnx_runtime_is_faster_it_is_named():
    (line,) = runtime_lines(with_litert(p50_ms=0.2))
    assert line.startswith("baseline: ONNX Runtime is best (int8")
    assert "2.3× as fast as LiteRT" in line


def test_overlapping_intervals_are_not_told_apart():
    (line,) = runtime_lines(with_litert(p50_ms=0.086, half=0.005))
    assert line.endswith("are not told apart.")


def test_a_form_that_may_lose_a_point_is_left_out():
    assert runtime_lines(with_litert(delta_low=-1.2)) == []


def test_a_network_is_compared_with_its_own_forms_alone():
    (one,) = compared(with_litert(parent="pruned"))
    assert (one.network.name, one.onnx.name) == ("pruned", "pruned-int8")


def test_without_litert_nothing_is_said():
    assert runtime_lines(example()) == []
    assert "Which runtime" not in to_markdown(example())
    assert "Runtime" not in [column.title for column in columns_of(example())]


def test_the_report_says_it_and_names_the_runtime_of_the_variant():
    text = to_markdown(with_litert())
    assert "## Which runtime" in text
    assert "| LiteRT |" in text
