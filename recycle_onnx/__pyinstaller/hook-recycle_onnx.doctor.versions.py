"""The name and version of the package that brings ONNX Runtime: there are several."""

from PyInstaller.utils.hooks import copy_metadata

from recycle_onnx.doctor.versions import onnxruntime_packages

datas = [entry for package in onnxruntime_packages() for entry in copy_metadata(package)]
