"""What the page shows of a text, in a real browser: markdown, thoughts, calls, and nothing as HTML."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import recycle_onnx
from recycle_onnx.checkpoint import attach
from recycle_onnx.export import export
from recycle_onnx.files import read_json, write_json
from tests.helpers import tiny
from tests.serve.browser import (
    MARKDOWN,
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
    turns,
)
from tests.serve.conftest import TEMPLATE, Running, serving, wait_until

HOSTILE = """<img src=x onerror="window.hit = 1"><script>window.hit = 1</script>

[click](javascript:window.hit=1) [data](data:text/html,<script>window.hit=1</script>)
![picture](https://example.org/pixel.png) <svg onload="window.hit = 1">

```html"><img src=x onerror="window.hit = 1">
</code></pre><script>window.hit = 1</script>
```

| <iframe src="javascript:window.hit=1"></iframe> | b |
|---|---|
| <b>c</b> | [x](JaVaScRiPt:window.hit=1) |
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    driver = start(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@in_browser
def test_markdown_is_shown_as_such(browser: webdriver.Chrome, server: Running) -> None:
    chat_with(browser, server, asked("Show me"), said(MARKDOWN))
    prose = browser.find_element(By.CSS_SELECTOR, ".prose")
    shown = {
        "h3": "A title", "strong": "bold", "em": "slanted", "p code": "code", "del": "gone", "a": "a link",
        "ol > li > ul > li": "inner", "blockquote": "quoted", "th": "a", "td": "1",
        "pre": 'print("<b>hi</b>")', ".code-bar span": "python",
    }  # fmt: skip
    for selector, text in shown.items():
        assert prose.find_element(By.CSS_SELECTOR, selector).text == text, selector
    link = prose.find_element(By.TAG_NAME, "a")
    assert link.get_attribute("href") == "https://example.org/a_b"
    assert "noopener" in str(link.get_attribute("rel"))
    assert "<think> is no thought here" in prose.text
    keep_picture(browser, "markdown")


@in_browser
def test_a_streamed_text_ends_as_the_whole_one(browser: webdriver.Chrome, server: Running) -> None:
    open_page(browser, server)
    script = """
        const shown = (sizes) => {
          const box = element("div"), growing = new Growing(box, false);
          for (const size of sizes) growing.show(new Marked(text.slice(0, size), "01".repeat(size).slice(0, size)));
          return box.innerHTML;
        };
        const [text] = arguments;
        return [shown([...text].map((_, index) => index + 1)), shown([text.length])];
    """
    grown, whole = browser.execute_script(script, MARKDOWN * 2)
    assert grown == whole
    assert 'class="recycled"' in whole


@in_browser
@pytest.mark.parametrize("text", [HOSTILE, "<think>" + HOSTILE + "</think>" + HOSTILE])
def test_what_a_model_writes_never_becomes_html(browser: webdriver.Chrome, server: Running, text: str) -> None:
    browser.get_log("performance")
    chat_with(browser, server, asked(HOSTILE), said(text, tool_calls=[call_of(HOSTILE, HOSTILE)]))
    own = {"a", "button", "code", "div", "p", "pre", "span", "table", "tbody", "td", "th", "thead", "tr"}
    assert tags_in(browser, ".text") <= own
    assert tags_in(browser, ".thoughts") | tags_in(browser, ".call") <= own | {"summary", "details"}
    assert browser.execute_script("return window.hit") is None
    addresses = [link.get_attribute("href") for link in browser.find_elements(By.CSS_SELECTOR, "#log a")]
    assert set(addresses) == {"https://example.org/pixel.png"}  # an image is a link, and nothing is fetched
    sent = [entry["message"] for entry in browser.get_log("performance") if 'requestWillBeSent"' in entry["message"]]
    assert not any("example.org" in message for message in sent)
    assert 'onerror="window.hit = 1"' in browser.find_element(By.CSS_SELECTOR, ".prose").text


def tags_in(browser: webdriver.Chrome, selector: str) -> set[str]:
    script = "return [...document.querySelectorAll(arguments[0] + ' *')].map((one) => one.tagName.toLowerCase())"
    return set(browser.execute_script(script, selector))


def call_of(name: str, arguments: str) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


@in_browser
@pytest.mark.parametrize(
    "text", ["*" * 30_000, "`" * 30_000, "[" * 30_000, "> " * 10_000, "- " * 10_000, "_a" * 20_000]
)
def test_no_text_keeps_the_page_busy(browser: webdriver.Chrome, server: Running, text: str) -> None:
    open_page(browser, server)
    script = (
        "const begun = performance.now(); new Growing(element('div'), false)"
        ".show(new Marked(arguments[0], '0'.repeat(arguments[0].length))); return performance.now() - begun"
    )
    assert browser.execute_script(script, text) < 5000


@in_browser
def test_thoughts_are_folded(browser: webdriver.Chrome, server: Running) -> None:
    for text in ("<think>\nhm, well\n</think>\n\nYes.", "hm, well\n</think>\n\nYes."):
        chat_with(browser, server, asked("Is it?"), said(text))
        assert browser.find_element(By.CSS_SELECTOR, ".text").text == "Yes."
        thoughts = browser.find_element(By.CSS_SELECTOR, ".thoughts")
        assert thoughts.text == "Thoughts"
        thoughts.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
        assert "hm, well" in thoughts.text
    keep_picture(browser, "thoughts")


@in_browser
def test_a_call_is_shown_and_its_result_sent(browser: webdriver.Chrome, server: Running) -> None:
    call = call_of("weather", '{"city":"Oslo"}')
    chat_with(browser, server, asked("Weather?"), said("", tool_calls=[call], reason="tool_calls"))
    assert "weather" in browser.find_element(By.CSS_SELECTOR, ".call summary").text
    assert '"city": "Oslo"' in browser.find_element(By.CSS_SELECTOR, ".call pre").text
    keep_picture(browser, "call")
    browser.execute_script("document.getElementById('limit').value = 5")
    browser.find_element(By.CSS_SELECTOR, ".results textarea").send_keys("4 degrees")
    press(browser.find_element(By.CSS_SELECTOR, ".results"), "Send results")
    wait_until(lambda: [role for role, _ in turns(browser)] == ["user", "assistant", "tool", "assistant"])
    assert turns(browser)[2] == ("tool", "4 degrees")


@in_browser
def test_a_call_that_streams_in_is_no_text(browser: webdriver.Chrome, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    checkpoint = tiny.write_base(tmp_path / "model", tiny.tiny_config(context_length=8192), seed=7)
    config = read_json(checkpoint / "tokenizer_config.json")
    write_json(checkpoint / "tokenizer_config.json", {**config, "chat_template": TEMPLATE})
    attach(checkpoint, checkpoint)
    export(checkpoint, tmp_path / "bundle")
    with recycle_onnx.load(tmp_path / "bundle", threads=1) as model, serving(model) as running:
        open_page(browser, running)
        browser.execute_script(
            "$('tools').value = arguments[0]; $('tool_choice').value = 'required'", json.dumps([tool])
        )
        ask(browser, "the cat", most=60)
        wait_until(finished(browser, 0))
        assert browser.find_elements(By.CSS_SELECTOR, ".results"), browser.find_element(By.ID, "log").text
        (turn,) = browser.execute_script("return state.chat.turns.slice(1)")
        assert turn["content"] == ""
        assert turn["tool_calls"][0]["function"]["name"] == "look"
        assert "look" in browser.find_element(By.CSS_SELECTOR, ".call summary").text


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_small_telephone(browser: webdriver.Chrome, server: Running, scheme: str) -> None:
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    try:
        long = "```\n" + "wide " * 60 + "\n```\n" + "x" * 300
        chat_with(browser, server, asked("y" * 300), said(long), asked("Show me"), said(MARKDOWN))
        keep_picture(browser, f"telephone-{scheme}")
        for shown in ((), ("show-chats",), ("show-chats", "show-settings")):
            for name in shown[-1:]:
                browser.find_element(By.ID, name).click()
            keep_picture(browser, f"telephone-{scheme}-{len(shown)}")
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
            for box in ("scroll", "side", "settings"):
                assert browser.execute_script(f"return $('{box}').scrollWidth <= $('{box}').clientWidth"), box
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
