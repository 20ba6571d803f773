"""The page at ``/``, in a real browser and as it is sent."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from importlib import resources
from pathlib import Path

import pytest

from eagle import Engine
from eagle.serve.watching import Watcher
from tests.serve.conftest import serving, until

FILES = sorted((Path(str(resources.files("eagle.serve"))) / "page").iterdir())
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="module")
def browser():
    """A browser without a window; EAGLE_BROWSER=required has its absence fail, as CI does."""
    missing = pytest.fail if os.environ.get("EAGLE_BROWSER") == "required" else pytest.skip
    try:
        from playwright import sync_api as api
    except ImportError:
        missing("playwright is missing: pip install -c constraints.txt -e '.[dev]'")
    if CHROMIUM is None:
        missing(f"no browser: none of {', '.join(NAMES)} is on the path (apt-get install chromium)")
    with api.sync_playwright() as playwright:
        # Root, as containers have it, gets no sandbox.
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


class View:
    """The page in a browser, with what it asked for and complained of."""

    def __init__(self, page, url):
        self.page, self.asked, self.elsewhere, self.troubles = page, [], [], []
        page.set_default_timeout(10_000)
        page.on("request", lambda request: self._asked(request, url))
        page.on("console", lambda message: self.troubles.append(message.text))
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.goto(url)

    def _asked(self, request, url):
        if not request.url.startswith(url):
            self.elsewhere.append(request.url)
        elif request.post_data:
            self.asked.append((request.url.removeprefix(url), request.post_data))

    def ready(self):
        self.page.wait_for_selector("#spec option", state="attached")
        return self

    def ask(self, text, **fields):
        for name, value in fields.items():
            self.page.fill(f"#{name}", str(value))
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")

    def answered(self, count=1):
        self.page.wait_for_selector("#send")
        self.page.wait_for_selector(f".assistant >> nth={count - 1}")
        self.page.wait_for_selector(f".said >> nth={count - 1}")

    def text(self, selector):
        return self.page.text_content(selector)

    def texts(self, selector):
        return self.page.locator(selector).all_text_contents()


@pytest.fixture
def opened(browser):
    """Open a server's page; what it complained of is an error, unless it was refused something."""
    views = []

    def make(site, **context):
        made = browser.new_context(**{"viewport": {"width": 1280, "height": 800}} | context)
        views.append((made, View(made.new_page(), f"http://127.0.0.1:{site.port}")))
        return views[-1][1]

    yield make
    for made, view in views:
        assert view.elsewhere == []
        refused = "Failed to load resource: the server responded with a status of 4"
        assert [text for text in view.troubles if not text.startswith(refused)] == []
        made.close()


@pytest.fixture
def slow(monkeypatch):
    """Have each cycle take a while."""
    run = Watcher._run

    def slowly(*args):
        for told in run(*args):
            time.sleep(0.05)
            yield told

    monkeypatch.setattr(Watcher, "_run", slowly)


def test_an_answer_shows_how_each_token_came_about(site, decoder, opened):
    expected = decoder.generate("hello", max_new_tokens=24)
    view = opened(site).ready()
    view.ask("hello", temperature=0, max_tokens=24)
    view.answered()
    assert "".join(view.texts(".answer .token")) == expected.text
    kinds = [len(view.texts(f".answer .token.{kind}")) for kind in ("first", "accepted", "bonus")]
    assert kinds[0] == 1
    assert min(kinds) > 0
    assert sum(kinds) == 24
    assert view.text("#tau") == f"{expected.stats.tau:.2f}"
    assert float(view.text("#rate")) > 0
    assert view.text("#plain-rate") == "\u2013"
    assert str(expected.stats.cycles) in view.text(".said")


def test_the_tree_of_each_cycle_can_be_stepped_through(site, opened):
    view = opened(site).ready()
    view.ask("hello", temperature=0, max_tokens=24)
    view.answered()
    last = int(view.page.get_attribute("#which", "max"))
    assert view.text("#cycle-title").startswith(f"Cycle {last}:")
    view.page.click("#before")
    assert view.text("#cycle-title").startswith(f"Cycle {last - 1}:")
    view.page.press("#which", "Home")
    assert view.text("#cycle-title").startswith("Cycle 1:")
    assert view.page.is_disabled("#before")
    assert view.page.locator("#tree-frame .node").count() == 17  # 16 of the tree, and the bonus
    shown = view.texts(".answer .token.shown")
    accepted = view.texts("#tree-frame .node.accepted .name")[1:]
    bonus = view.texts("#tree-frame .node.bonus .name")
    assert [text.replace(" ", "·") for text in shown] == [*accepted, *bonus]
    assert re.fullmatch(r"<?[\d.]+%", view.texts("#tree-frame .node.rejected .share")[0])
    view.page.click(".answer .token >> nth=-1")
    assert view.text("#cycle-title").startswith(f"Cycle {last}:")
    view.page.click("#strip [data-cycle='2']")
    assert view.text("#cycle-title").startswith("Cycle 2:")
    view.page.click("#follow")
    assert view.page.get_attribute("#follow", "aria-pressed") == "true"


