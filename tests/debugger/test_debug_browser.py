"""The page in a real browser: typed, stepped by keys and buttons, edited, compared."""

import contextlib
import os
import shutil
import socket
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvicorn
from fastapi import Depends, FastAPI, Request
from oracle import Gate, Oracle
from playwright.sync_api import Page, expect, sync_playwright

from cwm_jax.debugger.entry import program_of_source
from cwm_jax.debugger.web import make_router

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SOURCE = """\
def double(n):
    m = n * 2
    return m

def start(k):
    total = 0
    for i in range(2):
        total += double(k)
    return total
"""
LIE = '<|line_sep|>{"n": "3", "m": "7"}<|action_sep|>    return m\n<|frame_sep|>'


@pytest.fixture(scope="module")
def frames(tracer):
    return tracer.trace(program_of_source(SOURCE, "start(3)").context).frames


@pytest.fixture(scope="module")
def url(tokenizer, frames):
    """Of a server whose model knows the truth about `SOURCE`, but for one frame."""
    second = [n for n, f in enumerate(frames) if f.source_line == "    return m\n"][2]
    with served(make_router(lambda: Oracle(tokenizer, frames, {second: LIE}), tokenizer)) as url:
        yield url


@contextlib.contextmanager
def served(router):
    app = FastAPI()
    app.include_router(router)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/debugger"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        message = "no chromium on PATH: `apt-get install chromium`"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    arguments = ["--no-sandbox"] if os.getuid() == 0 else []
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield started
        started.close()


@pytest.fixture
def page(browser, url):
    """The page, in a window of its own; what it complains about fails the test."""
    with contextlib.closing(browser.new_page(viewport={"width": 1200, "height": 1150})) as page:
        complaints = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if is_complaint(m) else None)
        page.set_default_timeout(10_000)
        page.goto(url)
        yield page
        assert not complaints


def is_complaint(message) -> bool:
    """A refused request is one that a test asks for."""
    return message.type == "error" and not message.text.startswith("Failed to load resource")


def start(page: Page, call: str = "start(3)") -> None:
    page.get_by_role("textbox", name="Program").fill(SOURCE)
    page.get_by_role("textbox", name="Call", exact=True).fill(call)
    page.get_by_role("button", name="Start debugging").click()
    expect(page.get_by_role("option")).to_have_count(1)


def line(page: Page, number: int):
    return page.locator("#code li").nth(number - 1)


def press(page: Page, key: str, frames: int) -> None:
    page.keyboard.press(key)
    expect(page.get_by_role("option")).to_have_count(frames)


def keep_screenshot(page: Page, tmp_path: Path, name: str) -> None:
    folder = Path(os.environ.get("CI_ARTIFACTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png", full_page=True)
    assert (folder / f"{name}.png").stat().st_size > 10_000


def test_a_program_is_debugged_compared_and_edited(page, tmp_path):
    start(page)
    for number, key in enumerate("sss", 2):
        press(page, key, number)
    expect(line(page, 7)).to_have_attribute("aria-current", "true")
    expect(page.locator("#stack li")).to_have_text(
        ["start() line 7 total = 0", "main() line 12 return start(3)"]
    )
    # a breakpoint in the gutter, and on to it with a button
    page.get_by_role("button", name="Breakpoint at line 4").click()
    expect(page.get_by_role("button", name="Breakpoint at line 4")).to_have_attribute(
        "aria-pressed", "true"
    )
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("status")).to_contain_text("Breakpoint")
    expect(line(page, 4)).to_have_attribute("aria-current", "true")
    value = page.get_by_label("Value of m")
    expect(value).to_have_value("6")
    expect(page.locator("#locals tr.changed th")).to_have_text(["m"])
    # the second time, the model is wrong
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_label("Value of m")).to_have_value("7")
    page.get_by_role("button", name="Compare with real run").click()
    last = page.get_by_role("option").last
    expect(last).to_have_class("different")
    expect(last).to_contain_text("✗ differs (first)")
    expect(page.get_by_role("option").first).to_have_class("same")
    expect(page.get_by_role("option").first).to_contain_text("✓ true")
    expect(page.locator("#locals .tag.different")).to_have_text("✗ truly 6")
    good = page.get_by_role("option").first.evaluate("e => getComputedStyle(e).borderLeftColor")
    bad = last.evaluate("e => getComputedStyle(e).borderLeftColor")
    assert good == "rgb(17, 99, 41)" and bad == "rgb(179, 22, 27)"
    expect(last.locator(".truth")).to_have_text("truly m=6")
    expect(page.locator("#summary")).to_contain_text("First difference at frame 14 (locals)")
    keep_screenshot(page, tmp_path, "debugger-compared")
    # the wrong value is mended in place
    value = page.get_by_label("Value of m")
    value.fill("6")
    value.press("Enter")
    expect(last).to_contain_text("edited")
    expect(last).to_have_class("same")
    expect(page.get_by_label("Value of m")).to_be_focused()
    page.get_by_label("Value of m").press("Escape")
    count = page.get_by_role("option").count()
    press(page, "b", count)
    expect(page.get_by_label("Value of m")).to_have_value("7")
    page.emulate_media(color_scheme="dark")
    keep_screenshot(page, tmp_path, "debugger-dark")


