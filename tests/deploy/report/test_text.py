import csv
import io

import msgspec

from deploy.report.markdown import to_markdown
from deploy.report.summary import lineage, step_words
from deploy.report.table import COLUMNS, columns_of, to_csv
from tests.deploy.report.example import example


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
    assert cells == {len(COLUMNS) + 3}


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


def test_a_step_is_said_with_its_plain_settings_alone():
    pruned = example().variants[1]
    assert step_words(pruned) == "magnitude prune, final sparsity 0.9, schedule polynomial"
