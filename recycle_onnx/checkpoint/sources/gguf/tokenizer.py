"""The tokenizer in a GGUF file's metadata, as `tokenizer.json` and `tokenizer_config.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from recycle_onnx.checkpoint.sources.gguf.pre_tokenizers import SPLITTINGS, Splitting
from recycle_onnx.checkpoint.sources.gguf.reader import GgufFile
from recycle_onnx.errors import InputError
from recycle_onnx.files import write_json
from recycle_onnx.stop_ids import known_ends

UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5
"""Types of tokens."""
SPACE = "▁"
"""How SentencePiece writes a space."""
MODELS = ("gpt2", "llama")
"""Byte-level BPE, and SentencePiece's BPE; what else llama.cpp knows belongs to other kinds of models."""
ENDS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
"""Keys of tokens that end a text for llama.cpp."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a file, and how text becomes them."""

    path: Path
    metadata: dict[str, Any]
    tokens: list[str]
    gemma: bool

    @classmethod
    def read(cls, file: GgufFile, architecture: str) -> Vocabulary:
        """Read the metadata `tokenizer.*`.

        Raises:
            InputError: a tokenizer that is not supported, or a damaged one.
        """
        prefix = "tokenizer."
        metadata = {n.removeprefix(prefix): v for n, v in file.metadata.items() if n.startswith(prefix)}
        kind = metadata.get("ggml.model")
        if kind not in MODELS:
            raise InputError(f"{file.path}: tokenizer {kind!r} is not supported; expected {' or '.join(MODELS)}")
        tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(metadata.get("ggml.tokens", []))]
        if len(set(tokens)) != len(tokens) or not tokens:
            raise InputError(f"{file.path}: {len(tokens)} tokens, {len(set(tokens))} of them different; damaged")
        vocabulary = cls(file.path, metadata, tokens, architecture.startswith("gemma"))
        vocabulary._check()
        return vocabulary

    def _check(self) -> None:
        if self.byte_level and (pre := self._pre()) not in SPLITTINGS:
            known = ", ".join(sorted(SPLITTINGS))
            raise InputError(f"{self.path}: pre-tokenizer {pre!r} is not supported; expected one of: {known}")
        for name in ("merges",) if self.byte_level else ("scores",):
            if f"ggml.{name}" not in self.metadata:
                raise InputError(f"{self.path}: the tokenizer has no {name}; damaged")
        for name in ("scores", "token_type"):
            if len(self.metadata.get(f"ggml.{name}", self.tokens)) != len(self.tokens):
                raise InputError(f"{self.path}: tokenizer.ggml.{name} is not as long as the vocabulary; damaged")
        for name in ("bos", "eos"):
            if self._adds(name) and self._id(name) is None:
                raise InputError(f"{self.path}: tokenizer.ggml.add_{name}_token is true, but {name} is not named")

    @property
    def byte_level(self) -> bool:
        """Whether it is byte-level BPE (`gpt2`) and not SentencePiece's (`llama`)."""
        return bool(self.metadata["ggml.model"] == "gpt2")

    def _pre(self) -> str:
        return str(self.metadata.get("ggml.pre", "default"))

    def _id(self, name: str) -> int | None:
        key = {"unk": "unknown", "pad": "padding"}.get(name, name)
        default = None if self.byte_level else {"bos": 1, "eos": 2, "unk": 0}.get(name)
        value = self.metadata.get(f"ggml.{key}_token_id", default)
        return value if isinstance(value, int) and 0 <= value < len(self.tokens) else None

    def _adds(self, name: str) -> bool:
        splits = self.byte_level and SPLITTINGS.get(self._pre(), Splitting(())).adds_bos
        default = name == "bos" and (splits or not self.byte_level)
        return bool(self.metadata.get(f"ggml.add_{name}_token", default))

    def special_ids(self) -> dict[str, int | None]:
        """Return special tokens as `config.json` names them."""
        return {f"{name}_token_id": self._id(name) for name in ("bos", "eos", "pad")}

    def named_ends(self) -> dict[str, int]:
        """Return tokens that end a text by the keys that name them."""
        named = {f"GGUF {name}_token_id": self._id(name) for name in ENDS}
        return {name: i for name, i in named.items() if i is not None}

    def generation_config(self) -> dict[str, Any]:
        """Make `generation_config.json`, with every token that llama.cpp stops at."""
        known = known_ends({token: i for i, token in enumerate(self.tokens)})
        ends = list(dict.fromkeys([*self.named_ends().values(), *known]))
        special = {"bos_token_id": self._id("bos"), "pad_token_id": self._id("pad")}
        end_ids: Any = ends[0] if len(ends) == 1 else ends or None
        return {name: i for name, i in {**special, "eos_token_id": end_ids}.items() if i is not None}

    def _of_type(self, *types: int) -> list[str]:
        kinds = self.metadata.get("ggml.token_type", [])
        return [token for token, kind in zip(self.tokens, kinds, strict=False) if kind in types]

    def write(self, folder: Path, context_length: int) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`."""
        self.tokenizer().save(str(folder / "tokenizer.json"))
        named = {f"{n}_token": self._id(n) for n in ("bos", "eos", "unk", "pad")}
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{name: self.tokens[i] for name, i in named.items() if i is not None},
            "add_bos_token": self._adds("bos"),
            "add_eos_token": self._adds("eos"),
            "clean_up_tokenization_spaces": False,
            "model_max_length": context_length,
        }
        if template := self.metadata.get("chat_template"):
            config["chat_template"] = template
        write_json(folder / "tokenizer_config.json", config)

    def tokenizer(self) -> Tokenizer:
        """Make the whole tokenizer.

        Raises:
            InputError: tokens and merges contradict each other.
        """
        try:
            made = self._byte_level_bpe() if self.byte_level else self._sentence_piece()
        except Exception as error:  # tokenizers raises bare Exception
            raise InputError(f"{self.path}: tokens and merges contradict each other ({error}); damaged") from error
        made.add_special_tokens(
            [AddedToken(t, normalized=False, special=True) for t in self._of_type(CONTROL, UNKNOWN)]
        )
        made.add_tokens([AddedToken(t, normalized=False) for t in self._whole_in_text()])
        if self._adds("bos") or self._adds("eos"):
            made.post_processor = self._surround()
        return made

    def _byte_level_bpe(self) -> Tokenizer:
        splitting = SPLITTINGS[self._pre()]
        merges = [_pair(merge) for merge in self.metadata["ggml.merges"]]
        made = Tokenizer(models.BPE(self._ids(self.tokens), merges, ignore_merges=splitting.whole_words))
        if splitting.composes:
            made.normalizer = splitting.normalizer()
        made.pre_tokenizer = splitting.pre_tokenizer()
        made.decoder = decoders.ByteLevel()
        return made

    def _sentence_piece(self) -> Tokenizer:
        tokens = self._respelled()
        unknown = self._id("unk")
        model = models.BPE(
            self._ids(tokens),
            _merges(tokens, range(0, -len(tokens), -1) if self.gemma else self.metadata["ggml.scores"]),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
        made = Tokenizer(model)
        to_pieces = normalizers.Replace(" ", SPACE)
        begins = self.metadata.get("ggml.add_space_prefix", True)
        made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), to_pieces]) if begins else to_pieces
        back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        made.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)] if begins else back)
        return made

    def _ids(self, tokens: list[str]) -> dict[str, int]:
        """Return ids of `tokens`, without those that llama.cpp adds where the embedding has more rows."""
        padding = {f"[PAD{i}]" for i in range(len(tokens))} & set(self._of_type(UNUSED))
        return {token: i for i, token in enumerate(tokens) if token not in padding}

    def _respelled(self) -> list[str]:
        """Return tokens with runs of spaces as the normalizer leaves them; llama.cpp keeps Gemma's as they are."""
        known = set(self.tokens)
        runs = {token: SPACE * len(token) for token in known if not token.strip(" ")}
        return [run if (run := runs.get(token, token)) not in known else token for token in self.tokens]

    def _whole_in_text(self) -> list[str]:
        """Return user-defined tokens; runs of spaces are left to merging."""
        return [token for token in self._of_type(USER_DEFINED) if self.byte_level or token.strip(" ")]

    def _surround(self) -> processors.TemplateProcessing:
        names = {name: self._id(name) for name in ("bos", "eos") if self._adds(name)}
        special = {name: (self.tokens[i], i) for name, i in names.items() if i is not None}
        bos, eos = ([special[name][0]] if name in special else [] for name in ("bos", "eos"))
        both = [*bos, "$A", *eos, *(f"{token}:1" for token in bos), "$B:1", *(f"{token}:1" for token in eos)]
        return processors.TemplateProcessing(
            single=[*bos, "$A", *eos], pair=both, special_tokens=list(dict.fromkeys(special.values()))
        )


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge[1:].partition(" ")
    return merge[0] + left, right


def _merges(tokens: list[str], scores: Any) -> list[tuple[str, str]]:
    """Return every way to make a token of two, the best-scored token first: SentencePiece's scores serve as ranks."""
    ids = {token: i for i, token in enumerate(tokens)}
    merges = []
    for token, score in zip(tokens, scores, strict=True):
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = sorted((ids[left], ids[right]) for left, right in cuts if left in ids and right in ids)
        merges += [(score, tokens[left], tokens[right]) for left, right in known]
    merges.sort(key=lambda merge: -merge[0])
    return [(left, right) for _, left, right in merges]
