"""What `full` writes on the sample, made once for all tests that compare a strategy with it."""

from __future__ import annotations

from typing import Any

from recycle_onnx.runtime.model import Model


class FullTexts:
    """Tokens of `full` by prompt and settings: a shorter text is the beginning of a longer one."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.made: dict[str, tuple[list[int], bool]] = {}

    def tokens(self, prompt: str, max_new_tokens: int, **settings: Any) -> list[int]:
        """Return at most `max_new_tokens` tokens, fewer where the text ends before."""
        sampled = settings if settings.get("temperature") else {}  # greedy texts need no seed
        key = repr((prompt, sorted(sampled.items())))
        tokens, ended = self.made.get(key, ([], False))
        if len(tokens) < max_new_tokens and not ended:
            result = self.model.generate(prompt, strategy="full", max_new_tokens=max_new_tokens, **sampled)
            tokens = result.tokens
            self.made[key] = (tokens, result.finish_reason == "stop")
        return tokens[:max_new_tokens]
