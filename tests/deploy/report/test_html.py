import dataclasses
import re
from html.parser import HTMLParser

import msgspec
import pytest

from deploy.errors import MissingExtraError, UserError
from deploy.record import Goal, Scatter
from deploy.report import Training, read_results, to_html, write_report
from deploy.report.summary import KERAS_AGREEMENT
from tests.deploy.report.example import example, variants, with_agreement

pytest.importorskip("jinja2", reason="the extra 'report' is not installed")
mpl = pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def page():
    return to_html(example())


class Tags(HTMLParser):
    """Collects what a browser would see: tags, attributes and whether every tag is closed."""

    VOID = frozenset(["meta", "link", "br", "hr", "img"])

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def hostile():
    results = example()
    variant = msgspec.structs.replace(
        results.variants[-1],
        name=HOSTILE,
        step={"kind": HOSTILE, "note": '"><img src=x onerror=alert(1)>'},
        layers=tuple(
            msgspec.structs.replace(layer, name=HOSTILE, note=HOSTILE)
            for layer in results.variants[-1].layers[:1]
        ),
    )
    return msgspec.structs.replace(
        results,
        title=HOSTILE,
        description=HOSTILE,
        verdict=HOSTILE,
        warnings=(HOSTILE,),
        variants=(*results.variants[:-1], variant),
        history={HOSTILE: results.history["baseline"]},
        reproduce=msgspec.structs.replace(results.reproduce, command=HOSTILE, recipe=HOSTILE),
    )


def test_markup_in_names_and_texts_is_shown_and_not_run():
    page = to_html(hostile())
    tags = Tags(page)
    assert page.count("<script") == 1
    assert tags.tags.count("script") == 1
    assert "img" not in tags.tags
    # In the figures too: the label of a point is cut, its tooltip is not.
    figures = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;: accuracy" in figures


def test_a_name_that_looks_like_mathematics_is_drawn_as_it_is():
    results = example()
    odd = msgspec.structs.replace(results.variants[-1], name="_$x^2$\x07")
    page = to_html(msgspec.structs.replace(results, variants=(*results.variants[:-1], odd)))
    assert ">_$x^2$\ufffd</text>" in page


def test_a_name_in_another_script_is_drawn_without_a_word():
    results = example()
    odd = msgspec.structs.replace(results.variants[-1], name="剪枝")
    assert ">剪枝</text>" in to_html(
        msgspec.structs.replace(results, variants=(*results.variants[:-1], odd))
    )


def test_every_tag_is_closed(page):
    assert Tags(page).open == []


def test_the_page_names_no_address_of_any_network(page):
    assert "http:" not in page.replace("http-equiv", "")
    assert "https:" not in page
    assert "//" not in "".join(v or "" for k, v in Tags(page).attributes if k in {"src", "href"})
    assert "@import" not in page
    assert len(page.encode()) < 3_000_000


def test_ids_are_unique_and_every_reference_finds_its_own(page):
    attributes = Tags(page).attributes
    ids = [value for name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    links = {value[1:] for name, value in attributes if name == "href" and value.startswith("#")}
    clips = set(re.findall(r"url\(#([^)]+)\)", page))
    labels = {i for name, value in attributes if name == "aria-labelledby" for i in value.split()}
    assert links | clips | labels <= set(ids)


def test_the_colours_of_the_figures_are_those_of_the_page(page):
    figures = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert "var(--accent)" in figures
    assert not re.search(r"#[0-9a-f]{6}\b", figures)
    assert "DejaVu" not in figures


def test_every_variant_has_a_tooltip_in_every_figure(page):
    for name in ("baseline", "pruned", "int8", "pruned-int8", "float16"):
        assert page.count(f"<title>{name}: accuracy") == 4  # size and time, wide and narrow


def test_the_same_results_give_the_same_bytes(page):
    assert to_html(example()) == page


def test_the_settings_of_the_user_change_nothing(page):
    with mpl.rc_context({"font.size": 30, "axes.grid": False, "lines.linestyle": ":"}):
        assert to_html(example()) == page
        assert mpl.rcParams["font.size"] == 30


def test_a_report_without_measurement_has_no_figure_of_time():
    page = to_html(example(measurement=None))
    assert "Accuracy against file size" in page
    assert "Accuracy against time" not in page
    assert "Nothing was timed" in page


def test_a_baseline_alone_has_a_report():
    results = example()
    page = to_html(msgspec.structs.replace(results, variants=results.variants[:1], history={}))
    assert "Accuracy against file size" in page


def test_why_a_layer_was_left_alone_is_said_once_and_pointed_to(page):
    assert page.count("first layer: one input channel is slower in int8") == 1
    assert page.count('href="#note-2"') == 2


def test_a_loss_alone_is_drawn_where_no_accuracy_was_kept():
    training = msgspec.structs.replace(
        example().history["pruned"], epochs=({"loss": 1.0}, {"loss": None}), kept_epoch=1
    )
    assert "loss of 2 epochs" in to_html(example(history={"pruned": training}))


def test_all_four_files_are_written_and_nothing_beside_them(tmp_path):
    page = write_report(example(), tmp_path / "run")
    assert page == tmp_path / "run" / "report.html"
    names = sorted(path.name for path in page.parent.iterdir())
    assert names == ["report.html", "report.md", "results.csv", "results.json"]
    assert read_results(page.parent / "results.json") == example()


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    write_report(example(), tmp_path)
    before = (tmp_path / "results.json").read_bytes()

    def full(self, content):
        with self.open("wb") as file:
            file.write(content[:10])
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="disk full"):
        write_report(example(title="another"), tmp_path)
    assert (tmp_path / "results.json").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_a_folder_in_the_place_of_a_file_is_one_line(tmp_path):
    (tmp_path / "results.csv").mkdir()
    with pytest.raises(UserError, match=r"results\.csv: must be a file, got a folder"):
        write_report(example(), tmp_path)


