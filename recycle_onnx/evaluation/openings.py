"""Beginnings of texts that a model goes on from, where nobody brings any."""

from __future__ import annotations

from recycle_onnx.extras import is_installed
from recycle_onnx.runtime.chat_template import PLAIN, ChatTemplate
from recycle_onnx.runtime.config import GREEDY
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.text import encode

TEXTS, TOKENS = 8, 16
"""Openings, and tokens of each, for a measurement of seconds."""
SPACING = 16
"""Tokens from where one of several long texts begins to where the next one does, within a text of the model's own."""
QUESTIONS = (
    "Why is the sky blue?",
    "Write a short story about a lighthouse keeper.",
    "How do I cook rice?",
    "Write a Python function that reverses a string.",
    "Give me three tips for learning a language.",
    "What is the difference between a virus and a bacterium?",
    "Write an email that asks for a day off.",
    "Explain what a database index is.",
)
"""Everyday requests of several kinds: chat models answer them at some length."""


def own_text(model: Model, length: int, seed: int = 0) -> list[int]:
    """Let the model itself write `length` tokens, by sampling."""
    start = (model.encode("") or [0])[:1]
    if length == 1:
        return start
    result = model.generate(start, GREEDY, strategy="full", max_new_tokens=length - 1, temperature=1.0, seed=seed)
    return [*start, *result.tokens]


def own_texts(model: Model) -> list[list[int]]:
    """Let the model write the beginnings of several texts."""
    length = min(TOKENS, model.bundle.manifest.context_length // 2)
    return [own_text(model, length, seed) for seed in range(TEXTS)]


def openings(model: Model) -> tuple[list[list[int]], str]:
    """Return beginnings for the model to continue, and what they are, in words.

    A model that answers gets questions, another one the beginnings of its own texts.

    Raises:
        InputError: the model's chat template needs jinja2.
    """
    asked = questions(model)
    if not asked:
        return own_texts(model), f"greedy, after {TEXTS} openings of its own"
    most = model.bundle.manifest.context_length // 2
    return [ids[-most:] for ids in asked], f"greedy answers to {len(QUESTIONS)} questions"


def questions(model: Model) -> list[list[int]]:
    """Return the token ids of several requests by the model's chat template; none where it has no template.

    Raises:
        InputError: the template needs jinja2.
    """
    template = ChatTemplate.find(model.bundle.folder)
    if template.name == PLAIN:
        return []
    asked = [template.render([{"role": "user", "content": question}]) for question in QUESTIONS]
    return [encode(model.tokenizer, text, template.special_tokens) for text in asked]


def openings_of(model: Model, length: int) -> list[list[int]]:
    """Return eight beginnings of `length` tokens each: text of the model's own, and behind it a question if it answers.

    The own text is written once, by sampling, and each beginning starts at another place of it. So none repeats itself
    as random token ids or a sentence said again would, which flatters whatever proposes by looking the text up.
    """
    asked = questions(model) if is_installed("chat") else []
    spare = model.bundle.manifest.context_length - length
    spacing = min(SPACING, spare // TEXTS)
    written = own_text(model, length + (TEXTS - 1) * spacing)
    texts = [written[:1] + written[index * spacing + 1 :] for index in range(TEXTS)]
    ends = [ids[-length:] for ids in asked] or [[]] * TEXTS
    return [text[: length - len(end)] + end for text, end in zip(texts, ends, strict=True)]
