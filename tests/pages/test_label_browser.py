"""The label page in a real browser: Chromium of the system, driven by Playwright."""

import errno
import os
import re
import shutil

import pytest

from guerdon.preference.answer_log import read_answers

from .labelling import Memory, make_pairs, serving

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]

BOTH = (
    "['first', 'second'].map((side) => document.querySelector(`#${side} canvas`).getContext('2d')"
    ".getImageData(5, 5, 1, 1).data[0])"
)
READY = "body[data-phase=ready]"
ERRORS = []
"""Errors of the page's script, in all tests."""
PLAYED = "#timeline[style*='scaleX(1)']"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip(f"there is no browser here: expected one of {', '.join(BROWSERS)}")
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(
                executable_path=executable, args=["--no-sandbox", "--disable-dev-shm-usage"]
            )
        except sync_api.Error as error:
            pytest.skip(f"{executable} does not start here: {error.message.splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def without_errors():
    """Errors of the page's script fail the test."""
    ERRORS.clear()
    yield
    assert not ERRORS


@pytest.fixture
def context(browser):
    context = browser.new_context(viewport={"width": 1000, "height": 700})
    context.set_default_timeout(60_000)  # the page itself gives a request up after 20 s
    yield context
    context.close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers.jsonl"


def opened(context, running, rater="ada", phase="ready"):
    """A tab that shows the page to a rater."""
    page = context.new_page()
    page.on("pageerror", lambda error: ERRORS.append(error))
    page.goto(f"{running.address}&rater={rater}")
    page.wait_for_selector(f"body[data-phase={phase}]")
    return page


def press(page, key, count):
    """Press a key and wait until the page shows how many pairs are answered."""
    page.keyboard.press(key)
    page.wait_for_selector(f"#bar[aria-valuenow='{count}']")
    page.wait_for_selector("body[data-phase=ready], body[data-phase=done]")


def grey(page, side):
    """Brightness of the picture that a side shows; frame n of the test data is 40 + n."""
    return page.evaluate(
        "(side) => document.querySelector(`#${side} canvas`).getContext('2d').getImageData(5, 5, 1, 1).data[0]", side
    )


def choices(path):
    return [(answer.pair, answer.choice) for answer in read_answers(path)]


def test_keys_answer_go_back_and_end(context, path):
    with serving(path, pairs=7) as running:
        page = opened(context, running)
        assert page.inner_text("#count") == "ada: 0 of 7" and "<script>" in page.inner_text("#task")
        keys = ["ArrowLeft", "ArrowRight", "ArrowDown", "t", "ArrowUp", "s"]
        for number, key in enumerate(keys, 1):
            press(page, key, number)
        made = ["first", "second", "tie", "tie", "skip", "skip"]
        assert choices(path) == [(f"p{n}", choice) for n, choice in enumerate(made)]
        for number, key in enumerate(("z", "u", "Backspace"), 1):
            press(page, key, 6 - number)
        assert choices(path) == [("p0", "first"), ("p1", "second"), ("p2", "tie")]
        page.reload()
        page.wait_for_selector(READY)
        press(page, "z", 2)  # also what was answered before the page was loaded
        for number in range(3, 8):
            press(page, "ArrowLeft", number)
        assert page.inner_text("h2 >> visible=true") == "All pairs are answered"
        press(page, "z", 6)
        assert page.inner_text("#count") == "ada: 6 of 7"
        answers = read_answers(path)
        assert {a.rater for a in answers} == {"ada"} and all(0 <= (a.seconds or -1) < 60 for a in answers)
        assert re.search(r"less than a minute left", page.inner_text("#left"))


def test_both_clips_run_on_one_clock_and_the_shorter_holds_its_last_picture(context, path):
    with serving(path, pairs=2) as running:
        page = opened(context, running)
        page.wait_for_selector(PLAYED)
        assert abs(grey(page, "first") - 45) <= 1 and abs(grey(page, "second") - 43) <= 1  # steps 0 … 5 and 0 … 3
        for speed in ("0.5×", "0.25×"):
            page.keyboard.press("-")
            assert page.inner_text("#speed") == speed
        page.keyboard.press("-")
        page.keyboard.press("r")
        seen = set()
        for _ in range(12):
            seen.add(tuple(page.evaluate(BOTH)))  # at one moment
            page.wait_for_timeout(120)
        assert len(seen) >= 4 and all(b == min(a, max(b for _, b in seen)) for a, b in seen), seen
        assert choices(path) == []
        page.keyboard.press("+")
        assert page.inner_text("#speed") == "0.5×"
        page.reload()
        page.wait_for_selector(READY)
        assert page.inner_text("#speed") == "0.5×"  # remembered


def test_keys_while_an_answer_is_on_its_way_do_not_answer_the_next_pair(context, path):
    with serving(path, pairs=5) as running:
        page = opened(context, running)
        held = []
        page.route("**/answer", lambda route: held.append(route))
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector("body[data-phase=sending]")
        for key in ("ArrowRight", "ArrowDown", "z", "ArrowRight"):
            page.keyboard.press(key)
        page.wait_for_timeout(100)
        assert len(held) == 1 and page.inner_text("#count") == "ada: 0 of 5"  # not shown before it is saved
        held[0].continue_()
        page.wait_for_selector(READY)
        assert choices(path) == [("p0", "first")] and page.inner_text("#count") == "ada: 1 of 5"
        page.unroute("**/answer")
        page.keyboard.down("ArrowLeft")  # a key that is held down repeats
        for _ in range(5):
            page.keyboard.down("ArrowLeft")
            page.wait_for_timeout(50)
        assert len(choices(path)) == 2


def test_a_second_tab_cannot_answer_a_pair_twice(context, path):
    with serving(path, pairs=5) as running:
        one, two = opened(context, running), opened(context, running)
        press(one, "ArrowLeft", 1)
        press(two, "ArrowRight", 1)
        assert "has an answer already (A is better)" in two.inner_text("#notice")
        assert choices(path) == [("p0", "first")]
        press(two, "ArrowRight", 2)
        assert two.is_hidden("#notice")
        one.keyboard.press("z")  # its last answer is no longer the last one
        one.wait_for_selector("text=Nothing was withdrawn")
        assert choices(path) == [("p0", "first"), ("p1", "second")]


def test_two_raters_answer_side_by_side(browser, context, path):
    other = browser.new_context()
    with serving(path, pairs=3, raters=["ada", "bo"]) as running:
        ada, bo = opened(context, running), other.new_page()
        bo.goto(running.address)
        bo.click("button:has-text('bo')")
        bo.wait_for_selector(READY)
        for number in range(1, 4):
            press(ada, "ArrowLeft", number)
            press(bo, "ArrowRight", number)
        press(bo, "z", 2)
        found = read_answers(path)
        assert [a.choice for a in found if a.rater == "ada"] == ["first"] * 3
        assert [a.choice for a in found if a.rater == "bo"] == ["second"] * 2
    other.close()


def test_an_answer_is_kept_while_the_server_is_away(context, path):
    with serving(path, pairs=4) as running:
        page = opened(context, running)
        press(page, "ArrowLeft", 1)
    port, token = int(running.base.rpartition(":")[2]), running.token
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("text=Your answer is kept here")
    assert choices(path) == [("p0", "first")] and page.inner_text("#count") == "ada: 1 of 4"
    with serving(path, pairs=4, port=port, token=token):
        page.wait_for_selector(READY)
        assert choices(path) == [("p0", "first"), ("p1", "second")] and page.is_hidden("#notice")
    with serving(path, pairs=4, port=port):  # another token, as after a restart of the command
        page.keyboard.press("ArrowRight")
        page.wait_for_selector("text=This address is no longer valid")
        assert len(choices(path)) == 2


def test_an_answer_whose_confirmation_was_lost_is_not_doubled(context, path):
    with serving(path, pairs=4) as running:
        page = opened(context, running)
        lost = []

        def lose(route):
            lost.append(route.fetch())  # the server has it
            route.abort()

        page.route("**/answer", lose, times=1)
        press(page, "ArrowDown", 1)
        assert lost[0].status == 200 and choices(path) == [("p0", "tie")] and page.is_hidden("#notice")
        # and where the tab is closed or reloaded in between
        page.route("**/answer", lambda route: route.abort(), times=1)
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector("text=Your answer is kept here")
        page.reload()
        page.wait_for_selector("#bar[aria-valuenow='2']")
        assert choices(path) == [("p0", "tie"), ("p1", "first")]


def test_a_full_disk_is_shown_and_the_answer_is_saved_when_there_is_space(context, path, monkeypatch):
    with serving(path, pairs=3) as running:
        page = opened(context, running)
        real = os.write

        def full(descriptor, data):
            if b'"pair"' in data:
                real(descriptor, data[:9])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(descriptor, data)

        monkeypatch.setattr(os, "write", full)
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector("text=No space left on device")
        assert "Your answer is kept here" in page.inner_text("#notice") and path.read_bytes() == b""
        monkeypatch.undo()
        page.wait_for_selector(READY)
        assert choices(path) == [("p0", "first")] and page.is_hidden("#notice")


def test_a_clip_that_cannot_be_read_can_only_be_skipped(context, path):
    pairs = make_pairs(2, make_pairs(1)[0].second.model_copy(update={"episode": 9}))
    with serving(path, pairs) as running:
        page = opened(context, running)
        assert "episode 9: the file is <cut>" in page.inner_text("#second") and page.is_disabled("#do-first")
        page.keyboard.press("ArrowLeft")
        page.wait_for_timeout(100)
        assert choices(path) == []
        press(page, "s", 1)
        assert choices(path) == [("p0", "skip")]


def test_a_phone_stacks_the_clips_and_answers_by_touch(browser, path):
    phone = browser.new_context(viewport={"width": 360, "height": 640}, is_mobile=True, has_touch=True)
    with serving(path, pairs=4, dataset=Memory(size=(48, 64))) as running:
        page = opened(phone, running)
        first, second = page.locator("#first").bounding_box(), page.locator("#second").bounding_box()
        assert second["y"] >= first["y"] + first["height"] and abs(first["width"] - second["width"]) < 1
        assert first["height"] > 100
        for name in ("first", "tie", "second", "skip", "undo", "replay"):
            box = page.locator(f"#do-{name}").bounding_box()
            assert box["height"] >= 44 and box["y"] + box["height"] <= 640 and box["x"] + box["width"] <= 360, name
        for name, count in (("first", 1), ("second", 2), ("undo", 1), ("skip", 2)):
            page.tap(f"#do-{name}")
            page.wait_for_selector(f"#bar[aria-valuenow='{count}']")
            page.wait_for_selector(READY)
        page.keyboard.press(" ")  # replays: a button that was tapped does not keep the space bar
        page.wait_for_timeout(100)
        assert choices(path) == [("p0", "first"), ("p1", "skip")]
    phone.close()


def test_reduced_motion_starts_no_clip_and_every_control_has_a_name(browser, path):
    still = browser.new_context(reduced_motion="reduce")
    with serving(path, pairs=2) as running:
        page = opened(still, running)
        page.wait_for_timeout(400)
        assert page.evaluate("document.querySelector('#timeline').style.transform") == "scaleX(0)"
        page.keyboard.press("r")
        page.wait_for_selector(PLAYED)
        names = page.evaluate(
            "[...document.querySelectorAll('button, canvas, input')].filter((e) => e.checkVisibility())"
            ".map((e) => e.getAttribute('aria-label') || e.textContent.trim())"
        )
        assert len(names) >= 10 and all(names)
        page.focus("#do-second")
        page.keyboard.press("Enter")  # buttons work from the keyboard too
        page.wait_for_selector("#bar[aria-valuenow='1']")
        assert choices(path) == [("p0", "second")]
    still.close()


def test_a_new_rater_is_asked_for_a_name(context, path):
    with serving(path, pairs=2) as running:
        page = context.new_page()
        page.goto(running.address)
        page.fill("#name", " bo ")
        page.keyboard.press("Enter")
        page.wait_for_selector(READY)
        assert "rater=bo" in page.url
        press(page, "ArrowLeft", 1)
        page.reload()
        page.wait_for_selector(READY)
        assert page.inner_text("#count") == "bo: 1 of 2"
    assert read_answers(path)[0].rater == "bo"
