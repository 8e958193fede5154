"""Beginnings of texts that a model goes on from, where nobody brings any."""

from __future__ import annotations

from recycle_onnx.runtime.chat_template import PLAIN, ChatTemplate
from recycle_onnx.runtime.config import GREEDY
from recycle_onnx.runtime.model import RecycleModel
from recycle_onnx.runtime.text import encode

TEXTS, TOKENS = 8, 16
"""Openings, and tokens of each, for a measurement of seconds."""
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


def own_text(model: RecycleModel, length: int, seed: int = 0) -> list[int]:
    """Let the model itself write `length` tokens, by sampling."""
    start = (model.encode("") or [0])[:1]
    if length == 1:
        return start
    result = model.generate(start, GREEDY, strategy="full", max_new_tokens=length - 1, temperature=1.0, seed=seed)
    return [*start, *result.tokens]


def own_texts(model: RecycleModel) -> list[list[int]]:
    """Let the model write the beginnings of several texts."""
    length = min(TOKENS, model.bundle.manifest.context_length // 2)
    return [own_text(model, length, seed) for seed in range(TEXTS)]


def openings(model: RecycleModel) -> tuple[list[list[int]], str]:
    """Return beginnings for the model to continue, and what they are, in words.

    A model that answers gets questions, another one the beginnings of its own texts.

    Raises:
        InputError: the model's chat template needs jinja2.
    """
    template = ChatTemplate.find(model.bundle.folder)
    if template.name == PLAIN:
        return own_texts(model), f"greedy, after {TEXTS} openings of its own"
    asked = [template.render([{"role": "user", "content": question}]) for question in QUESTIONS]
    most = model.bundle.manifest.context_length // 2
    ids = [encode(model.tokenizer, text, template.special_tokens)[-most:] for text in asked]
    return ids, f"greedy answers to {len(QUESTIONS)} questions"
