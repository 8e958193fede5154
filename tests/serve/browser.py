"""A browser that opens the page at `/`: Chromium, where this machine has one with its driver."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.serve.conftest import Running, wait_until

CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1200,900",
)  # fmt: skip
in_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium with chromedriver here (Debian: chromium, chromium-driver)"
)


def start(profile: Path) -> webdriver.Chrome:
    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options, Service(DRIVER))


def open_page(browser: webdriver.Chrome, running: Running) -> None:
    """A page without chats or settings of tests before."""
    browser.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": running.url, "storageTypes": "local_storage"})
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
    return [(turn["role"], turn["content"]) for turn in browser.execute_script("return state.chat.turns")]


def text_of(answer: Any) -> str:
    return str(answer.find_element(By.CSS_SELECTOR, ".text").get_property("textContent"))


def keep_picture(browser: webdriver.Chrome, name: str) -> None:
    """For people to look at, where they say where to."""
    if folder := os.environ.get("RECYCLE_ONNX_SCREENSHOTS"):
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))


def chat_with(browser: webdriver.Chrome, running: Running, *turns: dict[str, Any]) -> None:
    """Show a chat that the browser kept."""
    open_page(browser, running)
    browser.execute_script(
        "const chat = {...newChat(), turns: arguments[0]}; keepChat(chat); openChat(chat.id)", list(turns)
    )


def said(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "strategy": "full", **fields}


def asked(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text, "typed": text, "files": []}


def press(box: Any, label: str) -> None:
    (button,) = (one for one in box.find_elements(By.TAG_NAME, "button") if one.text == label)
    button.click()


MARKDOWN = """# A title

Some **bold**, *slanted*, `code`, ~~gone~~ and [a link](https://example.org/a_b).

1. first
2. second
   - inner

> quoted

| a | b |
|---|---|
| 1 | 2 |

```python
print("<b>hi</b>")
```

<think> is no thought here
"""
