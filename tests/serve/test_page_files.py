"""Files that come into the page: texts that go with a message, and chats that were exported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from recycle_onnx.files import read_json, write_json
from recycle_onnx.runtime.model import Model
from tests.serve.browser import (
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
from tests.serve.conftest import Running, serving, wait_until

CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
WHOLE: list[dict[str, Any]] = [
    {
        **asked("what is it?"),
        "content": "notes.md:\n```\na\n```\n\nwhat is it?",
        "files": [{"name": "notes.md", "text": "a"}],
    },
    said("", tool_calls=[CALL], figures=[["tokens", 3]]),
    {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    said("**Sun**", runs=[2, 3, 2], reason="length", others=[said("Rain", reason="stop")]),
]
"""Turns with everything that a chat keeps of them."""
MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello."}]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    driver = start(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


def shown_turns(browser: webdriver.Chrome) -> Any:
    return browser.execute_script("return JSON.parse(JSON.stringify(state.chat.turns))")


def kept_chats(browser: webdriver.Chrome) -> list[Any]:
    return list(browser.execute_script("return allChats()"))


def notice(browser: webdriver.Chrome) -> str:
    return browser.find_element(By.ID, "notice").text


def import_file(browser: webdriver.Chrome, *paths: Path) -> None:
    browser.find_element(By.ID, "import-file").send_keys("\n".join(map(str, paths)))


def drop(browser: webdriver.Chrome, kind: str, target: str, files: dict[str, str], text: str | None = None) -> bool:
    """Let a drop or a paste happen with files by their names, and text beside them; return whether the page took it."""
    script = """
        const [kind, target, files, text] = arguments;
        const carried = new DataTransfer();
        for (const [name, content] of Object.entries(files)) {
          carried.items.add(new File([content], name, {type: name.endsWith("png") ? "image/png" : "text/plain"}));
        }
        if (text !== null) carried.setData("text/plain", text);
        const shared = {bubbles: true, cancelable: true};
        const event = kind === "paste" ? new ClipboardEvent(kind, {...shared, clipboardData: carried})
          : new DragEvent(kind, {...shared, dataTransfer: carried});
        return !document.querySelector(target).dispatchEvent(event);
    """
    return bool(browser.execute_script(script, kind, target, files, text))


@in_browser
def test_text_files_are_attached_and_others_refused(browser: webdriver.Chrome, server: Running, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("a ``` fence\n", encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    open_page(browser, server)
    browser.find_element(By.ID, "file").send_keys(f"{tmp_path / 'notes.md'}\n{tmp_path / 'picture.png'}")
    wait_until(lambda: "picture.png is not a text" in browser.find_element(By.ID, "notice").text)
    assert browser.find_element(By.CSS_SELECTOR, "#files li").text.startswith("notes.md")
    ask(browser, "what is it?", most=5)
    wait_until(finished(browser, 1))
    assert turns(browser)[0] == ("user", "notes.md:\n````\na ``` fence\n````\n\nwhat is it?")
    assert browser.find_element(By.CSS_SELECTOR, ".file summary").text == "notes.md"
    assert browser.find_element(By.CSS_SELECTOR, ".mine").text == "what is it?"
    assert not browser.find_elements(By.CSS_SELECTOR, "#files li")


@in_browser
def test_files_are_dropped_anywhere_on_the_page(browser: webdriver.Chrome, server: Running) -> None:
    open_page(browser, server)
    assert drop(browser, "dragover", "main", {"a.txt": "one"})
    wait_until(lambda: browser.find_element(By.ID, "drop").is_displayed())
    keep_picture(browser, "drop")
    assert drop(browser, "drop", "main", {"a.txt": "one\r\ntwo\n", "b.txt": ""})
    wait_until(lambda: len(browser.find_elements(By.CSS_SELECTOR, "#files li")) == 2)
    assert not browser.find_element(By.ID, "drop").is_displayed()
    assert browser.execute_script("return state.files[0]") == {"name": "a.txt", "text": "one\ntwo"}
    browser.find_element(By.CSS_SELECTOR, "[aria-label='Remove b.txt']").click()
    ask(browser, "and?", most=5)
    wait_until(finished(browser, 1))
    assert turns(browser)[0] == ("user", "a.txt:\n```\none\ntwo\n```\n\nand?")


@in_browser
def test_words_that_are_dragged_or_pasted_stay_words(browser: webdriver.Chrome, server: Running) -> None:
    open_page(browser, server)
    assert not drop(browser, "dragover", "#prompt", {}, "words")
    assert not drop(browser, "drop", "#prompt", {}, "words")
    assert not drop(browser, "paste", "#prompt", {"cells.png": "picture of cells"}, "1\t2")  # as spreadsheets do
    assert not browser.find_elements(By.CSS_SELECTOR, "#files li")
    assert drop(browser, "paste", "#prompt", {"a.txt": "one"}, "a.txt")  # as file managers do
    wait_until(lambda: len(browser.find_elements(By.CSS_SELECTOR, "#files li")) == 1)
    assert drop(browser, "paste", "#prompt", {"shot.png": "\0"})
    wait_until(lambda: notice(browser) == "shot.png is not a text: it is not attached.")


@in_browser
def test_a_model_that_continues_texts_takes_no_files(browser: webdriver.Chrome, sample_model: Model) -> None:
    with serving(sample_model) as running:
        open_page(browser, running)
        assert drop(browser, "drop", "main", {"a.txt": "one"})  # or the browser would open the file
        assert not drop(browser, "paste", "#prompt", {"a.txt": "one"})
        assert not browser.find_elements(By.CSS_SELECTOR, "#files li")


@in_browser
def test_an_exported_chat_is_imported_as_it_was(browser: webdriver.Chrome, server: Running, tmp_path: Path) -> None:
    chat_with(browser, server, *WHOLE)
    browser.execute_script("state.chat.system = 'be brief'; keepChat(state.chat)")
    browser.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    browser.find_element(By.ID, "show-chats").click()
    press(browser.find_element(By.CSS_SELECTOR, "#chats li"), "Export")
    exported = tmp_path / "what-is-it.json"
    wait_until(exported.exists)
    assert read_json(exported)["messages"][0] == {"role": "system", "content": "be brief"}
    (before,) = kept_chats(browser)
    open_page(browser, server)
    assert kept_chats(browser) == []
    import_file(browser, exported)
    wait_until(lambda: len(kept_chats(browser)) == 1)
    assert shown_turns(browser) == before["turns"] == WHOLE
    (after,) = kept_chats(browser)
    assert {**after, "id": before["id"]} == before
    assert after["id"] != before["id"]
    assert browser.find_element(By.ID, "system").get_property("value") == "be brief"
    assert browser.find_element(By.CSS_SELECTOR, ".file summary").text == "notes.md"
    ask(browser, "go on", most=5)
    wait_until(lambda: len(turns(browser)) == 6)


@in_browser
def test_all_chats_go_into_one_file_and_come_back(browser: webdriver.Chrome, server: Running, tmp_path: Path) -> None:
    open_page(browser, server)
    for text in ("one", "two"):
        browser.execute_script(
            "const chat = {...newChat(), turns: arguments[0]}; keepChat(chat)", [asked(text), said("yes")]
        )
    browser.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    browser.find_element(By.ID, "show-chats").click()
    browser.find_element(By.ID, "export-all").click()
    wait_until((tmp_path / "chats.json").exists)
    before = kept_chats(browser)
    open_page(browser, server)
    import_file(browser, tmp_path / "chats.json")
    wait_until(lambda: len(kept_chats(browser)) == 2)
    assert [chat["turns"] for chat in kept_chats(browser)] == [chat["turns"] for chat in before]
    assert sorted(chat["title"] for chat in kept_chats(browser)) == ["one", "two"]


@in_browser
def test_messages_from_elsewhere_and_edited_ones_are_taken(
    browser: webdriver.Chrome, server: Running, tmp_path: Path
) -> None:
    open_page(browser, server)
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    write_json(tmp_path / "elsewhere.json", {"messages": [{"role": "user", "content": parts}, MESSAGES[1]], "title": 3})
    write_json(tmp_path / "edited.json", {"messages": MESSAGES, "turns": [asked("ho"), said("Hello.", figures=3)]})
    import_file(browser, tmp_path / "elsewhere.json", tmp_path / "edited.json")
    wait_until(lambda: len(kept_chats(browser)) == 2)
    for chat in kept_chats(browser):
        assert [(turn["role"], turn["content"]) for turn in chat["turns"]] == [("user", "hi"), ("assistant", "Hello.")]
        assert chat["title"] == "hi"
    assert browser.find_element(By.CSS_SELECTOR, ".answer h2").text == "imported"


FOREIGN: dict[str, tuple[str, str]] = {
    "no JSON": ("{", "is no chat that was exported, since it is not JSON, or not whole"),
    "half a file": (json.dumps({"messages": MESSAGES})[:-9], "since it is not JSON, or not whole"),
    "a number": ("3", "it has no list of messages"),
    "nothing": ("null", "it has no list of messages"),
    "a list of nothing": ("[null]", "it has no list of messages"),
    "no messages": (json.dumps({"messages": []}), "it has no messages"),
    "a robot": (json.dumps({"messages": [*MESSAGES, {"role": "robot"}]}), "message 3 has no role that is known here"),
    "a late system": (
        json.dumps({"messages": [*MESSAGES, {"role": "system", "content": ""}]}),
        "message 3 has no role",
    ),
    "a picture": (
        json.dumps({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        "the content of message 1 is not text",
    ),
    "no content": (json.dumps({"messages": [{"role": "user"}]}), "the content of message 1 is not text"),
    "half a call": (
        json.dumps({"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}]}),
        "a call of message 1 is none",
    ),
    "calls that are no list": (
        json.dumps({"messages": [{"role": "assistant", "content": "", "tool_calls": "calls"}]}),
        "a call of message 1 is none",
    ),
}


@in_browser
def test_a_damaged_or_foreign_file_is_one_message_and_loses_nothing(
    browser: webdriver.Chrome, server: Running, tmp_path: Path
) -> None:
    chat_with(browser, server, *WHOLE)
    browser.find_element(By.ID, "prompt").send_keys("half a thought")
    before = kept_chats(browser)
    whole, wrong = tmp_path / "whole.json", tmp_path / "wrong.json"
    write_json(whole, {"messages": MESSAGES})
    for name, (content, words) in FOREIGN.items():
        wrong.write_text(content, encoding="utf-8")
        browser.execute_script("say('')")
        import_file(browser, whole, wrong)
        wait_until(lambda: bool(notice(browser)))
        assert notice(browser).startswith("wrong.json "), name
        assert words in notice(browser), name
        assert notice(browser).endswith(": nothing is imported."), name
        assert kept_chats(browser) == before, name
        assert shown_turns(browser) == WHOLE, name
    assert browser.find_element(By.ID, "prompt").get_property("value") == "half a thought"
    keep_picture(browser, "import-refused")


@in_browser
def test_a_hostile_file_is_shown_as_far_as_it_makes_sense(
    browser: webdriver.Chrome, server: Running, tmp_path: Path
) -> None:
    """Whatever fields the turns of a file have, the page can draw them, and go on."""
    open_page(browser, server)
    odd: list[Any] = [3, "a", None, [], [3], [None], {}, [[1]], [-1], [1e9], [{"name": 3}], [{"role": "user"}]]
    for value in odd:
        fields = dict.fromkeys(("typed", "reason", "runs", "figures", "files", "others", "strategy"), value)
        content = {"messages": MESSAGES, "turns": [{**message, **fields} for message in MESSAGES], "updated": value}
        write_json(tmp_path / "odd.json", content)
        browser.execute_script("reset()")
        import_file(browser, tmp_path / "odd.json")
        wait_until(lambda: len(turns(browser)) == 2)
        assert [content for _, content in turns(browser)] == ["hi", "Hello."], value
    assert len(browser.find_elements(By.CSS_SELECTOR, "#chats li")) == len(odd)
    assert browser.get_log("browser") == []


@in_browser
def test_a_full_storage_takes_all_chats_or_none(browser: webdriver.Chrome, server: Running, tmp_path: Path) -> None:
    open_page(browser, server)
    long = [{"role": "user", "content": "x" * 3_000_000}]
    write_json(tmp_path / "long.json", [{"messages": MESSAGES}, {"messages": long}, {"messages": long}])
    import_file(browser, tmp_path / "long.json")
    wait_until(lambda: "storage is too full" in notice(browser))
    assert kept_chats(browser) == []
