"""The pages of a server in a real browser."""

import json

import numpy as np
import pytest

from deploy import load
from deploy.bundle.answers import answers_in_words
from tests.deploy.bundle import tiny
from tests.deploy.report.browser import Browser, find_browser
from tests.deploy.serve.conftest import SIDE, halves

pytest.importorskip("starlette", reason="the extra 'serve' is not installed")
pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed")

LABEL = "document.getElementById('label').textContent"
NOTE = "document.getElementById('note').textContent"
READY = f"{NOTE}.startsWith('Draw')"


@pytest.fixture(scope="module")
def browser():
    browser = Browser(find_browser())
    yield browser
    browser.close()


def opened(browser, url, model="halves 1.0.0"):
    """Open the page and choose a model."""
    browser.open(url, width=900)
    browser.wait_for("document.querySelectorAll('#model option').length")
    browser.run(
        "(() => { const s = document.getElementById('model');"
        f"s.selectedIndex = [...s.options].findIndex(o => o.text === '{model}');"
        "s.dispatchEvent(new Event('change')); })()"
    )


def draw(browser, *points):
    """Draw a line through points given as shares of the canvas, with the mouse."""
    box = browser.run(
        "(() => { const b = document.getElementById('canvas').getBoundingClientRect();"
        "return [b.left, b.top, b.width, b.height]; })()"
    )
    left, top, width, height = box
    kinds = ["mousePressed", *["mouseMoved"] * (len(points) - 1), "mouseReleased"]
    for kind, (x, y) in zip(kinds, [*points, points[-1]], strict=True):
        browser.send(
            "Input.dispatchMouseEvent", type=kind, x=left + x * width, y=top + y * height,
            button="left", buttons=1, clickCount=1,
        )  # fmt: skip


def asked(browser):
    """Return the samples of the last request for inference."""
    sent = [r["request"] for r in browser.said("Network.requestWillBeSent")]
    last = [request for request in sent if request["url"].endswith("/infer")][-1]
    return np.array(json.loads(last["postData"])["inputs"][0]["data"])


def complaints(browser):
    return browser.said("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")


def test_what_is_drawn_is_answered_as_predict_answers_it(browser, server, bundles):
    opened(browser, server.url)
    browser.wait_for(READY)
    for x, expected in ((0.25, "left"), (0.75, "right")):
        browser.run("document.getElementById('clear').click()")
        draw(browser, (x, 0.2), (x, 0.5), (x, 0.8))
        browser.wait_for(f"{LABEL} === '{expected}'")
        sample = asked(browser).reshape(SIDE, SIDE)
        assert sample.max() == 255
        assert (sample > 0).any(axis=0).tolist().index(True) == (1 if expected == "left" else 5)
        found = load(bundles[2]).predict(sample.astype(np.uint8))
        bars = browser.run("[...document.querySelectorAll('#bars meter')].map(m => m.value)")
        assert bars == sorted(found.probabilities[0].tolist(), reverse=True)
    browser.run("document.getElementById('clear').click()")
    assert browser.run(LABEL) == ""
    assert not complaints(browser)


def test_the_pixels_of_a_file_arrive_as_predict_reads_them(browser, server, bundles, tmp_path):
    image = pytest.importorskip("PIL.Image", reason="the extra 'images' is not installed")
    opened(browser, server.url)
    browser.wait_for(READY)
    colours = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    for name, pixels in (("grey", halves().x[1]), ("colour", colours)):
        path = tmp_path / f"{name}.png"
        image.fromarray(pixels).save(path)
        node = browser.send("DOM.getDocument")["root"]["nodeId"]
        field = browser.send("DOM.querySelector", nodeId=node, selector="#file")["nodeId"]
        browser.run("document.getElementById('clear').click()")
        browser.send("DOM.setFileInputFiles", nodeId=field, files=[str(path)])
        expected = load(bundles[2]).predict(path)
        browser.wait_for(f"{LABEL} === '{expected.label}'")
        grey = np.asarray(image.open(path).convert("L"))
        assert asked(browser).reshape(SIDE, SIDE).tolist() == grey.tolist()
    before = asked(browser)
    browser.run("document.getElementById('invert').click()")
    browser.wait_for("!document.hidden")
    assert (asked(browser) == 255 - before).all()


@pytest.mark.parametrize("path", ["", "/docs"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_asks_its_own_server_alone_and_fits(browser, server, path, width):
    browser.open(server.url + path, width=width)
    browser.wait_for("document.querySelectorAll('#model option, #operations section').length")
    requests = [r["request"]["url"] for r in browser.said("Network.requestWillBeSent")]
    assert all(url.startswith((server.url, "data:")) for url in requests)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert not complaints(browser)


def test_a_model_of_another_task_is_answered_in_the_words_of_predict(browser, serving, tasks):
    with serving(*tasks.values()) as server:
        for name, path in tasks.items():
            bundle = name.replace("_", "-")
            opened(browser, server.url, f"{bundle} 1.0.0")
            browser.wait_for(f"model && model.name === '{bundle}' && {READY}")
            draw(browser, (0.2, 0.05), (0.2, 0.5), (0.2, 0.95))
            said = browser.wait_for(LABEL)
            sample = asked(browser).reshape(tiny.SIDE, tiny.SIDE).astype(np.uint8)
            runtime = load(path)
            (expected,) = answers_in_words(runtime.predict(sample), runtime.metadata)
            if name == "multi_label":
                assert said == "left"
                assert browser.run("document.querySelectorAll('#bars li').length") == 2
            elif name == "regression":
                number = expected.data["values"]["light"]
                assert float(said.removeprefix("light ").removesuffix(" lux")) == pytest.approx(
                    number, rel=1e-5
                )
            else:
                number = expected.data["anomaly_score"]
                assert number > 0
                assert float(said.removeprefix("anomaly score ")) == pytest.approx(number, rel=1e-5)
    assert not complaints(browser)


def test_a_model_that_takes_no_images_says_so(browser, serving, floats):
    with serving(floats) as server:
        browser.open(server.url, width=900)
        said = browser.wait_for(NOTE)
        assert said.startswith("floats takes FP32 samples of shape 3, which no image is")
        assert browser.run("document.getElementById('stage').hidden")


def test_the_list_of_addresses_shows_every_one(browser, server, client):
    browser.open(server.url + "/docs", width=1280)
    browser.wait_for("document.querySelectorAll('#operations section').length")
    shown = browser.run("[...document.querySelectorAll('h2')].map(e => e.textContent)")
    described = client.json("GET", "/openapi.json")[1]["paths"]
    assert shown == [f"{m.upper()} {path}" for path, ops in described.items() for m in ops]
    assert "curl http" in browser.run("document.querySelector('pre').textContent")


def test_both_pages_ask_for_the_key_where_one_is_needed(browser, serving, bundles):
    key = "0123456789abcdef"
    with serving(bundles[2], environment={"LIGHTSHIP_API_KEY": key}) as server:
        for path, done in (("", READY), ("/docs", "!!document.querySelector('#operations h2')")):
            browser.open(server.url + path, width=900)
            browser.wait_for("document.getElementById('key-form').hidden === false")
            browser.run(
                f"document.getElementById('key').value = '{key}';"
                "document.querySelector('#key-form button').click()"
            )
            browser.wait_for(done)
            assert browser.run("document.getElementById('key-form').hidden")
