"""The page at `/` in a real browser: Chromium, where this machine has one with its driver."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from recycle_onnx.runtime.model import RecycleModel
from recycle_onnx.serve.page import page, policy
from tests.serve.conftest import Running, serving, wait_until

CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1200,900",
)  # fmt: skip
in_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium with chromedriver here (Debian: chromium, chromium-driver)"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


def open_page(browser: webdriver.Chrome, running: Running) -> None:
    browser.get(running.url)
    wait_until(lambda: bool(browser.find_elements(By.CSS_SELECTOR, "body[data-ready]")))


def ask(browser: webdriver.Chrome, text: str, most: int = 30) -> None:
    browser.execute_script("document.getElementById('limit').value = arguments[0]", most)
    browser.find_element(By.ID, "prompt").send_keys(text, Keys.ENTER)


def answers(browser: webdriver.Chrome) -> list[Any]:
    return browser.find_elements(By.CSS_SELECTOR, ".answer")


def finished(browser: webdriver.Chrome, count: int) -> Callable[[], bool]:
    return lambda: (
        len(browser.find_elements(By.CSS_SELECTOR, ".answer dl div:nth-child(3)")) >= count
        and not browser.find_elements(By.CSS_SELECTOR, ".running")
        and browser.find_element(By.ID, "send").text == "Send"
    )


def turns(browser: webdriver.Chrome) -> list[tuple[str, str]]:
    """What the page would send before the next message."""
    return [(turn["role"], turn["content"]) for turn in browser.execute_script("return state.turns")]


def text_of(answer: Any) -> str:
    return str(answer.find_element(By.CSS_SELECTOR, ".text").get_property("textContent"))


def keep_picture(browser: webdriver.Chrome, name: str) -> None:
    """For people to look at, where they say where to."""
    if folder := os.environ.get("RECYCLE_ONNX_SCREENSHOTS"):
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))


@in_browser
def test_a_chat_streams_and_tints_recycled_tokens(
    browser: webdriver.Chrome, server: Running, endless_model: RecycleModel
) -> None:
    open_page(browser, server)
    Select(browser.find_element(By.ID, "strategy")).select_by_value("alternate")
    ask(browser, "the cat sat")
    wait_until(finished(browser, 1))
    prompt = "<|endoftext|>user: the cat sat\nassistant:"
    ids = endless_model.tokenizer.encode(prompt, add_special_tokens=False).ids
    expected = endless_model.generate(ids, max_new_tokens=30, strategy="alternate")
    (answer,) = answers(browser)
    assert text_of(answer) == expected.text
    spans = answer.find_elements(By.CSS_SELECTOR, ".recycled")
    assert "".join(str(span.get_property("textContent")) for span in spans) == "".join(
        token.text for token in endless_model.stream(ids, max_new_tokens=30, strategy="alternate") if token.recycled
    )
    assert spans[0].value_of_css_property("background-color") != "rgba(0, 0, 0, 0)"
    browser.find_element(By.ID, "tint").click()
    assert spans[0].value_of_css_property("background-color") == "rgba(0, 0, 0, 0)"
    figures = answer.find_element(By.CSS_SELECTOR, "dl").text
    assert "tokens/s" in figures
    assert "recycled" in figures
    keep_picture(browser, "chat")


@in_browser
def test_side_by_side_shows_full_and_the_strategy(browser: webdriver.Chrome, server: Running) -> None:
    open_page(browser, server)
    Select(browser.find_element(By.ID, "strategy")).select_by_value("verify")
    browser.find_element(By.ID, "compare").click()
    ask(browser, "the dog ran")
    wait_until(finished(browser, 2))
    left, right = answers(browser)
    assert text_of(left) == text_of(right)
    assert "same text" in right.find_element(By.CSS_SELECTOR, "h2").text
    assert "accepted" in right.find_element(By.CSS_SELECTOR, "dl").text
    assert not left.find_elements(By.CSS_SELECTOR, ".recycled")
    keep_picture(browser, "side-by-side")


@in_browser
def test_stop_ends_the_answer_and_frees_the_slot(browser: webdriver.Chrome, server: Running) -> None:
    open_page(browser, server)
    ask(browser, "the cat sat", most=32_000)
    wait_until(lambda: len(text_of(answers(browser)[0])) > 20)
    assert "tokens/s" in answers(browser)[0].text  # live
    browser.find_element(By.ID, "send").click()
    wait_until(lambda: server.busy == 0)
    wait_until(lambda: browser.find_element(By.ID, "send").text == "Send")
    assert "stopped" in answers(browser)[0].text
    ask(browser, "and again")
    wait_until(finished(browser, 2))


@in_browser
def test_new_leaves_nothing_of_an_answer_that_was_running(browser: webdriver.Chrome, server: Running) -> None:
    open_page(browser, server)
    ask(browser, "the cat sat", most=32_000)
    wait_until(lambda: len(text_of(answers(browser)[0])) > 20)
    browser.find_element(By.ID, "reset").click()
    wait_until(lambda: server.busy == 0)
    ask(browser, "and again", most=5)
    wait_until(finished(browser, 1))
    assert turns(browser) == [("user", "and again"), ("assistant", text_of(answers(browser)[0]))]


@in_browser
def test_a_message_that_was_refused_is_not_sent_again(browser: webdriver.Chrome, server: Running) -> None:
    open_page(browser, server)
    browser.execute_script("document.getElementById('prompt').value = 'the cat '.repeat(40000)")
    browser.find_element(By.ID, "send").click()
    wait_until(lambda: bool(answers(browser)) and "context" in answers(browser)[0].text)
    assert turns(browser) == []
    ask(browser, "the dog", most=5)
    wait_until(finished(browser, 1))
    assert [role for role, _ in turns(browser)] == ["user", "assistant"]


@in_browser
def test_a_model_without_template_continues_texts(browser: webdriver.Chrome, sample_model: RecycleModel) -> None:
    with serving(sample_model) as running:
        open_page(browser, running)
        browser.find_element(By.ID, "compare").click()
        keep_picture(browser, "empty")
        ask(browser, "Once upon a time, a little fox", most=120)
        wait_until(finished(browser, 2))
        expected = sample_model.generate("Once upon a time, a little fox", max_new_tokens=120, strategy="full").text
        assert text_of(answers(browser)[0]) == "Once upon a time, a little fox" + expected
        keep_picture(browser, "sample")
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        )
        keep_picture(browser, "dark")
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        )
        keep_picture(browser, "narrow")
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@in_browser
def test_the_page_asks_for_the_token(browser: webdriver.Chrome, endless_model: RecycleModel) -> None:
    with serving(endless_model, token="sesame") as running:
        browser.get(running.url)
        wait_until(lambda: browser.find_element(By.ID, "token").is_displayed())
        browser.find_element(By.ID, "token").send_keys("wrong", Keys.ENTER)
        wait_until(lambda: browser.find_element(By.ID, "token").is_displayed())
        browser.execute_script("document.getElementById('token').value = ''")
        browser.find_element(By.ID, "token").send_keys("sesame", Keys.ENTER)
        wait_until(lambda: bool(browser.find_elements(By.CSS_SELECTOR, "body[data-ready]")))
        ask(browser, "the cat", most=5)
        wait_until(finished(browser, 1))


@in_browser
def test_the_browser_complains_of_nothing_and_asks_nobody_else(browser: webdriver.Chrome, server: Running) -> None:
    browser.get_log("browser"), browser.get_log("performance")
    open_page(browser, server)
    ask(browser, "the cat", most=5)
    wait_until(finished(browser, 1))
    assert browser.get_log("browser") == []
    sent = [entry["message"] for entry in browser.get_log("performance") if 'requestWillBeSent"' in entry["message"]]
    assert sent
    assert all(f'"url":"{server.url}' in message or '"url":"data:' in message for message in sent)
    blocked = browser.execute_async_script(
        "const done = arguments[0]; fetch('http://127.0.0.1:9/').then(() => done('sent'), (e) => done(e.message))"
    )
    assert blocked != "sent"
    assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = bytes(page().body).decode()
    assert "http://" not in text
    assert "https://" not in text
    assert "default-src 'none'" in policy()
    assert "unsafe" not in policy()
    assert 'style="' not in text  # the policy forbids them
