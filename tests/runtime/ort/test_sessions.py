"""A bundle runs beside whatever else the application does with ONNX Runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import recycle_onnx
from recycle_onnx.errors import InputError
from recycle_onnx.runtime.model import Model

PROMPT = "One day, a shy robot by the river"


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_does_not_change_the_text(threads: int, sample_bundle: Path, sample_model: Model) -> None:
    expected = sample_model.generate(PROMPT, max_new_tokens=40).tokens
    assert recycle_onnx.load(sample_bundle, threads=threads).generate(PROMPT, max_new_tokens=40).tokens == expected


def test_by_default_onnx_runtime_chooses_the_number_of_threads() -> None:
    """In a process of its own: the tests have chosen one."""
    code = "from recycle_onnx.runtime.ort.sessions import session_options as made"
    assert run(f"{code}\nprint(made(None).intra_op_num_threads, made(3).intra_op_num_threads)") == "0 3"


def test_an_application_with_one_pool_for_all_sessions_can_load_a_bundle(sample_bundle: Path) -> None:
    pool = "import onnxruntime as ort; ort.set_global_thread_pool_sizes(2, 1)"
    load = f"import recycle_onnx; model = recycle_onnx.load({str(sample_bundle)!r})"
    assert run(f"{pool}\n{load}\nprint(len(model.generate('A', max_new_tokens=5).tokens))") == "5"


def test_an_application_keeps_its_own_way_with_sessions(sample_bundle: Path) -> None:
    load = f"import recycle_onnx; model = recycle_onnx.load({str(sample_bundle)!r}); model.generate('A')"
    theirs = f"import onnxruntime as ort; ort.InferenceSession({str(sample_bundle / 'model.onnx')!r})"
    assert run(f"{load}\n{theirs}\nprint('both')") == "both"


@pytest.mark.parametrize("threads", ["2", 1.0, True, -1])
def test_threads_of_another_kind_are_refused(threads: Any, tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match=r"threads is .*; expected at least 1"):
        recycle_onnx.load(tiny_bundle, threads=threads)


def test_a_path_that_the_system_refuses_is_an_error_of_ours() -> None:
    with pytest.raises(InputError, match="cannot read"):
        recycle_onnx.load("a" * 5000)
