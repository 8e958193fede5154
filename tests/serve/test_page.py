"""The page at `/` in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from recycle_onnx.files import read_json
from recycle_onnx.runtime.model import Model
from recycle_onnx.serve.page import page, policy
from recycle_onnx.serve.schema import SERVED
from tests.serve.browser import (
    MARKDOWN,
    answers,
    ask,
    asked,
    chat_with,
    finished,
    in_browser,
    keep_picture,
    open_page,
    press,
    said,
    start,
    text_of,
    turns,
)
from tests.serve.conftest import Running, serving, wait_until


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    driver = start(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@in_browser
def test_a_chat_streams_and_tints_recycled_tokens(
    browser: webdriver.Chrome, server: Running, endless_model: Model
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
    prompt = browser.find_element(By.ID, "prompt")
    assert prompt.get_property("value") == "the cat " * 40_000  # to be shortened, and sent again
    prompt.clear()
    ask(browser, "the dog", most=5)
    wait_until(finished(browser, 1))
    assert [role for role, _ in turns(browser)] == ["user", "assistant"]


@in_browser
def test_a_model_without_template_continues_texts(browser: webdriver.Chrome, sample_model: Model) -> None:
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
def test_the_page_asks_for_the_token(browser: webdriver.Chrome, endless_model: Model) -> None:
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


def expected_after(model: Model, prompt: str, count: int, **settings: Any) -> str:
    ids = model.tokenizer.encode(f"<|endoftext|>{prompt}assistant:", add_special_tokens=False).ids
    return model.generate(ids, max_new_tokens=count, **settings).text


@in_browser
def test_code_and_messages_are_copied(browser: webdriver.Chrome, server: Running) -> None:
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    browser.execute_cdp_cmd("Browser.grantPermissions", {"origin": server.url, "permissions": permissions})
    chat_with(browser, server, asked("Show me"), said(MARKDOWN))

    def copied() -> str:
        return str(browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])"))

    press(browser.find_element(By.CSS_SELECTOR, ".code"), "Copy")
    wait_until(lambda: copied() == 'print("<b>hi</b>")')
    press(browser.find_element(By.CSS_SELECTOR, ".answer > .actions"), "Copy")
    wait_until(lambda: copied() == MARKDOWN)
    press(browser.find_element(By.CSS_SELECTOR, ".asked"), "Copy")
    wait_until(lambda: copied() == "Show me")


@in_browser
def test_a_message_is_edited_and_asked_anew(browser: webdriver.Chrome, server: Running, endless_model: Model) -> None:
    open_page(browser, server)
    for text in ("the cat sat", "and then"):
        ask(browser, text, most=5)
        wait_until(lambda: not browser.find_elements(By.CSS_SELECTOR, ".busy"))
    press(browser.find_elements(By.CSS_SELECTOR, ".asked")[0], "Edit")
    browser.switch_to.active_element.send_keys("!", Keys.CONTROL, Keys.ENTER)
    wait_until(lambda: len(turns(browser)) == 2)
    wait_until(finished(browser, 1))
    expected = expected_after(endless_model, "user: the cat sat!\n", 5)
    assert turns(browser) == [("user", "the cat sat!"), ("assistant", expected)]
    press(browser.find_element(By.CSS_SELECTOR, ".asked"), "Edit")
    browser.switch_to.active_element.send_keys(" never", Keys.ESCAPE)
    assert turns(browser)[0] == ("user", "the cat sat!")
    assert browser.find_element(By.CSS_SELECTOR, ".mine").text == "the cat sat!"


@in_browser
def test_an_answer_is_regenerated_or_rewritten(browser: webdriver.Chrome, server: Running) -> None:
    open_page(browser, server)
    ask(browser, "the cat sat", most=5)
    wait_until(finished(browser, 1))
    before = turns(browser)
    press(answers(browser)[0], "Edit")
    editor = browser.switch_to.active_element
    editor.clear()
    editor.send_keys("something **else**", Keys.CONTROL, Keys.ENTER)
    assert turns(browser) == [before[0], ("assistant", "something **else**")]
    assert answers(browser)[0].find_element(By.TAG_NAME, "strong").text == "else"
    press(answers(browser)[0], "Regenerate")
    wait_until(lambda: turns(browser) == before)
    wait_until(finished(browser, 1))
    press(answers(browser)[0], "Other answer (1)")
    assert turns(browser) == [before[0], ("assistant", "something **else**")]
    press(answers(browser)[0], "Other answer (1)")
    assert turns(browser) == before


@in_browser
def test_an_answer_that_was_cut_goes_on(browser: webdriver.Chrome, server: Running, endless_model: Model) -> None:
    open_page(browser, server)
    ask(browser, "the cat sat", most=10)
    wait_until(finished(browser, 1))
    first = text_of(answers(browser)[0])
    ids = endless_model.tokenizer.encode(f"<|endoftext|>user: the cat sat\nassistant:{first}", add_special_tokens=False)
    expected = first + endless_model.generate(ids.ids, max_new_tokens=10).text
    press(answers(browser)[0], "Continue")
    wait_until(lambda: turns(browser)[-1] == ("assistant", expected))
    assert len(answers(browser)) == 1
    assert text_of(answers(browser)[0]) == expected


@in_browser
def test_chats_are_kept_opened_exported_and_deleted(browser: webdriver.Chrome, server: Running, tmp_path: Path) -> None:
    open_page(browser, server)
    for text in ("the first", "the second"):
        ask(browser, text, most=5)
        wait_until(finished(browser, 1))
        kept = turns(browser)
        browser.refresh()
        wait_until(lambda: bool(browser.find_elements(By.CSS_SELECTOR, "body[data-ready]")))
        assert turns(browser) == kept
        recycled = browser.execute_script("return runsOf('0011')")
        assert recycled == [2, 2]
        browser.find_element(By.ID, "reset").click()
        assert turns(browser) == []
    browser.find_element(By.ID, "show-chats").click()
    listed = browser.find_elements(By.CSS_SELECTOR, "#chats li")
    assert [one.find_element(By.CSS_SELECTOR, ".open").text for one in listed] == ["the second", "the first"]
    keep_picture(browser, "chats")
    browser.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    press(listed[1], "Export")
    wait_until((tmp_path / "the-first.json").exists)
    messages = read_json(tmp_path / "the-first.json")["messages"]
    assert messages[0] == {"role": "user", "content": "the first"}
    assert [message["role"] for message in messages] == ["user", "assistant"]
    press(listed[0], "the second")
    assert turns(browser)[0] == ("user", "the second")
    browser.find_element(By.ID, "show-chats").click()
    press(browser.find_elements(By.CSS_SELECTOR, "#chats li")[0], "Delete")
    browser.switch_to.alert.dismiss()
    assert turns(browser)[0] == ("user", "the second")
    press(browser.find_elements(By.CSS_SELECTOR, "#chats li")[0], "Delete")
    browser.switch_to.alert.accept()
    wait_until(lambda: turns(browser) == [])
    browser.refresh()
    wait_until(lambda: len(browser.find_elements(By.CSS_SELECTOR, "#chats li")) == 1)


@in_browser
def test_a_server_that_is_gone_costs_nothing_that_was_typed(browser: webdriver.Chrome, endless_model: Model) -> None:
    with serving(endless_model) as running:
        open_page(browser, running)
        ask(browser, "the cat", most=5)
        wait_until(finished(browser, 1))
        before = turns(browser)
    ask(browser, "a long question")
    wait_until(lambda: "does not answer" in answers(browser)[-1].text)
    assert browser.find_element(By.ID, "prompt").get_property("value") == "a long question"
    assert turns(browser) == before
    press(answers(browser)[0], "Regenerate")
    wait_until(lambda: len(answers(browser)) == 2 and "does not answer" in answers(browser)[-1].text)
    assert turns(browser) == before
    keep_picture(browser, "error")


@in_browser
def test_settings_are_those_of_the_server(browser: webdriver.Chrome, server: Running, endless_model: Model) -> None:
    open_page(browser, server)
    browser.find_element(By.ID, "show-settings").click()
    for name in SERVED.keys() - {"strategy"}:
        assert browser.find_element(By.ID, name).is_displayed(), name
    keep_picture(browser, "settings")
    browser.find_element(By.ID, "system").send_keys("be brief")
    for name, value in {"temperature": "0.8", "seed": "7", "top_k": "5"}.items():
        browser.find_element(By.ID, name).send_keys(value)
    press(browser.find_element(By.ID, "settings"), "Close")
    ask(browser, "the cat", most=12)
    wait_until(finished(browser, 1))
    prompt = "system: be brief\nuser: the cat\n"
    assert text_of(answers(browser)[0]) == expected_after(endless_model, prompt, 12, temperature=0.8, seed=7, top_k=5)
    browser.refresh()
    wait_until(lambda: bool(browser.find_elements(By.CSS_SELECTOR, "body[data-ready]")))
    assert browser.find_element(By.ID, "top_k").get_property("value") == "5"
    assert browser.find_element(By.ID, "system").get_property("value") == "be brief"


@in_browser
@pytest.mark.parametrize(("name", "value"), [("temperature", "5"), ("logit_bias", "{"), ("tools", "[")])
def test_a_wrong_setting_is_shown_before_anything_is_sent(
    browser: webdriver.Chrome, server: Running, name: str, value: str
) -> None:
    open_page(browser, server)
    browser.execute_script(f"document.getElementById('{name}').value = arguments[0]", value)
    ask(browser, "the cat")
    assert browser.find_element(By.ID, "settings").is_displayed()
    assert browser.switch_to.active_element.get_attribute("id") == name
    assert browser.find_element(By.ID, "prompt").get_property("value") == "the cat"
    assert turns(browser) == []


@in_browser
def test_the_keyboard_is_enough(browser: webdriver.Chrome, server: Running) -> None:
    open_page(browser, server)
    keys = browser.switch_to.active_element
    assert keys.get_attribute("id") == "prompt"
    browser.execute_script("document.getElementById('limit').value = 32000")
    keys.send_keys("one", Keys.SHIFT, Keys.ENTER, Keys.NULL, "two", Keys.ENTER)
    wait_until(lambda: len(answers(browser)) == 1 and len(text_of(answers(browser)[0])) > 20)
    browser.switch_to.active_element.send_keys("meanwhile", Keys.ENTER, Keys.ESCAPE)  # Enter waits, Escape stops
    wait_until(finished(browser, 1))
    assert "stopped" in answers(browser)[0].text
    assert turns(browser)[0] == ("user", "one\ntwo")
    assert browser.find_element(By.ID, "prompt").get_property("value") == "meanwhile"
    browser.find_element(By.ID, "prompt").clear()
    browser.find_element(By.ID, "prompt").send_keys(Keys.ARROW_UP)
    assert browser.switch_to.active_element.get_property("value") == "one\ntwo"
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    reached = set()
    for _ in range(40):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.add(browser.switch_to.active_element.text or browser.switch_to.active_element.get_attribute("id"))
    wanted = {"Chats", "Settings", "New", "Copy", "Edit", "Regenerate", "Attach", "Send", "prompt", "tint", "compare"}
    assert wanted <= reached
