"""Chat templates: where they are found, the plain one, and what goes wrong in them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from recycle_onnx.errors import InputError
from recycle_onnx.files import write_json
from recycle_onnx.runtime.chat_template import ChatTemplate, plain
from tests.helpers.templates import CHATML, GEMMA

CHAT = [{"role": "user", "content": "a cat"}]


def test_a_file_of_its_own_comes_first_and_others_go_by_name(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two {{ bos_token }}"}]
    config = {"chat_template": named, "bos_token": {"content": "<s>"}}
    write_json(tmp_path / "tokenizer_config.json", config)
    assert ChatTemplate.find(tmp_path).render(CHAT) == "one"
    assert ChatTemplate.find(tmp_path, "tool_use").render(CHAT) == "two <s>"
    assert ChatTemplate.find(tmp_path, "plain").render(CHAT) == plain(CHAT)
    (tmp_path / "chat_template.jinja").write_text("three")
    assert ChatTemplate.find(tmp_path).render(CHAT) == "three"


def test_turns_in_plain_text() -> None:
    chat = [
        {"role": "system", "content": "A talk."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": " A fox."},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "Here."},
    ]
    expected = "A talk.\n\nUser: Who?\nAssistant: A fox.\nUser: Where?\nAssistant: Here.\nAssistant:"
    assert plain(chat) == expected


def test_each_turn_begins_with_the_text_of_the_one_before() -> None:
    before = plain(CHAT)
    after = plain([*CHAT, {"role": "assistant", "content": " in a box"}, {"role": "user", "content": "b"}])
    assert after.startswith(before + " in a box\nUser: b")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", r"chat template 'default', line 1: "),
        ("\n{{ messages[9].content | trim", r"line 2: "),
        ("{{ messages[9].content.x }}", "refuses these messages: .*has no (element|attribute)"),
        ("{{ messages[0].content / 2 }}", "refuses these messages: unsupported operand"),
        ("{{ messages | nothing }}", "No filter named 'nothing'"),
        ("{{ raise_exception('Only three turns.') }}", "refuses these messages: Only three turns."),
    ],
)
def test_errors_of_a_template_are_one_line(template: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(InputError, match=message) as error:
        ChatTemplate.find(tmp_path).render(CHAT)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("token", [{"contant": "<s>"}, {"content": 7}, 7, ["<s>"], True])
def test_a_special_token_of_another_kind_is_refused(token: object, tmp_path: Path) -> None:
    """As str() of it, it would stand in every prompt."""
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": "{{ bos_token }}", "bos_token": token})
    with pytest.raises(InputError, match=r"tokenizer_config\.json: bos_token is .*; expected a text, or an object"):
        ChatTemplate.find(tmp_path)


@pytest.mark.parametrize("given", [7, {"default": "one"}, True])
def test_a_template_of_another_kind_is_refused(given: object, tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": given})
    with pytest.raises(InputError, match=r"tokenizer_config\.json: chat_template is .*; expected a text"):
        ChatTemplate.find(tmp_path)


@pytest.mark.parametrize("given", [["one"], [{"name": "default"}], [3], [{"name": "default", "template": 7}]])
def test_a_list_of_something_else_is_refused(given: list[object], tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": given})
    with pytest.raises(InputError, match="expected objects with name and template"):
        ChatTemplate.find(tmp_path)


def test_a_template_sees_the_messages_it_is_given_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(GEMMA)
    template = ChatTemplate.find(tmp_path)
    with pytest.raises(InputError, match="roles must alternate"):
        template.render(CHAT * 2)
    assert template.render(CHAT) == "<start_of_turn>user\na cat<end_of_turn>\n<start_of_turn>model\n"


def test_without_jinja2_plain_turns_work_and_a_template_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    code = (
        "import sys; sys.modules['jinja2'] = None\n"
        "from pathlib import Path\n"
        "from recycle_onnx import InputError\n"
        "from recycle_onnx.runtime.chat_template import ChatTemplate\n"
        f"folder = Path({str(tmp_path)!r})\n"
        f"print(ChatTemplate.find(folder, 'plain').render({CHAT!r}))\n"
        "try: ChatTemplate.find(folder)\n"
        "except InputError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.startswith("User: a cat\nAssistant:\n")
    assert out.endswith("needs jinja2: pip install 'recycle-onnx[chat]'\n")


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xef\xbb\xbf" + GEMMA.encode())
    (tmp_path / "tokenizer_config.json").write_bytes(b'\xef\xbb\xbf{"bos_token": "<s>"}')
    assert ChatTemplate.find(tmp_path).render(CHAT).startswith("<s><start_of_turn>user\n")
