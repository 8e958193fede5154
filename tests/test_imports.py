"""What importing and running a bundle pulls in."""

from __future__ import annotations

import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

HEAVY = (
    "torch", "onnx", "onnxscript", "onnx_ir", "transformers", "safetensors", "llguidance", "recycle_onnx.export",
    "click", "rich", "psutil", "jinja2", "recycle_onnx.cli",
)  # fmt: skip


def test_running_a_bundle_imports_no_exporter_and_no_torch(sample_bundle: Path) -> None:
    code = (
        "import sys, recycle_onnx\n"
        f"recycle_onnx.load({str(sample_bundle)!r}).generate('A', max_new_tokens=2)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"


def test_importing_the_package_does_no_work() -> None:
    code = "import sys, recycle_onnx; print([n for n in ('onnxruntime', 'numpy', 'tokenizers') if n in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"


def test_exporting_and_attaching_import_no_torch(tmp_path: Path) -> None:
    sample = Path(__file__).parents[1] / "samples" / "stories"
    code = (
        "import sys; from pathlib import Path\n"
        "from recycle_onnx.checkpoint import attach; from recycle_onnx.export import export\n"
        f"attach(Path({str(sample)!r}), Path({str(tmp_path / 'c')!r}))\n"
        f"export(Path({str(tmp_path / 'c')!r}), Path({str(tmp_path / 'b')!r}))\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"


def test_telemetry_is_off_before_onnxruntime_is_imported() -> None:
    code = (
        "import os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'onnxruntime': print(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
        "sys.meta_path.insert(0, Watch())\n"
        "import recycle_onnx; recycle_onnx.load"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert out.stdout.strip() == "1"


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Imports for types alone, and those within a function, count too: what they mean is the same."""
    graph = grimp.build_graph("recycle_onnx", cache_dir=None, exclude_type_checking_imports=False)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert "recycle_onnx.runtime.generation" in imports["recycle_onnx.runtime.conversation"]
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle
