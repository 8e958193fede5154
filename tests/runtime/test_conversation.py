"""Conversations: the answers of a fresh run, for the work of what is new."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import recycle_onnx
from recycle_onnx.checkpoint import NewModule, attach
from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.export import export
from recycle_onnx.runtime.conversation import Conversation
from recycle_onnx.runtime.decoding.decoder import common_prefix
from recycle_onnx.runtime.generation import Generation
from recycle_onnx.runtime.model import Model
from tests.helpers import tiny
from tests.helpers.prompts import story_prompts

STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260K"
STRATEGIES = ("auto", "full", "alternate", "verify", "lookup")
TURNS = ("Tell me of a fox.", "And then?", "the cat sat on the mat, the dog sat on the log")
CHATML = """{{ bos_token }}{% for message in messages %}
<{{ message['role'] }}>{{ message['content'] }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}
<assistant>{% endif %}"""


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A random model with a chat template; several chunks a prompt."""
    folder = tmp_path_factory.mktemp("chatty")
    tiny.write_checkpoint(folder / "model", tiny.tiny_config(context_length=512), seed=5, num_layers=2)
    (folder / "model" / "chat_template.jinja").write_text(CHATML)
    export(folder / "model", folder / "bundle")
    model = recycle_onnx.load(folder / "bundle", threads=1)
    model.prefill_chunk = 32
    return model


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Model:
    if not STORIES.exists():
        pytest.skip("stories260K is not at hand")
    folder = tmp_path_factory.mktemp("stories")
    attach(STORIES, folder / "model", NewModule(num_layers=1))
    export(folder / "model", folder / "bundle")
    return recycle_onnx.load(folder / "bundle", threads=1)


@pytest.fixture(params=["chatty", "sample_model", "stories"])
def model(request: pytest.FixtureRequest) -> Model:
    found: Model = request.getfixturevalue(request.param)
    return found


def ids(tokens: Generation) -> list[int]:
    return [token.id for token in tokens]


def fresh(model: Model, chat: Conversation, **controls: object) -> list[int]:
    """The answer to all but the last message, by a run of its own on the whole text."""
    text = chat.template.render(chat.messages[:-1])
    prompt = model.tokenizer.encode(text, add_special_tokens=chat.template.special_tokens).ids
    return model.generate(prompt, stop=chat.template.stops, **controls).tokens


