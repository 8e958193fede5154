"""Greedy decoding with onnxruntime-genai, for the environment of `make test-peers`.

python genai_generate.py BUNDLE < requests.json > answers.json

A request is {"prompt": text, "new_tokens": count, "rewind": tokens or null}: after `rewind` new tokens the generator
goes back into the prompt and starts again. An answer holds prompt ids, new ids, and the text of both.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import onnxruntime_genai as genai


def answer(model: Any, tokenizer: Any, request: dict[str, Any]) -> dict[str, Any]:
    prompt = tokenizer.encode(request["prompt"]).tolist()
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + request["new_tokens"], do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(prompt)
    if request.get("rewind"):
        for _ in range(request["rewind"]):
            generator.generate_next_token()
        generator.rewind_to(len(prompt) - 3)
        generator.append_tokens(prompt[-3:])
    while not generator.is_done():
        generator.generate_next_token()
    ids = generator.get_sequence(0).tolist()
    return {"prompt": prompt, "tokens": ids[len(prompt) :], "text": tokenizer.decode(ids)}


def main() -> None:
    model = genai.Model(sys.argv[1])
    tokenizer = genai.Tokenizer(model)
    tokenizer.update_options(add_special_tokens="true")  # it leaves them to chat templates by default
    requests = json.load(sys.stdin)
    json.dump([answer(model, tokenizer, request) for request in requests], sys.stdout)


if __name__ == "__main__":
    main()
