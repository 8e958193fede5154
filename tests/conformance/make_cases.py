"""Write `cases.json` from plain torch decoding of the sample (needs the extra `reference`).

python -m tests.conformance.make_cases
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recycle_onnx.checkpoint import Checkpoint
from recycle_onnx.files import write_json
from recycle_onnx.tokenizer import load_tokenizer
from recycle_onnx.training.model import RecycleGPT
from recycle_onnx.training.storage import load_model
from tests.helpers.prompts import LONG_STORY, story_prompts
from tests.reference import plain

SAMPLE = Path(__file__).parents[2] / "samples" / "stories"
STOPS = frozenset([0])
PROMPTS = [*story_prompts(200)[::20], "Once upon a time", "a", "Der Bär aß 🍯", LONG_STORY]


def main() -> None:
    """Decode every prompt with every strategy, and derive the counts from the tokens."""
    tokenizer = load_tokenizer(SAMPLE)
    with Checkpoint.open(SAMPLE) as checkpoint:
        model = load_model(checkpoint).eval()
    cases = []
    for index, prompt in enumerate(PROMPTS):
        count = (1, 2, 3, 40, 41)[index % 5]
        ids = tokenizer.encode(prompt).ids
        for strategy in ("full", "alternate", "verify"):
            request = {"prompt": prompt, "max_new_tokens": count, "strategy": strategy}
            cases.append({"request": request, "expect": expect(model, ids, count, strategy)})
    cases += proposal_cases(model, tokenizer)
    cases += stop_cases(model, tokenizer)
    cases += error_cases()
    write_json(Path(__file__).parent / "cases.json", {"bundle": "samples/stories", "cases": cases})
    print(f"{len(cases)} cases")


def expect(model: RecycleGPT, ids: list[int], count: int, strategy: str) -> dict[str, Any]:
    """Tokens and counts of one case."""
    if strategy == "alternate":
        tokens = plain.alternate(model, ids, count, STOPS)
        recycled = [index % 2 == 1 for index in range(len(tokens))]
        full_runs, recycle_runs = -(-len(tokens) // 2), len(tokens) // 2
        counts = {"proposed": recycle_runs, "accepted": recycle_runs}
    else:
        tokens = plain.full(model, ids, count, STOPS)
        recycled = [False] * len(tokens)
        full_runs, recycle_runs, counts = len(tokens), 0, {"proposed": 0, "accepted": 0}
        if strategy == "verify":
            recycled, full_runs, recycle_runs, counts = verified(model, ids, tokens, count)
    reason = "stop" if tokens[-1] in STOPS else "length"
    return {
        "tokens": tokens,
        "recycled": recycled,
        "finish_reason": reason,
        "full_runs": full_runs,
        "recycle_runs": recycle_runs,
        **counts,
    }


def verified(
    model: RecycleGPT, prompt: list[int], tokens: list[int], count: int
) -> tuple[list[bool], int, int, dict[str, int]]:
    """Which of the base's `tokens` the module proposes rightly when it is asked after each full run."""
    recycled = [False]
    full_runs = 1
    proposed = accepted = 0
    while len(recycled) < len(tokens):
        known = [*prompt, *tokens[: len(recycled)]]
        hit = False
        if len(recycled) + 1 < count:
            proposed += 1
            hit = propose(model, known) == tokens[len(recycled)]
        full_runs += 1
        if hit:
            accepted += 1
            recycled.append(True)
        if len(recycled) < len(tokens):
            recycled.append(False)
    return recycled, full_runs, proposed, {"proposed": proposed, "accepted": accepted}


def propose(model: RecycleGPT, known: list[int]) -> int:
    """The module's token after `known`."""
    import torch

    with torch.no_grad():
        hidden = model.full(torch.tensor([known[:-1]])).hidden_states
        return int(model.recycle(torch.tensor([known[1:]]), hidden).logits[0, -1].argmax())


def proposal_cases(model: RecycleGPT, tokenizer: Any) -> list[dict[str, Any]]:
    """Chains and lookup change how many runs a text takes, and never the text."""
    plans: list[dict[str, Any]] = [
        {"strategy": "verify", "chain": 3},
        {"strategy": "lookup"},
        {"strategy": "lookup", "chain": 9},
    ]
    return [
        {"request": {"prompt": prompt, "max_new_tokens": 40, **plan}, "expect": {"tokens": expected}}
        for prompt in (PROMPTS[0], LONG_STORY)
        for expected in [plain.full(model, tokenizer.encode(prompt).ids, 40, STOPS)]
        for plan in plans
    ]


def stop_cases(model: RecycleGPT, tokenizer: Any) -> list[dict[str, Any]]:
    """Stop strings, and the token that ends a story."""
    prompt = "Once upon a time, there was a little girl"
    ids = tokenizer.encode(prompt).ids
    text = tokenizer.decode(ids + plain.full(model, ids, 40), skip_special_tokens=True)[len(prompt) :]
    words = text.split()
    stop = f"{words[5]} {words[6]}"
    cut = {"text": text[: text.index(stop)], "finish_reason": "stop"}
    whole = plain.full(model, ids, 400, STOPS)
    ended = {"tokens": whole, "finish_reason": "stop"}
    assert whole[-1] in STOPS, "the sample should end its story"
    cases = []
    for strategy in ("full", "verify"):
        request = {"prompt": prompt, "strategy": strategy}
        cases.append({"request": {**request, "max_new_tokens": 40, "stop": [stop]}, "expect": cut})
        cases.append({"request": {**request, "max_new_tokens": 400}, "expect": ended})
    return cases


def error_cases() -> list[dict[str, Any]]:
    """Requests that must be refused."""
    bad: list[dict[str, Any]] = [
        {"prompt": ""},
        {"prompt": "a", "max_new_tokens": 0},
        {"prompt": "a", "max_new_tokens": -3},
        {"prompt": "a", "strategy": "nope"},
        {"prompt": "a", "chain": 0},
        {"prompt": "a", "strategy": "full", "chain": 2},
        {"prompt": "a", "temperature": -0.5},
        {"prompt": "a", "top_p": 0},
        {"prompt": "a", "top_k": -1},
        {"prompt": " ".join(["word"] * 1000)},
    ]
    return [{"request": request, "expect": {"error": True}} for request in bad]


if __name__ == "__main__":
    main()
