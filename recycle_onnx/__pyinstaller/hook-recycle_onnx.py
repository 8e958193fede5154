"""Parts of the package that a program needs and PyInstaller does not see: modules imported by name, and files."""

from importlib.util import find_spec

from PyInstaller.utils.hooks import collect_data_files, copy_metadata

from recycle_onnx import HOMES

hiddenimports = [f"recycle_onnx.runtime.{home}" for home in HOMES]
datas = collect_data_files("recycle_onnx", excludes=["**/py.typed"])
if find_spec("llguidance"):
    hiddenimports.append("llguidance")
    datas += copy_metadata("llguidance")  # it asks for its version when it is imported
