import dataclasses

import pytest

from deploy.report import write_report
from tests.deploy.report.browser import Browser, find_browser
from tests.deploy.report.example import RECIPE, example, variants

pytest.importorskip("jinja2", reason="the extra 'report' is not installed")
pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")
pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser():
    browser = Browser(find_browser())
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_report(example(), tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_page_asks_no_network_says_nothing_and_fits(browser, page, width, dark):
    browser.open(page, width=width, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    requests = [r["request"]["url"] for r in browser.said("Network.requestWillBeSent")]
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]
    assert not browser.said("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")


def test_no_table_is_cut_on_a_wide_screen_and_what_decides_is_seen_on_a_phone(browser, page):
    browser.open(page, width=1280)
    cut = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
    assert browser.run(cut) == 0
    browser.open(page, width=390)
    last = browser.run(
        "[...document.querySelectorAll('.sortable thead th')]"
        ".find(e => e.textContent.startsWith('Δ baseline')).getBoundingClientRect().right"
    )
    assert last <= 390


def test_every_column_is_on_the_paper_when_printed(browser, page):
    browser.open(page, width=720)
    browser.send("Emulation.setEmulatedMedia", media="print")
    width = browser.run("document.querySelector('.wide-table').getBoundingClientRect().right")
    browser.send("Emulation.setEmulatedMedia", media="")
    assert width <= 720


def test_a_long_name_does_not_make_the_page_scroll_sideways(browser, tmp_path):
    long = variants()
    long[-1] = dataclasses.replace(long[-1], name="unbroken" * 20)
    page = write_report(example(variants=long, title="title" * 60), tmp_path)
    browser.open(page, width=390)
    assert browser.run("document.documentElement.scrollWidth") <= 390


def test_dark_mode_changes_the_page_and_the_figures(browser, page):
    colours = []
    for dark in (False, True):
        browser.open(page, width=1280, dark=dark)
        colours.append(
            browser.run(
                "[getComputedStyle(document.body).backgroundColor,"
                " getComputedStyle(document.querySelector('.point use')).fill].join()"
            )
        )
    (light_page, light_mark), (dark_page, dark_mark) = (c.split("),") for c in colours)
    assert light_page != dark_page
    assert light_mark != dark_mark


@pytest.mark.parametrize(("width", "shown"), [(390, "narrow"), (1280, "wide")])
def test_figures_are_drawn_for_the_width_they_are_seen_at(browser, page, width, shown):
    browser.open(page, width=width)
    visible = browser.run(
        "[...document.querySelectorAll('.wide, .narrow')]"
        ".filter(e => e.offsetParent !== null).map(e => e.className).join()"
    )
    assert visible == f"{shown},{shown}"
    smallest = browser.run(
        "Math.min(...[...document.querySelectorAll('.plot text')].filter(e => e.getBBox().width)"
        ".map(e => parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a))"
    )
    assert smallest >= 10  # CSS pixels


def test_no_label_of_a_figure_lies_on_another(browser, page):
    for width in (390, 1280):
        browser.open(page, width=width)
        overlaps = browser.run("""
            [...document.querySelectorAll("figure .plot")].flatMap((plot) => {
              const texts = [...plot.querySelectorAll("text")];
              const boxes = texts.map((e) => e.getBoundingClientRect());
              return texts.flatMap((text, i) => texts.slice(0, i).flatMap((other, j) => {
                const [a, b] = [boxes[i], boxes[j]];
                const apart = a.right <= b.left || b.right <= a.left
                  || a.bottom <= b.top + 3 || b.bottom <= a.top + 3 || !a.width || !b.width;
                return apart ? [] : [text.textContent + " on " + other.textContent];
              }));
            })
        """)
        assert overlaps == []


def test_a_click_on_a_column_sorts_by_it_and_another_turns_it_round(browser, page):
    browser.open(page, width=1280)
    rows = "[...document.querySelector('.sortable').tBodies[0].rows].map(r => r.cells[0].firstChild.data.trim())"
    click = "[...document.querySelectorAll('.sortable button')].find(b => b.textContent == 'Gzipped').click()"
    browser.run(click)
    assert browser.run(rows) == ["pruned-int8", "pruned", "int8", "float16", "baseline"]
    browser.run(click)
    assert browser.run(rows)[0] == "baseline"


def test_the_recipe_is_there_to_be_copied_letter_by_letter(browser, page):
    browser.open(page, width=1280)
    assert browser.run("document.querySelectorAll('pre')[1].textContent") == RECIPE
    assert browser.run("document.querySelectorAll('button.copy').length") == 2


def test_a_script_that_came_in_from_outside_would_not_run(browser, page, tmp_path):
    copy = tmp_path / "planted.html"
    planted = "<script>document.title = 'taken'</script></body>"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", planted), encoding="utf-8")
    browser.open(copy, width=1280)
    assert browser.run("document.title") != "taken"
    assert browser.run("document.querySelectorAll('.sortable thead button').length") > 0
