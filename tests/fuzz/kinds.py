"""What is mutated, and what is done with it: a kind is made once a worker, and then tried again and again."""

from __future__ import annotations

import json
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import ClassVar

import recycle_onnx
from recycle_onnx.bundle import Bundle, describe_files
from recycle_onnx.checkpoint import Checkpoint
from recycle_onnx.checkpoint.join import join
from recycle_onnx.checkpoint.module import Module
from recycle_onnx.checkpoint.sources.gguf import convert
from recycle_onnx.errors import InputError
from recycle_onnx.export import export
from recycle_onnx.files import read_json, write_json
from recycle_onnx.runtime import tensor_file
from recycle_onnx.runtime.chat_template import ChatTemplate
from recycle_onnx.runtime.decoding.calibration import calibration_file
from recycle_onnx.runtime.decoding.decoder import Decoder
from recycle_onnx.serve.prompt_files import PromptFiles
from tests.fuzz.gguf_text import read_gguf, written
from tests.fuzz.mutations import TEXTS, mutated, mutated_bytes, mutated_json, mutated_text
from tests.fuzz.requests import Requests
from tests.helpers import tiny
from tests.helpers.bombs import BOMBS, ORDINARY
from tests.helpers.gguf_writer import write_gguf
from tests.helpers.templates import CHATML, LLAMA3

PROMPT, FEW = "the cat", 3
TEMPLATES = (CHATML, LLAMA3, *(text for text, _ in ORDINARY))
WORD = re.compile(r"(\w+|\s+|[^\w\s]+)")
WORDS = (
    "messages", "loop", "self", "caller", "ns", "range", "2", "-1", "99999", "1e308", "**", "*", "%", "~", "+", "|",
    "[::-1]", "not", "in", "is", "none", "''", "[]", "{}", "join", "map", "sort", "length", "format", "replace",
    "tojson", "recursive",
)  # fmt: skip