def test_the_keyboard_alone_is_enough(page):
    page.get_by_role("textbox", name="Program").focus()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(SOURCE)
    page.keyboard.press("Tab")
    page.keyboard.press("Control+a")
    page.keyboard.type("start(3)")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Step")).to_be_focused()
    press(page, "Enter", 2)
    press(page, "s", 3)
    press(page, "s", 4)
    press(page, "n", 5)
    press(page, "b", 4)
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    expect(page.locator("#frame-1")).to_have_attribute("aria-selected", "true")
    expect(page.get_by_role("listbox")).to_have_attribute("aria-activedescendant", "frame-1")
    expect(page.locator("#past")).to_contain_text("Frame 1 of 3")
    page.keyboard.press("End")
    expect(page.locator("#past")).to_be_hidden()
    for _ in range(30):  # to the first line's number
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.line") == "4":
            break
    page.keyboard.press("Enter")
    gutter = page.get_by_role("button", name="Breakpoint at line 4")
    expect(gutter).to_have_attribute("aria-pressed", "true")
    expect(gutter).to_be_focused()
    assert gutter.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    page.keyboard.press("c")
    expect(page.get_by_role("status")).to_contain_text("Breakpoint")
    page.keyboard.press("o")
    expect(page.get_by_role("option").last).to_contain_text("for i in range(2):")
    press(page, "r", 1)


def test_a_click_in_the_timeline_goes_there_and_on_from_there(page):
    start(page)
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("status")).to_contain_text("at its end")
    page.locator("#frame-4").click()
    expect(line(page, 8)).to_have_attribute("aria-current", "true")
    expect(page.get_by_label("Value of total")).to_have_count(0)  # only the last can be set
    page.get_by_role("button", name="Go on from here").click()
    expect(page.get_by_role("option")).to_have_count(5)
    page.get_by_role("button", name="Back").click()
    expect(page.get_by_role("status")).to_contain_text("at its end")


def test_errors_are_shown_and_written_text_is_never_markup(page):
    page.get_by_role("textbox", name="Program").fill("def f(:\n")
    page.get_by_role("button", name="Start debugging").click()
    expect(page.get_by_role("alert")).to_contain_text("SyntaxError")
    start(page)
    page.get_by_role("button", name="Back").click()
    expect(page.get_by_role("alert")).to_contain_text("nothing to take back")
    new = page.get_by_label("New variable")
    new.fill("x = <img src=x onerror=alert(1)>")
    new.press("Enter")
    expect(page.get_by_label("Value of x")).to_have_value("<img src=x onerror=alert(1)>")
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("how", ["closed", "left"])
def test_a_page_that_is_closed_or_left_stops_its_run(browser, tokenizer, frames, how):
    gate, interrupted = Gate(Oracle(tokenizer, frames)), threading.Event()

    async def note(request: Request) -> AsyncIterator[None]:
        yield  # goes on where the request was served without an error
        if request.url.path.endswith("/interrupt"):
            interrupted.set()

    with served(make_router(lambda: gate, tokenizer, api_dependencies=[Depends(note)])) as url:
        page = browser.new_page()
        page.goto(url)
        start(page)
        page.keyboard.press("c")
        assert gate.entered.wait(10)
        page.close() if how == "closed" else page.goto("about:blank")
        was_told = interrupted.wait(5)
        gate.opened.set()
        page.close()
    assert was_told
