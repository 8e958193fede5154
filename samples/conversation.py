"""Two turns, and what the second one had to read: python samples/conversation.py BUNDLE."""

import sys

import recycle_onnx

chat = recycle_onnx.load(sys.argv[1]).conversation(system="You tell stories to children.")
for message in ("Tell me of a fox.", "And then?"):
    answer = chat.send(message, max_new_tokens=40)
    print(f"> {message}\n{''.join(token.text for token in answer).strip()}")
stats = answer.result.stats
print(f"({stats.reused_tokens} of the {stats.prompt_tokens} tokens before this answer were in the caches)")
