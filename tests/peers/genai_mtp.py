"""Greedy decoding with onnxruntime-genai's MtpGenerator, for the environment of `make test-peers`.

python genai_mtp.py OUT < requests.json > answers.json

OUT is what `recycle-onnx mtp` wrote. A request is {"prompt": ids, "new_tokens": count,
"draft_tokens": count}; its answer holds the new ids, the runs of the main model, and how many proposals were made and
kept, or {"error": text}.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import onnxruntime_genai as genai


def generate(main: Any, head: Any, request: dict[str, Any]) -> dict[str, Any]:
    prompt = request["prompt"]
    parameters = genai.GeneratorParams(main)
    parameters.set_search_options(max_length=len(prompt) + request["new_tokens"], do_sample=False)
    parameters.set_speculative_options(max_draft_tokens=request["draft_tokens"])
    generator = genai.MtpGenerator(main, head, parameters)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    stats = generator.get_stats()
    kept = {"runs": stats["forwards"], "proposed": stats["trials"], "kept": stats["accepts"]}
    return {"tokens": generator.get_sequence().tolist()[len(prompt) :], **kept}


def answer(main: Any, head: Any, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return generate(main, head, request)
    except RuntimeError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    main, head = genai.Model(sys.argv[1] + "/main"), genai.Model(sys.argv[1])
    json.dump([answer(main, head, request) for request in json.load(sys.stdin)], sys.stdout)
