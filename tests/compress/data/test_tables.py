from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compress.data.tables import read_csv
from deploy.errors import UserError
from deploy.preprocess import Column


def table(folder: Path, text: str, *, encoding: str = "utf-8") -> Path:
    path = folder / "t.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_texts_are_labels_in_their_order(tmp_path):
    path = table(tmp_path, "length,kind,width\n1,b,2\n3.5,a,-4e1\n\n5,b,6\n")
    source = read_csv(path, label_columns=("kind",))
    assert source.labels == ("a", "b")
    assert source.train.y.tolist() == [1, 0, 1]
    assert source.train.x.tolist() == [[1, 2], [3.5, -40], [5, 6]]
    assert source.train.x.dtype == np.float32


def test_integers_are_labels_by_value(tmp_path):
    path = table(tmp_path, "x,y\n0,10\n0,9\n0,-1\n")
    source = read_csv(path, label_columns=("y",))
    assert source.labels == ("-1", "9", "10")
    assert source.train.y.tolist() == [2, 1, 0]


def test_quotes_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path):
    path = table(tmp_path, '"x, y",label\r\n" 1 ","é ""1"""\r\n', encoding="utf-8-sig")
    source = read_csv(path, label_columns=("label",))
    assert source.labels == ('é "1"',)
    assert source.train.x.tolist() == [[1]]


@pytest.mark.parametrize(
    ("text", "why_not"),
    [
        ("a,b,c\n1,2,3\n", "label_column = 'y' must name one column, the header has a, b, c"),
        ("y;b\n1;2\n", "the header has y;b"),
        ("", "the header has none"),
        ("y,y\n1,2\n", "must name one column, the header has y, y"),
        ("y\n1\n", "needs columns of numbers beside the label column 'y'"),
        ("x,y\n", "holds no lines below its header"),
        ("x,z,y\n1,2,a\n1,red,b\n", "line 3: column 'z' must hold numbers, got 'red'"),
        ("x,y\n,a\n", "line 2: column 'x' must hold numbers, got ''"),
        ("x,y\n1,a\n1,2,b\n", "line 3 has 3 columns, the header has 2"),
        ("x,y\n1,a\n1, \n", "line 3: column 'y' holds no label"),
        ("x,y\n1\n", "line 2 has 1 columns"),
        ("x,x,y\n1,2,a\n", "two columns are called 'x'"),
    ],
)
def test_a_table_that_is_no_data_set_is_refused_by_its_place(tmp_path, text, why_not):
    with pytest.raises(UserError, match=rf"t\.csv: .*{why_not}"):
        read_csv(table(tmp_path, text), label_columns=("y",))


def test_columns_of_texts_are_codes_in_the_order_in_which_they_occur(tmp_path):
    path = table(tmp_path, "x,c,y\n1,red,a\n,blue,b\n3, red ,a\n4,NA,b\n")
    source = read_csv(path, label_columns=("y",), categorical=["c"], missing=True)
    assert source.columns == (Column(name="x"), Column(name="c", categories=("red", "blue")))
    np.testing.assert_array_equal(source.train.x[:, 1], [0, 1, 0, np.nan])
    np.testing.assert_array_equal(source.train.x[:, 0], [1, np.nan, 3, 4])


@pytest.mark.parametrize(
    ("categorical", "missing", "why_not"),
    [
        (["c", "d"], True, "categorical: 'd' must name one column of features, there are x, c"),
        (["y"], True, "categorical: 'y' must name one column of features"),
        (["c"], False, "line 3: column 'x' must hold numbers, got ''; set data.clean.missing"),
        ([], True, "line 2: column 'c' must hold numbers, got 'red'; name it in data.categorical"),
    ],
)
def test_a_column_that_is_not_what_it_should_be_is_named(tmp_path, categorical, missing, why_not):
    path = table(tmp_path, "x,c,y\n1,red,a\n,blue,b\n")
    with pytest.raises(UserError, match=why_not):
        read_csv(path, label_columns=("y",), categorical=categorical, missing=missing)


def test_a_category_that_is_left_empty_is_missing_or_refused(tmp_path):
    path = table(tmp_path, "c,y\nred,a\n,b\n")
    assert np.isnan(
        read_csv(path, label_columns=("y",), categorical=["c"], missing=True).train.x[1]
    )
    with pytest.raises(
        UserError, match=r"line 3: column 'c' holds nothing; set data.clean.missing"
    ):
        read_csv(path, label_columns=("y",), categorical=["c"])


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.csv: no such file"):
        read_csv(tmp_path / "absent.csv", label_columns=("y",))


def test_a_table_in_another_encoding_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"t\.csv: not a readable \.csv file in UTF-8"):
        read_csv(table(tmp_path, "x,y\n1,é\n", encoding="latin-1"), label_columns=("y",))


def test_a_number_beyond_float32_becomes_infinity(tmp_path):
    source = read_csv(table(tmp_path, "x,y\n1e300,a\n"), label_columns=("y",))
    assert np.isinf(source.train.x).all()
