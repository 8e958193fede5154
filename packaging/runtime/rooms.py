"""Which rooms of the package the runtime's wheel holds: all but those that make bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MAKERS = ("checkpoint", "export", "training")


class Rooms(BuildHookInterface):
    """Adds the package's files to the wheel, from where they lie."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        top = Path(self.root).parents[1]
        for path in sorted((top / "recycle_onnx").rglob("*")):
            name = path.relative_to(top)
            if path.is_file() and path.suffix != ".pyc" and name.parts[1] not in MAKERS:
                build_data["force_include"][str(path)] = str(name)
        build_data["force_include"][str(top / "LICENSE")] = "recycle_onnx/LICENSE"