class Kind(ABC):
    """One kind of mutant in `folder`, which is its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.build()

    @abstractmethod
    def build(self) -> None:
        """Make what is to be mutated."""

    @abstractmethod
    def prepare(self, dice: Random) -> None:
        """Put a mutant there."""

    @abstractmethod
    def use(self) -> None:
        """Do with it what a user would do; a RecycleError says that it was refused."""

    def restore(self) -> None:  # noqa: B027 -- most have nothing to do
        """Put things back."""


class Files(Kind):
    """A folder where one or two files are mutated; the others stay as they are."""

    names: ClassVar[tuple[str, ...]]

    def build(self) -> None:
        self.root = self.make()
        self.whole = {name: (self.root / name).read_bytes() for name in self.names if (self.root / name).exists()}

    @abstractmethod
    def make(self) -> Path:
        """The folder."""

    def prepare(self, dice: Random) -> None:
        for name in dice.sample(self.names, min(len(self.names), dice.choice((1, 1, 1, 2)))):
            (self.root / name).write_bytes(self.mutant(dice, name, self.whole.get(name, b"{}")))

    def mutant(self, dice: Random, name: str, data: bytes) -> bytes:
        if name.endswith(".json"):
            return mutated_json(dice, data)
        return mutated_safetensors(dice, data) if name.endswith(".safetensors") else mutated_bytes(dice, data)

    def restore(self) -> None:
        for name in self.names:
            if name in self.whole:
                (self.root / name).write_bytes(self.whole[name])
            else:
                (self.root / name).unlink(missing_ok=True)


def tiny_bundle(folder: Path) -> Path:
    """With room for a conversation."""
    export(tiny.write_checkpoint(folder / "model", tiny.tiny_config(context_length=512)), folder / "bundle")
    return folder / "bundle"


def run(bundle: Path) -> None:
    """Load, continue a text, and answer a message."""
    with recycle_onnx.load(bundle, threads=1) as model:
        model.generate(PROMPT, max_new_tokens=FEW)
        for _ in model.conversation().send(PROMPT, max_new_tokens=FEW):
            pass


class Manifests(Files):
    """recycle.json."""

    names = ("recycle.json",)

    def make(self) -> Path:
        return tiny_bundle(self.folder)

    def use(self) -> None:
        run(self.root)


class Bundles(Files):
    """A bundle's other files, with a manifest that vouches for them, as their author's would."""

    names = (
        "config.json", "genai_config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "model.onnx.data", "recycler.onnx.data",
    )  # fmt: skip

    def make(self) -> Path:
        made = tiny_bundle(self.folder)
        self.manifest = (made / "recycle.json").read_bytes()
        write_json(
            made / "tokenizer_config.json", {**read_json(made / "tokenizer_config.json"), "chat_template": CHATML}
        )
        return made

    def prepare(self, dice: Random) -> None:
        super().prepare(dice)
        raw = json.loads(self.manifest)
        for name, file in describe_files(self.root, raw["files"]).items():
            raw["files"][name] = {"bytes": file.bytes, "sha256": file.sha256}
        write_json(self.root / "recycle.json", raw)

    def use(self) -> None:
        run(self.root)

    def restore(self) -> None:
        super().restore()
        (self.root / "recycle.json").write_bytes(self.manifest)


class Checkpoints(Files):
    """A checkpoint with a module, to be exported."""

    names = (
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors",
        "recycler/config.json", "recycler/model.safetensors", "special_tokens_map.json", "source.json",
    )  # fmt: skip

    def make(self) -> Path:
        made = tiny.write_checkpoint(self.folder / "model", tiny.tiny_config())
        recycler = made / "recycler" / "config.json"
        write_json(recycler, {**read_json(recycler), "base": None})  # whose digests would find every mutant of the base
        return made

    def use(self) -> None:
        with Checkpoint.open(self.root, base_only=False):
            pass
        export(self.root, self.folder / "out")

    def restore(self) -> None:
        super().restore()
        shutil.rmtree(self.folder / "out", ignore_errors=True)


class Modules(Files):
    """A published module, to be joined with a base."""

    names = ("config.json", "model.safetensors", "reference.safetensors", "draft_vocabulary.json")

    def make(self) -> Path:
        checkpoint = tiny.write_checkpoint(self.folder / "model", tiny.tiny_config())
        return checkpoint / "recycler"

    def use(self) -> None:
        self.base = (
            tiny.write_base(self.folder / "base", tiny.tiny_config()) if not hasattr(self, "base") else self.base
        )
        join(self.base, self.folder / "out", Module.open(self.root))

    def restore(self) -> None:
        super().restore()
        shutil.rmtree(self.folder / "out", ignore_errors=True)


class Ggufs(Kind):
    """A GGUF file: another value, another tensor, or other bytes in its header."""

    def build(self) -> None:
        checkpoint = tiny.write_base(self.folder / "model", tiny.tiny_config())
        self.path, self.out = self.folder / "model.gguf", self.folder / "out"
        write_gguf(self.path, checkpoint)
        self.data = self.path.read_bytes()
        self.raw, self.header = read_gguf(self.path)

    def prepare(self, dice: Random) -> None:
        self.out.mkdir()
        if dice.random() < 0.4:
            self.path.write_bytes(mutated_bytes(dice, self.data, self.header))
        else:
            self.path.write_bytes(written(mutated(dice, self.raw), self.data[self.header :]))

    def use(self) -> None:
        convert(self.path, self.out)
        with Checkpoint.open(self.out):
            pass

    def restore(self) -> None:
        shutil.rmtree(self.out)


class Conversations(Kind):
    """A saved conversation: bytes, or arrays and texts with the right checksum."""

    def build(self) -> None:
        self.model = recycle_onnx.load(tiny_bundle(self.folder), threads=1)
        self.path = self.folder / "saved"
        chat = self.model.conversation()
        for _ in chat.send(PROMPT, max_new_tokens=FEW):
            pass
        chat.save(self.path)
        self.data = self.path.read_bytes()
        self.arrays, self.about = tensor_file.read(self.path)

    def prepare(self, dice: Random) -> None:
        if dice.random() < 0.3:
            self.path.write_bytes(mutated_safetensors(dice, self.data))
            return
        arrays, about = dict(self.arrays), dict(self.about)
        if dice.random() < 0.6:
            name = dice.choice([*about, "messages", "messages", "template_variables"])
            if name in ("messages", "template_variables"):
                about[name] = mutated_json(dice, about[name].encode()).decode(errors="replace")
            else:
                about[name] = mutated_text(dice, about[name])
        else:
            name = dice.choice(list(arrays))
            array = arrays.pop(name)
            if dice.random() < 0.9:
                arrays[name] = _other_array(dice, array)
        tensor_file.write(self.path, arrays, about)

    def use(self) -> None:
        for _ in self.model.load_conversation(self.path).send(PROMPT, max_new_tokens=FEW):
            pass


class Templates(Kind):
    """A chat template, in the tokenizer's config or as a file of its own."""

    def build(self) -> None:
        (self.folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": {"content": "</s>"}}')

    def prepare(self, dice: Random) -> None:
        bomb = dice.random() < 0.03
        text = dice.choice(list(BOMBS.values()) if bomb else TEMPLATES)
        if dice.random() < 0.3:
            text = mutated_text(dice, text, (*TEXTS, "{{", "}}", "{%", "%}", "messages", "range(99999)", "**"))
        else:
            text = _other_words(dice, text)
        (self.folder / "chat_template.jinja").write_text(text, encoding="utf-8", errors="surrogatepass")

    def use(self) -> None:
        template = ChatTemplate.find(self.folder)
        template.render([{"role": "user", "content": "Tell me of a fox."}, {"role": "assistant", "content": "Once …"}])


class Caches(Kind):
    """Files of the user's cache: whatever is in them, the bundle loads and says the same."""

    def build(self) -> None:
        self.bundle = tiny_bundle(self.folder)
        with recycle_onnx.load(self.bundle, threads=1) as model:
            self.expected = model.generate(PROMPT, max_new_tokens=FEW).tokens
        self.paths: list[Path] = []
        from recycle_onnx.cache import cache_folder

        bundle, cache = Bundle.open(self.bundle), cache_folder()
        calibration = calibration_file(bundle, "cpu", 1)
        calibration.parent.mkdir(parents=True, exist_ok=True)
        from recycle_onnx.runtime.decoding.calibration import MachineCalibration

        steps = {"full_1": 2.0, "recycle_1": 0.5, "recycle_2": 0.6}
        MachineCalibration.of_this_machine(step_ms=steps, acceptance={"module": [0.5]}).save(bundle, "cpu", 1)
        self.paths = [cache / "verified.json", calibration]
        self.whole = {path: path.read_bytes() for path in self.paths}

    def prepare(self, dice: Random) -> None:
        path = dice.choice(self.paths)
        path.write_bytes(mutated_json(dice, self.whole[path]))

    def use(self) -> None:
        try:
            with recycle_onnx.load(self.bundle, threads=1) as model:
                tokens = model.generate(PROMPT, max_new_tokens=FEW).tokens
        except InputError as error:
            raise AssertionError("a cache stopped a load") from error
        assert tokens == self.expected

    def restore(self) -> None:
        for path, data in self.whole.items():
            path.write_bytes(data)


class Prompts(Kind):
    """A file of a prompt: the answer comes whatever is in it, and is the same unless the checksum is right too."""

    def build(self) -> None:
        self.model = recycle_onnx.load(tiny_bundle(self.folder), threads=1)
        self.model.prefill_chunk = 16
        self.files = PromptFiles(self.model, 1e9)
        decoder = self.model.decoder("verify")
        self.prompt = self.model.encode(PROMPT * 8)
        self.expected = self._answer(decoder)
        unsaved = self.files.unsaved(decoder)
        assert unsaved is not None
        assert self.files.write(unsaved)
        self.path = unsaved.chain[0].path
        self.data = self.path.read_bytes()

    def prepare(self, dice: Random) -> None:
        self.forged = dice.random() < 0.3
        if not self.forged:
            self.path.write_bytes(mutated_safetensors(dice, self.data))
            return
        self.path.write_bytes(self.data)
        arrays, about = tensor_file.read(self.path)
        name = dice.choice(list(arrays))
        tensor_file.write(self.path, {**arrays, name: _other_array(dice, arrays[name])}, about)

    def use(self) -> None:
        decoder = self.model.decoder("verify")
        decoder.recall = self.files.restore
        tokens = self._answer(decoder)
        assert self.forged or tokens == self.expected

    def _answer(self, decoder: Decoder) -> list[int]:
        return self.model.stream(self.prompt, strategy="verify", max_new_tokens=FEW, decoder=decoder).finish().tokens


def _other_words(dice: Random, text: str) -> str:
    """A template with words of another one in the place of some: most are templates still."""
    words, others = WORD.split(text), WORD.findall(dice.choice(TEMPLATES))
    for _ in range(dice.choice((1, 2, 5))):
        words[dice.randrange(len(words))] = dice.choice((*others, *WORDS))
    return "".join(words)


def mutated_safetensors(dice: Random, data: bytes) -> bytes:
    """Bytes of the header or behind it, or another header of the right length."""
    length = int.from_bytes(data[:8], "little")
    if dice.random() < 0.3 or len(data) < 8:
        return mutated_bytes(dice, data, 8 + length)
    header = json.dumps(mutated(dice, json.loads(data[8 : 8 + length]))).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _other_array(dice: Random, array):  # type: ignore[no-untyped-def]
    changes = [
        lambda: array[..., :-1], lambda: array[:0], lambda: array[None], lambda: array.astype("float16"),
        lambda: array.astype("int64"), lambda: array.repeat(2, 0), lambda: array.astype("float32") * float("nan"),
        lambda: array + (1 << 20), lambda: -array - 1, lambda: array.reshape(-1),
    ]  # fmt: skip
    return dice.choice(changes)()


KINDS: dict[str, Callable[[Path], Kind | Requests]] = {
    "manifest": Manifests,
    "bundle": Bundles,
    "checkpoint": Checkpoints,
    "module": Modules,
    "gguf": Ggufs,
    "conversation": Conversations,
    "template": Templates,
    "cache": Caches,
    "prompt": Prompts,
    "request": Requests,
}
