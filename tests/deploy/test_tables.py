from __future__ import annotations

import msgspec
import numpy as np
import pytest

from deploy.errors import UserError
from deploy.preprocess import Cast, Column, Fill, OneHotColumns, Table, apply
from deploy.tables import read_rows, samples_of, table_of

TABLE = Table(
    columns=(Column(name="age"), Column(name="colour", categories=("blue", "red"))), missing=True
)
STRICT = msgspec.structs.replace(TABLE, missing=False)


def test_a_row_may_hold_texts_numbers_and_nothing():
    rows = [
        {"colour": " red", "age": "4"},
        {"age": 2.5, "colour": None},
        {"age": "?", "colour": ""},
    ]
    got = samples_of(rows, TABLE, where="rows")
    np.testing.assert_array_equal(got, np.float32([[4, 1], [2.5, np.nan], [np.nan, np.nan]]))


def test_a_category_that_training_did_not_have_is_known_as_such():
    assert samples_of([{"age": 1, "colour": "green"}], STRICT, where="rows").tolist() == [[1, -1]]


@pytest.mark.parametrize(
    ("row", "why_not"),
    [
        ({"age": 1}, "row 1 lacks column 'colour'; the model takes age, colour"),
        ({"age": "old", "colour": "red"}, "row 1: column 'age' must hold numbers, got 'old'"),
        ({"age": True, "colour": "red"}, "row 1: column 'age' must hold numbers, got True"),
        ({"age": "", "colour": "red"}, "row 1: column 'age' must hold numbers, got ''"),
        ({"age": 1, "colour": None}, "row 1: column 'colour' must hold a category, got None"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_by_its_place(row, why_not):
    with pytest.raises(UserError, match=f"^here: {why_not}"):
        samples_of([row], STRICT, where="here")


def test_a_table_is_found_in_front_of_the_preprocessing():
    assert table_of((TABLE, Cast())) is TABLE
    assert table_of((Cast(), TABLE)) is None
    assert table_of(()) is None


def test_a_csv_file_is_read_by_its_header(tmp_path):
    (tmp_path / "t.csv").write_text("\ufeffb,a\n1,\n\n2,x\n", "utf-8")
    rows = read_rows(tmp_path / "t.csv")
    assert rows == [{"b": "1", "a": ""}, {"b": "2", "a": "x"}]


@pytest.mark.parametrize(
    ("text", "why_not"),
    [
        ("", "names each column once"),
        ("a,a\n1,2\n", "names each column once"),
        ("a\n1,2\n", "line 2 has 2 columns, the header has 1"),
        ("a\n", "holds no lines below its header"),
    ],
)
def test_a_csv_file_that_is_no_table_is_refused(tmp_path, text, why_not):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=rf"t\.csv: .*{why_not}"):
        read_rows(tmp_path / "t.csv")


def test_a_table_leaves_samples_that_fit_alone():
    x = np.float32([[1, 0], [2, -1], [np.nan, np.nan]])
    np.testing.assert_array_equal(apply((TABLE,), x), x)


@pytest.mark.parametrize(
    ("x", "why_not"),
    [
        ([[1.0]], r"the table has 2 columns, got samples of shape \(1,\)"),
        ([[1.0, 0.0], [np.nan, 0.0]], "sample 1 lacks 'age'; .*without a rule for missing values"),
        ([[1.0, 2.0]], "'colour' holds codes from −1 to 1, got 2"),
        ([[1.0, 0.5]], "'colour' holds codes from −1 to 1, got 0.5"),
    ],
)
def test_samples_that_are_no_rows_are_refused(x, why_not):
    with pytest.raises(UserError, match=why_not):
        apply((STRICT,), np.float32(x))


def test_categories_become_zeros_and_ones_in_place():
    op = OneHotColumns(columns=(1,), depths=(2,))
    x = np.float32([[7, 0, 3], [8, 1, 4], [9, -1, 5], [6, np.nan, 2]])
    expected = np.float32([[7, 1, 0, 3], [8, 0, 1, 4], [9, 0, 0, 5], [6, 0, 0, 2]])
    np.testing.assert_array_equal(apply((op,), x), expected)


def test_a_code_beyond_the_depth_is_refused():
    op = OneHotColumns(columns=(0,), depths=(2,))
    with pytest.raises(UserError, match="needs codes from −1 to 1 in column 0, got 2 to 2"):
        apply((op,), np.float32([[2]]))
    with pytest.raises(UserError, match=r"needs columns \(0,\), got samples of \(2, 2\)"):
        apply((op,), np.zeros((1, 2, 2), np.float32))


def test_missing_values_are_filled_by_column_or_alike():
    x = np.float32([[np.nan, 1], [2, np.nan]])
    np.testing.assert_array_equal(apply((Fill(values=(5, 6)),), x), [[5, 1], [2, 6]])
    np.testing.assert_array_equal(apply((Fill(values=(0,)),), x), [[0, 1], [2, 0]])
