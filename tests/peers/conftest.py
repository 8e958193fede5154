"""Other runtimes: run by `make test-peers`, in the environment that has transformers to make models of all families."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("transformers") is None:
    collect_ignore = ["test_genai_families.py", "test_optimum_onnx.py"]
