"""An answer that is JSON of a schema: python samples/structured.py BUNDLE; needs recycle-onnx[structured]."""

import json
import sys

import recycle_onnx

kinds = {"animal": {"enum": ["cat", "dog", "fox"]}, "legs": {"enum": [2, 4]}}
schema = {"type": "object", "properties": kinds, "required": list(kinds), "additionalProperties": False}

with recycle_onnx.load(sys.argv[1]) as model:
    result = model.generate("Once there was an animal: ", constraint=recycle_onnx.JsonSchema(schema))
    print(json.loads(result.text))
