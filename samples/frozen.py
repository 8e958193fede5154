"""A program to freeze: it answers each line of standard input in a chat, or with --json in a form of its own.

Freeze it with `pyinstaller samples/frozen.py` and copy a bundle to dist/frozen/bundle, or run it as it is with
`python samples/frozen.py BUNDLE`. It needs recycle-onnx[chat,structured].
"""

import argparse
import sys
from pathlib import Path

import recycle_onnx

ANIMAL = {
    "type": "object",
    "properties": {"animal": {"enum": ["cat", "dog", "fox"]}, "legs": {"enum": [2, 4]}},
    "required": ["animal", "legs"],
    "additionalProperties": False,
}

parser = argparse.ArgumentParser(description="Answer each line of standard input.")
parser.add_argument("bundle", nargs="?", type=Path, default=Path(sys.executable).parent / "bundle")
parser.add_argument("--json", action="store_true", help="answer with an animal and its legs")
arguments = parser.parse_args()

try:
    with recycle_onnx.load(arguments.bundle) as model:
        chat = model.conversation(system="You tell stories to children.")
        constraint = recycle_onnx.JsonSchema(ANIMAL) if arguments.json else None
        for line in sys.stdin:
            for token in chat.send(line.strip(), max_new_tokens=40, constraint=constraint):
                print(token.text, end="", flush=True)
            print()
except recycle_onnx.RecycleError as error:
    sys.exit(f"Error: {error}")