def test_an_old_verdict_is_passed_anew_by_the_rule_that_the_report_states(tmp_path):
    write_report(msgspec.structs.replace(example(), verdict="of an older rule"), tmp_path)
    assert read_results(tmp_path / "results.json") == example()


def test_without_the_extra_all_but_the_page_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"jinja2 is not installed.*report"):
        write_report(example(), tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["report.md", "results.csv", "results.json"]


def test_the_page_says_what_runs_in_int8_where_it_was_looked_at():
    assert 'id="int8"' in to_html(example())
    unseen = tuple(
        msgspec.structs.replace(variant, int8_layers=None, int8_macs_share=None)
        for variant in example().variants
    )
    page = to_html(msgspec.structs.replace(example(), variants=unseen))
    assert 'id="int8"' not in page
    assert "MACs in int8" not in page


def test_the_page_says_how_often_what_was_trained_for_int8_agrees_with_keras():
    assert KERAS_AGREEMENT not in to_html(example())
    page = to_html(with_agreement(example(), "int8", 0.99999))
    assert page.count(KERAS_AGREEMENT) == 2  # the column, and what it means
    assert page.count("<td>99.99\u202f%</td>") == 1


def test_the_confusion_matrix_of_the_baseline_and_of_the_choice_is_a_table_with_its_labels():
    page = to_html(example())
    assert page.count("<caption>") == 2
    assert "<caption>baseline</caption>" in page
    assert "<caption>pruned-int8</caption>" in page


def test_loss_and_metric_of_every_trained_variant_are_drawn_and_the_kept_epoch_is_said():
    page = to_html(example())
    for name, kept in (("baseline", 7), ("pruned", 3)):
        assert f">Training of {name}: loss<" in page
        assert f">Training of {name}: accuracy<" in page
        assert f"Epoch {kept} was kept." in page


def test_a_regularisation_term_that_was_kept_is_drawn_too():
    epochs = ({"loss": 1.0, "val_loss": 1.1, "regularisation": 0.2, "mae": 3.0},) * 2
    page = to_html(example(history={"baseline": Training(epochs=epochs, kept_epoch=1)}))
    for metric in ("loss", "regularisation", "mae"):
        assert f">Training of baseline: {metric}<" in page


def test_of_an_error_less_is_better_and_its_unit_is_said():
    goal = Goal(task="regression", metric="mae", unit="mm")
    seen = Scatter(true=((1.0, 2.0),), predicted=((1.5, 1.5),))
    results = example(
        goal=goal,
        variants=[
            dataclasses.replace(
                done, evaluation=msgspec.structs.replace(done.evaluation, answers=seen, metrics={})
            )
            for done in variants()
        ],
    )
    page = to_html(results)
    assert ">mean absolute error, mm<" in page
    assert "Δ baseline, mm" in page
    assert "Less is better." in page
    assert ">Predicted beside true values<" in page
    assert "Confusion" not in page
    assert min(results.variants, key=lambda v: v.score).pareto
    assert "is shown to stay within 1\u202f% of baseline" in results.verdict