@pytest.mark.parametrize("sampled", [{}, {"temperature": 0.9, "seed": 3}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_turn_gives_the_tokens_of_a_fresh_run(model: Model, strategy: str, sampled: dict[str, float]) -> None:
    chat = model.conversation(system="You tell stories.")
    controls = {"strategy": strategy, "max_new_tokens": 24, **sampled}
    for turn in TURNS:
        answer = chat.send(turn, **controls)
        assert ids(answer) == fresh(model, chat, **controls)
    assert [message["role"] for message in chat.messages] == ["system", *["user", "assistant"] * 3]
    assert chat.messages[-1]["content"] == answer.result.text


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happened_before_an_answer_is_that_of_a_fresh_run(chatty: Model, seed: int, tmp_path: Path) -> None:
    """Other strategies, answers broken off or cancelled, turns taken back, a past that changed, copies, files."""
    script = random.Random(seed)
    chat = chatty.conversation(overflow="drop_oldest")

    def break_off() -> None:
        strategy = script.choice(STRATEGIES)
        chain = {"chain": 3} if strategy in ("verify", "lookup") else {}
        answer = chat.send(script.choice(TURNS), strategy=strategy, max_new_tokens=30, **chain)
        for _ in range(script.randrange(12)):
            next(answer, None)
        if script.random() < 0.5:
            answer.cancel()
            assert next(answer, None) is None

    def change_the_past() -> None:
        messages = chat.messages
        messages[script.randrange(len(messages))]["content"] = "the hen ran to the pen"
        chat.messages = messages

    def copy() -> None:
        nonlocal chat
        chat = chat.fork()

    def store() -> None:
        nonlocal chat
        chat.save(tmp_path / "chat")
        chat = chatty.load_conversation(tmp_path / "chat")

    for _ in range(10):
        deeds: list[Callable[[], None]] = [break_off, break_off, copy, store]
        if chat.messages:
            deeds += [change_the_past, chat.rewind]
        script.choice(deeds)()
        if script.random() < 0.6:
            controls = {"strategy": script.choice(STRATEGIES), "max_new_tokens": 10, "temperature": 0.8}
            assert ids(chat.send(script.choice(TURNS), **controls)) == fresh(chatty, chat, **controls)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_turn_reads_only_what_is_new(sample_model: Model, strategy: str) -> None:
    chat = sample_model.conversation()
    first = chat.send(TURNS[0], strategy=strategy, max_new_tokens=30)
    read = [*first.prompt, *ids(first)][: -2 if strategy == "alternate" else -1]  # nobody has read the last choice
    full, module = chat.decoder.full, chat.decoder.recycler
    assert module is not None
    known = module.length
    rows, module_rows = full.rows_read, module.rows_read
    second = chat.send(TURNS[1], strategy="alternate", max_new_tokens=30)
    assert second.prompt[: len(read)] == read
    next(second)
    assert second.result.stats.reused_tokens == len(read)
    assert full.rows_read - rows == len(second.prompt) - len(read)
    next(second)
    assert module.rows_read - module_rows == len(second.prompt) - known
    if strategy in ("alternate", "verify"):
        assert known >= len(read) - 3


def test_a_past_that_changed_is_read_from_there(sample_model: Model) -> None:
    chat = sample_model.conversation(system="You tell stories.")
    ids(chat.send(TURNS[0], strategy="verify", max_new_tokens=30))
    chat.messages = [*chat.messages[:-1], {"role": "assistant", "content": "There was a fox."}]
    read = list(chat.decoder.full.tokens)
    second = chat.send(TURNS[1], strategy="verify", max_new_tokens=4)
    alike = common_prefix(read, second.prompt)
    assert 10 < alike < len(read)
    next(second)
    assert second.result.stats.reused_tokens == alike - 1  # the module lacks the state of the last one
    controls = {"strategy": "verify", "max_new_tokens": 10}
    assert ids(chat.send(TURNS[2], **controls)) == fresh(sample_model, chat, **controls)


def test_a_turn_taken_back_leaves_no_trace(chatty: Model) -> None:
    chat = chatty.conversation()
    ids(chat.send(TURNS[0], max_new_tokens=10))
    before = chat.messages
    ids(chat.send(TURNS[1], max_new_tokens=10))
    chat.rewind()
    assert chat.messages == before
    again = chat.send(TURNS[2], max_new_tokens=10)
    next(again)
    assert again.result.stats.reused_tokens > len(before[0]["content"])
    chat.rewind(2)
    assert chat.messages == []
    with pytest.raises(InputError, match="turns is 1; expected 1 to 0"):
        chat.rewind()


def test_a_copy_goes_its_own_way(chatty: Model) -> None:
    chat = chatty.conversation()
    ids(chat.send(TURNS[0], max_new_tokens=10))
    copy = chat.fork()
    answers = [one.send(turn, max_new_tokens=10, strategy="alternate") for one in (chat, copy) for turn in TURNS[1:2]]
    first, second = ids(answers[0]), ids(answers[1])
    assert first == second
    assert answers[1].result.stats.reused_tokens == answers[0].result.stats.reused_tokens > 0
    ids(copy.send(TURNS[2], max_new_tokens=5))
    assert len(chat.messages) == 4
    assert not np.shares_memory(chat.decoder.full.cache.arrays[0], copy.decoder.full.cache.arrays[0])


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills itself")
def test_saved_killed_and_loaded_it_goes_on_as_if_nothing_had_been(sample_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "chat.safetensors"
    begin = (
        "import os, signal, recycle_onnx\n"
        f"chat = recycle_onnx.load({str(sample_bundle)!r}, threads=1).conversation(system='You tell stories.')\n"
        f"print(*[t.id for t in chat.send({TURNS[0]!r}, strategy='alternate', max_new_tokens=25)])\n"
        f"chat.save({str(path)!r})\n"
        "print(flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    out = subprocess.run([sys.executable, "-c", begin], capture_output=True, text=True, check=False)
    assert out.returncode == -signal.SIGKILL, out.stderr
    model = recycle_onnx.load(sample_bundle, threads=1)
    never_stopped = model.conversation(system="You tell stories.")
    first = ids(never_stopped.send(TURNS[0], strategy="alternate", max_new_tokens=25))
    assert first == [int(token) for token in out.stdout.split()]
    loaded = model.load_conversation(path)
    assert loaded.messages == never_stopped.messages
    for one, other in zip(never_stopped.decoder.full.rows(), loaded.decoder.full.rows(), strict=True):
        np.testing.assert_array_equal(one, other)
    answers = [chat.send(TURNS[1], strategy="alternate", max_new_tokens=40) for chat in (never_stopped, loaded)]
    assert ids(answers[0]) == ids(answers[1])
    assert answers[0].result.stats.reused_tokens == answers[1].result.stats.reused_tokens


@pytest.fixture
def saved(chatty: Model, tmp_path: Path) -> Path:
    chat = chatty.conversation(system="\U0001f98a naïve")
    ids(chat.send(TURNS[0], max_new_tokens=12, strategy="full"))
    chat.save(tmp_path / "chat.safetensors")
    return tmp_path / "chat.safetensors"


def test_a_saved_conversation_is_a_safetensors_file(chatty: Model, saved: Path) -> None:
    snapshot = chatty.load_conversation(saved).decoder.snapshot()
    found = load_file(saved)
    assert found.keys() == snapshot.keys()
    for name, array in snapshot.items():
        np.testing.assert_array_equal(found[name], array)
    assert len(found["states"]) > 12  # `full` left all of them to the module
    assert sys.platform == "win32" or saved.stat().st_mode & 0o777 == 0o600  # what was said is nobody else's
    with safe_open(saved, "np") as file:
        assert file.metadata()["bundle"] == chatty.bundle.digest


def test_another_models_conversation_is_refused(sample_model: Model, saved: Path) -> None:
    with pytest.raises(InputError, match="saved with another model"):
        sample_model.load_conversation(saved)


@pytest.mark.parametrize("where", [0, 3, 8, 9, 40, 300, 0.5, 0.9, 0.99999])
def test_a_flipped_bit_is_found(chatty: Model, saved: Path, where: float) -> None:
    data = bytearray(saved.read_bytes())
    data[where if isinstance(where, int) else int(where * len(data))] ^= 4
    saved.write_bytes(data)
    with pytest.raises(InputError, match=r"damaged") as error:
        chatty.load_conversation(saved)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"", b"text", b"\0" * 8, b"\xff" * 100, b"\x02" + b"\0" * 7 + b"[]", None, "cut"])
def test_what_is_no_saved_conversation_is_refused(chatty: Model, saved: Path, data: bytes | str | None) -> None:
    if isinstance(data, bytes):
        saved.write_bytes(data)
    elif data is None:
        saved.unlink()
    else:
        saved.write_bytes(saved.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"damaged|cannot read") as error:
        chatty.load_conversation(saved)
    assert "\n" not in str(error.value)
    ids(chatty.conversation().send(TURNS[0], max_new_tokens=2))


def test_what_cannot_be_saved_leaves_what_was_there(chatty: Model, tmp_path: Path) -> None:
    with pytest.raises(RecycleError, match="cannot write"):
        chatty.conversation().save(tmp_path / "nowhere" / "chat")
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_refused_and_changes_nothing(chatty: Model) -> None:
    chat = chatty.conversation()
    ids(chat.send(TURNS[0], max_new_tokens=5))
    before = chat.messages
    with pytest.raises(InputError, match=r"has at least \d+ tokens; the context of 512 leaves no room.*drop_oldest"):
        chat.send("a hen ran. " * 300)
    assert chat.messages == before
    assert ids(chat.send(TURNS[1], max_new_tokens=5)) == fresh(chatty, chat, max_new_tokens=5)


def test_the_oldest_turns_make_room(chatty: Model) -> None:
    chat = chatty.conversation(system="You tell stories.", overflow="drop_oldest")
    for index in range(12):
        controls = {"max_new_tokens": 40, "temperature": 1.0, "seed": index}
        answer = chat.send(f"{index}: " + TURNS[2], **controls)
        assert ids(answer) == fresh(chatty, chat, **controls)
        assert len(answer.prompt) + 40 <= 512
    messages = chat.messages
    assert messages[0]["role"] == "system"
    assert 3 < len(messages) < 20
    assert messages[1]["role"] == "user"
    assert not messages[1]["content"].startswith("0")
    assert messages[-2]["content"].startswith("11")
    with pytest.raises(InputError, match="shorten the last message"):
        chat.send("a hen ran. " * 300)


def test_a_model_without_a_template_takes_turns_in_plain_text(sample_model: Model) -> None:
    chat = sample_model.conversation(system="A story.")
    assert chat.template.name == "plain"
    answer = chat.send("Who is there?", max_new_tokens=12)
    assert sample_model.tokenizer.decode(answer.prompt) == "A story.\n\nUser: Who is there?\nAssistant:"
    assert answer.prompt[0] == 0  # once, as at every text's beginning
    assert answer.prompt.count(0) == 1
    ids(answer)
    text = chat.template.render(chat.messages)
    assert text.startswith("A story.\n\nUser: Who is there?\nAssistant:" + (answer.result.text or " "))


def test_an_answer_ends_where_the_model_takes_the_users_turn(sample_model: Model) -> None:
    chat = sample_model.conversation()
    answer = chat.send("Who is there?", max_new_tokens=12)
    assert "\nUser:" in answer.stop_strings
    assert chat.send("Who?", stop="fox", max_new_tokens=2).stop_strings == ("fox", "\nUser:")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overflow": "forget"}, "overflow 'forget' is not known; expected one of: error, drop_oldest"),
        ({"template": "tools"}, "chat template 'tools' is not known; .* has: default, plain"),
        ({"messages": [{"role": "user"}]}, "expected an object with role and content"),
        ({"messages": ["hello"]}, "a message is 'hello'"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}]}, "has tool calls, which"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, "has its content in parts"),
        ({"messages": [{"role": "user", "content": "a", "at": object()}]}, "a message is .*what JSON can hold"),
        ({"template_variables": {"tools": {1, 2}}}, "template_variables is .*what JSON can hold"),
    ],
)
def test_bad_options_are_refused(chatty: Model, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        chatty.conversation(**options)


def test_variables_may_have_any_name(chatty: Model) -> None:
    chat = chatty.conversation(template_variables={"name": "Bob", "folder": 3, "cls": None})
    assert chat.fork().template_variables == {"name": "Bob", "folder": 3, "cls": None}


def test_what_a_message_holds_belongs_to_its_conversation(chatty: Model) -> None:
    message = {"role": "user", "content": "a", "about": {"tags": ["x"]}}
    chat = chatty.conversation(messages=[message])
    other = chat.fork()
    message["about"]["tags"].append("y")  # type: ignore[index]
    chat.messages[0]["about"]["tags"].append("z")
    assert chat.messages == other.messages == [{"role": "user", "content": "a", "about": {"tags": ["x"]}}]


def test_half_a_character_in_a_message_is_refused_and_changes_nothing(chatty: Model) -> None:
    chat = chatty.conversation()
    with pytest.raises(InputError, match="half of one"):
        chat.send("a\ud800")
    assert chat.messages == []
    assert chat.send("a", max_new_tokens=1)


def test_an_answer_that_was_overtaken_ends(chatty: Model) -> None:
    chat = chatty.conversation()
    first = chat.send(TURNS[0], max_new_tokens=20)
    began = [next(first), next(first)]
    second = chat.send(TURNS[1], max_new_tokens=20)
    assert ids(second) == fresh(chatty, chat, max_new_tokens=20)
    assert list(first) == []
    assert first.result.finish_reason == "cancelled"
    assert first.tokens == began
    assert chat.messages[1]["content"] == first.result.text


def test_many_stories_in_one_conversation(sample_model: Model) -> None:
    chat = sample_model.conversation(overflow="drop_oldest")
    for index, prompt in enumerate(story_prompts(12)):
        controls = {"strategy": STRATEGIES[index % 5], "max_new_tokens": 8}
        assert ids(chat.send(prompt, **controls)) == fresh(sample_model, chat, **controls)
