import csv
import io

import msgspec

from deploy.report.classes import about_classes, class_rows
from deploy.report.markdown import to_markdown
from deploy.report.summary import lineage, method, step_words
from deploy.report.table import columns_of, to_csv
from tests.deploy.report.example import example, measurement


def renamed(name):
    results = example()
    first = msgspec.structs.replace(results.variants[-1], name=name)
    return msgspec.structs.replace(results, variants=(*results.variants[:-1], first))


def test_the_csv_has_a_line_a_variant_and_full_numbers():
    rows = list(csv.DictReader(io.StringIO(to_csv(example()))))
    assert [row["name"] for row in rows] == [v.name for v in example().variants]
    assert rows[0]["from"] == ""
    assert rows[3]["step"] == "quantize_static"
    assert float(rows[3]["p50_ms"]) == example().variants[3].p50_ms


def test_a_name_with_commas_and_quotes_survives_csv():
    rows = list(csv.DictReader(io.StringIO(to_csv(renamed('a,"b"\nc')))))
    assert rows[-1]["name"] == 'a,"b"\nc'


def test_every_row_of_the_markdown_table_has_as_many_cells():
    text = to_markdown(renamed("pipe|and\nline"))
    table = text.partition("## Variants\n\n")[2].partition("\n\n")[0].splitlines()
    cells = {row.replace("\\|", "").count("|") for row in table}
    assert len(table) == 2 + len(example().variants)
    assert cells == {len(columns_of(example())) + 3}


def test_markup_in_a_name_is_shown_as_it_is_in_markdown():
    assert "\\<script\\>" in to_markdown(renamed("<script>"))
    assert "<script>" not in to_markdown(renamed("<script>"))


def test_a_recipe_with_a_fence_does_not_end_its_block():
    reproduce = msgspec.structs.replace(example().reproduce, recipe="a = '```'\n")
    assert "````\na = '```'\n````" in to_markdown(example(reproduce=reproduce))


def test_columns_that_nothing_was_measured_for_are_left_out():
    titles = {column.title for column in columns_of(example(measurement=None))}
    assert {"Size", "Accuracy"} <= titles
    assert not {"Median time", "Speed-up", "Memory"} & titles


def test_the_lineage_puts_every_variant_below_its_parent():
    assert [(depth, v.name) for depth, v in lineage(example())] == [
        (0, "baseline"),
        (1, "pruned"),
        (2, "pruned-int8"),
        (1, "int8"),
        (1, "float16"),
    ]


def words(**step):
    return step_words(msgspec.structs.replace(example().variants[1], step=step))


def test_a_step_is_said_with_its_settings_nested_ones_too():
    assert step_words(example().variants[1]) == (
        "magnitude prune · final sparsity 0.9 · schedule polynomial · "
        "fine-tune 2 epochs (batch size 128)"
    )
    adam = {"kind": "adam", "learning_rate": 0.001}
    fit = {"epochs": 1, "optimizer": adam, "schedule": {"kind": "cosine", "warmup_epochs": 0.0}}
    assert words(kind="distill", fine_tune=fit) == (
        "distill · fine-tune 1 epoch (optimizer adam (learning rate 0.001), schedule cosine)"
    )


def test_lists_and_settings_by_layer_are_said_zeros_of_a_layer_too():
    assert words(kind="x", per_layer={"conv_1": 0.0, "conv2": 0.8}, skip=["conv1", "dense2"]) == (
        "x · per layer conv_1 0, conv2 0.8 · skip conv1, dense2"
    )


def test_what_says_nothing_is_left_out_of_a_step():
    assert words(kind="x", power=3.0, begin=0.0, exclude=[], target=None, per_layer={}) == (
        "x · power 3"
    )
    assert words(kind="x", early_stopping={}, per_channel=False) == "x · not per channel"


def test_the_difference_from_a_parent_that_is_the_baseline_is_not_said_twice():
    parent = next(column for column in columns_of(example()) if column.title.startswith("Δ parent"))
    shown = {v.name for v in example().variants if parent.cell(v)}
    assert shown == {"pruned-int8"}


def test_the_method_says_what_widens_the_intervals_and_when_it_was_timed():
    assert "random inputs" in method(example())
    assert "widened by ±1\u202f%" in method(example())
    dated = msgspec.structs.replace(measurement(), measured_at="2025-01-31")
    assert "measured 2025-01-31." in method(example(measurement=dated))


def test_text_is_aligned_left_and_numbers_right_in_markdown():
    assert (
        "| Variant | Layer | Parameters | Zeros | Values | Bits | Note |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | --- |" in to_markdown(example())
    )


def test_the_file_to_ship_is_named_in_markdown():
    assert "File to ship: `models/pruned-int8.onnx`" in to_markdown(example())


def test_the_classes_that_lost_most_are_marked():
    results = example()
    lost = (0.0, -9.0, 1.0, -2.0, -3.0, -0.5, 0.0, 0.0, 0.0, 0.0)
    changed = msgspec.structs.replace(results.variants[1], baseline_per_label_delta=lost)
    baseline, _, *rest = results.variants
    rows = class_rows(msgspec.structs.replace(results, variants=(baseline, changed, *rest)))
    assert [row.label for row in rows if row.lost_most[0]] == ["1", "3", "4"]
    assert [row.deltas[0] for row in rows] == list(lost)


def test_of_many_classes_those_that_lost_most_are_shown():
    results = example()
    lost = tuple(-float(i) for i in range(50))
    first, second = results.variants[:2]
    variants = (
        msgspec.structs.replace(first, per_label=(0.9,) * 50),
        msgspec.structs.replace(second, per_label=(0.9,) * 50, baseline_per_label_delta=lost),
    )
    many = msgspec.structs.replace(results, variants=variants)
    assert [row.label for row in class_rows(many)] == [str(i) for i in range(30, 50)]
    assert "Of 50 classes the 20" in about_classes(many)


def test_packed_sizes_stand_in_every_table_once_they_are_known():
    results = example()
    assert "Packed" not in to_markdown(results)
    packed = msgspec.structs.replace(
        results.variants[0], packed_bytes=123_456, entropy_bound_bytes=123_000
    )
    known = msgspec.structs.replace(results, variants=(packed, *results.variants[1:]))
    assert "Packed" in to_markdown(known)
    assert "123" in to_markdown(known)
    assert "packed_bytes" in to_csv(known).splitlines()[0]
    assert ",123456," in to_csv(known).splitlines()[1]
