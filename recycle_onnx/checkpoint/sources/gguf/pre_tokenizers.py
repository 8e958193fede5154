"""How byte-level BPE splits text before merging, by `tokenizer.ggml.pre`; the expressions are the models' own."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""openai/gpt-2's encoder.py."""
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The first that takes digits in threes; case does not count in contractions."""
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
"""As Llama 3, but every digit is a piece of its own."""
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Mistral's: pieces end where lower case turns into upper case."""
PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"


@dataclass(frozen=True)
class Splitting:
    """A way to split text: expressions that split one after the other, and how merging goes on."""

    expressions: tuple[str, ...]
    whole_words: bool = False
    """A word that is a token is taken without merging."""
    adds_bos: bool = False
    composes: bool = False
    """Text is brought to Unicode's composed form first."""

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """Make what splits text, then writes bytes as the printable characters of GPT-2's alphabet."""
        splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in self.expressions]
        return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    def normalizer(self) -> normalizers.Normalizer | None:
        """Make what normalises text before it is split, if anything."""
        return normalizers.NFC() if self.composes else None


_GPT2, _DIGITS = Splitting((GPT2,)), Splitting((r"\p{N}", GPT2))
_LLAMA3 = Splitting((LLAMA3,), whole_words=True, adds_bos=True)
_QWEN2 = Splitting((QWEN2,))

SPLITTINGS = {
    "default": Splitting((PUNCTUATION.replace("`", ""), GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "falcon": Splitting((PUNCTUATION, GPT2, "[0-9][0-9][0-9]")),
    "tekken": Splitting((TEKKEN,), whole_words=True, adds_bos=True),
    "qwen2": Splitting((QWEN2,), composes=True),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "gigachat", "mellum"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Splitting((LLAMA3,))),
    **dict.fromkeys(("deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "kormo"), _QWEN2),
}