def test_an_answer_streams_and_escape_stops_it_here_and_at_the_server(site, opened, slow):
    view = opened(site).ready()
    view.ask("hello", temperature=0, max_tokens=200)
    view.page.wait_for_selector(".answer .token.bonus")
    assert view.page.locator("#log").get_attribute("aria-busy") == "true"
    assert view.page.locator(".said").count() == 0
    view.page.press("#prompt", "Escape")
    view.answered()
    assert "stopped" in view.text(".said")
    until(lambda: site.service.watcher.waiting == 0)
    said = "".join(view.texts(".answer .token"))
    view.ask("go on", max_tokens=3)
    view.answered(2)
    turns = json.loads(view.asked[-1][1])["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert turns[1]["content"] == said
    view.ask("more", max_tokens=200)
    view.page.click("#stop")
    view.page.wait_for_selector(".said >> nth=2")
    assert "stopped" in view.texts(".said")[2]


def test_settings_reach_the_server_as_they_were_typed(site, opened):
    view = opened(site).ready()
    view.page.select_option("#tree", "chain")
    view.page.fill("#tree-settings", "depth=2")
    given = {"temperature": 1.25, "top_p": 0.9, "top_k": 5, "min_p": 0.01, "max_tokens": 6}
    view.ask("hello", **given, seed=2**63 - 1)
    view.answered()
    (path, body), *_ = view.asked
    assert path == "/eagle/trace"
    sent = json.loads(body)
    talk = [{"role": "user", "content": "hello"}]
    tree = {"name": "chain", "depth": 2}
    assert sent == {"messages": talk, **given, "tree": tree, "seed": 2**63 - 1}
    assert str(2**63 - 1) in view.text(".said")
    first = view.text(".answer")
    view.page.click("#clear")
    assert view.page.locator("article").count() == 0
    view.ask("hello")
    view.answered()
    assert view.text(".answer") == first
    view.page.click("#clear")
    view.ask("hello", temperature=0)
    view.answered()
    assert json.loads(view.asked[-1][1])["temperature"] == 0


def test_plain_decoding_runs_after_the_answer_and_is_shown_beside_it(site, opened):
    view = opened(site).ready()
    view.page.check("#compare")
    view.ask("hello", temperature=0, max_tokens=16)
    view.page.wait_for_selector("#same")
    assert [path for path, _ in view.asked] == ["/eagle/trace", "/eagle/plain"]
    assert view.text("#same") == "Both gave the same tokens, one by one."
    rate, plain = float(view.text("#rate")), float(view.text("#plain-rate"))
    assert float(view.text("#ratio")) == pytest.approx(rate / plain, rel=0.05)
    assert view.text(".plain .text") == view.text(".answer")


def test_a_rule_that_changes_the_output_is_said_to(site, opened):
    view = opened(site).ready()
    assert view.text("#lossless") == "lossless"
    view.page.select_option("#acceptance", "typical")
    view.page.select_option("#tree", "chain")
    view.page.check("#compare")
    view.ask("hello", temperature=1, max_tokens=4)
    view.page.wait_for_selector("#same")
    assert view.text("#lossless") == "not lossless"
    assert "acceptance" not in json.loads(view.asked[1][1])
    assert "may differ" in view.text("#same")


def test_without_drafting_there_are_bonus_tokens_alone(site, opened):
    view = opened(site).ready()
    view.page.select_option("#spec", "plain")
    view.ask("hello", temperature=0, max_tokens=4)
    view.answered()
    assert json.loads(view.asked[0][1])["spec"] == "plain"
    assert view.text("#tau") == "1.00"
    assert len(view.texts(".answer .token.bonus")) == 3
    assert view.texts(".answer .token.accepted") == []


def test_what_is_wrong_is_one_sentence_and_the_question_is_not_lost(site, opened):
    view = opened(site).ready()
    view.ask("hello", temperature=3)
    assert view.text("#problem") == "Temperature should be from 0 to 2."
    assert view.page.evaluate("document.activeElement.id") == "temperature"
    assert view.asked == []
    view.page.fill("#temperature", "0")
    view.ask("hello", **{"tree-settings": "depht=3"})
    view.page.wait_for_selector("#problem")
    assert "depht" in view.text("#problem")
    assert view.page.input_value("#prompt") == "hello"
    assert view.page.locator("article").count() == 0
    view.ask("hello", **{"tree-settings": ""}, max_tokens=4)
    view.answered()
    assert view.page.is_hidden("#problem")
    assert len(json.loads(view.asked[-1][1])["messages"]) == 1


def test_text_is_never_taken_as_html(site, opened):
    view = opened(site).ready()
    text = "<img src=x onerror=\"document.title='taken'\"><b>bold</b>"
    view.ask(text, max_tokens=2)
    view.answered()
    assert view.text(".user .text") == text
    assert view.page.locator("#log img, #log b").count() == 0
    assert view.page.title() == "eagle"


def test_keys_do_what_the_page_says(site, opened):
    view = opened(site).ready()
    assert view.page.evaluate("document.activeElement.id") == "prompt"
    view.page.keyboard.type("one")
    view.page.keyboard.press("Shift+Enter")
    view.page.keyboard.type("two")
    assert view.page.input_value("#prompt") == "one\ntwo"
    view.page.fill("#max_tokens", "3")
    view.page.focus("#prompt")
    view.page.keyboard.press("Enter")
    view.answered()
    assert view.text(".user .text") == "one\ntwo"
    assert view.text("#status").startswith("3 tokens")
    reached = set()
    for _ in range(40):
        view.page.keyboard.press("Tab")
        here = "[document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle]"
        name, outline = view.page.evaluate(here)
        if name:
            reached.add(name)
            assert outline != "none", name
    controls = {"temperature", "seed", "tree", "compare", "prompt", "send", "which", "follow"}
    assert controls <= reached


@pytest.mark.parametrize("width", [360, 768])
def test_nothing_is_cut_off_on_a_narrow_screen(site, opened, width):
    view = opened(site, viewport={"width": width, "height": 740}, has_touch=True).ready()
    view.page.click("#options summary")
    view.ask("hello" * 20, temperature=0, max_tokens=24)
    view.answered()
    assert view.page.evaluate("document.documentElement.scrollWidth") <= width
    frame = view.page.locator("#tree-frame").bounding_box()
    bonus = view.page.locator("#tree-frame .node.bonus").bounding_box()
    assert frame["x"] <= bonus["x"]
    assert bonus["x"] + bonus["width"] <= frame["x"] + frame["width"]
    for name in ("clear", "temperature", "compare", "prompt", "send", "which", "follow"):
        box = view.page.locator(f"#{name}").bounding_box()
        assert box["x"] >= 0, name
        assert box["x"] + box["width"] <= width, name


def luminance(colour):
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_can_be_read_by_day_and_in_the_dark(site, opened):
    grounds = []
    for scheme in ("light", "dark"):
        view = opened(site, color_scheme=scheme).ready()
        find = "(s) => { const c = getComputedStyle(document.querySelector(s)); return [c.color, "
        find += "c.backgroundColor, c.borderBottomStyle]; }"
        ground = view.page.evaluate(find, "body")[1]
        grounds.append(luminance(ground))
        marks = set()
        tokens = [f".legend .token.{kind}" for kind in ("accepted", "bonus", "first")]
        for one in (*tokens, ".hint", "#send", ".fields label", "#figures .what", "#model"):
            colour, own, mark = view.page.evaluate(find, one)
            behind = ground if own.endswith(", 0)") else own
            pair = sorted([luminance(colour), luminance(behind)])
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, one
            marks |= {mark} if one in tokens else set()
        assert marks == {"solid", "dashed", "double"}  # another mark than colour
    assert grounds[0] > 0.9
    assert grounds[1] < 0.05


def test_a_key_is_asked_for_and_kept_nowhere(decoder, opened):
    with Engine(decoder) as engine, serving(engine, api_key="sesame") as site:
        view = opened(site)
        view.page.wait_for_selector("#key")
        assert "API key" in view.text("#problem")
        view.page.fill("#key", "wrong")
        with view.page.expect_response("**/eagle/info"):
            view.page.press("#key", "Enter")
        assert view.page.is_visible("#key-form")
        view.page.fill("#key", "sesame")
        view.page.press("#key", "Enter")
        view.ready()
        assert view.page.is_hidden("#key-form")
        assert view.page.is_hidden("#problem")
        view.ask("hello", max_tokens=3)
        view.answered()
        kept = "[localStorage.length, sessionStorage.length, document.cookie, location.href]"
        assert view.page.evaluate(kept)[:3] == [0, 0, ""]
        assert "sesame" not in view.page.evaluate(kept)[3]
        view.page.reload()
        view.page.wait_for_selector("#key")
        assert view.page.input_value("#key") == ""


def test_a_server_that_is_gone_is_said_so(decoder, opened):
    with Engine(decoder) as engine, serving(engine) as site:
        view = opened(site).ready()
    view.ask("hello")
    view.page.wait_for_selector("#problem")
    assert view.text("#problem") == "The server cannot be reached."
    assert view.page.input_value("#prompt") == "hello"
    assert view.troubles.pop() == "Failed to load resource: net::ERR_CONNECTION_REFUSED"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_each_file_comes_with_rules_that_let_in_nothing_else(site, file):
    answer = site.ask("GET", f"/page/{file.name}")
    assert answer.status == 200
    assert answer.content == file.read_bytes()
    rules = answer.headers["content-security-policy"]
    assert "default-src 'none'" in rules
    assert "unsafe" not in rules
    assert "*" not in rules
    text = file.read_text()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
    assert not re.search(r"<script>|<style|\son\w+=|\sstyle=", text)


@pytest.mark.parametrize("name", ["none.js", "..%2fapp.py", "../app.py", "", "app.js/x"])
def test_there_is_nothing_but_the_pages_files(site, name):
    assert site.ask("GET", f"/page/{name}").status == 404


def test_the_page_is_what_the_root_gives(site):
    answer = site.ask("GET", "/")
    assert answer.headers["content-type"].startswith("text/html")
    assert b'src="/page/app.js"' in answer.content
