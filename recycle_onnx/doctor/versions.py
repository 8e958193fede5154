"""Versions of what a bundle runs on."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from recycle_onnx import __version__
from recycle_onnx.doctor.finding import Finding

NEEDED = ("onnxruntime", "numpy", "tokenizers")
"""What running a bundle imports; the exporter's packages matter only where something is made."""


@dataclass(frozen=True)
class Versions:
    """The versions of this package, Python, the system, and each package that the runtime imports.

    `onnxruntime_packages` are all that brought an `onnxruntime`, since there are several: one a set of providers.
    """

    recycle_onnx: str
    python: str
    system: str
    packages: dict[str, str]
    onnxruntime_packages: dict[str, str]


def find() -> Versions:
    """Gather the installed versions."""
    return Versions(
        recycle_onnx=__version__,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        packages={name: _imported(name) for name in NEEDED},
        onnxruntime_packages={name: metadata.version(name) for name in onnxruntime_packages()},
    )


def onnxruntime_packages() -> list[str]:
    """Return names of the installed packages that bring an `onnxruntime` to import."""
    return sorted(set(metadata.packages_distributions().get("onnxruntime", [])))


def findings(versions: Versions) -> Iterator[Finding]:
    """Yield packages that write over each other, or are older than what we are tested with."""
    packages = list(versions.onnxruntime_packages)
    if len(packages) > 1:
        yield Finding(
            "advice",
            f"{' and '.join(packages)} are both installed",
            "they write over each other's files: which one is imported depends on which was installed last",
            f"pip uninstall {' '.join(packages)}, then install the one whose providers you want",
        )
    for name, least in _least().items():
        installed = versions.packages.get(name)
        if installed and _numbers(installed) < _numbers(least):
            yield Finding(
                "advice",
                f"{name} {installed} is older than {least}",
                "recycle-onnx is tested with that one and later ones",
                f"pip install --upgrade '{name}>={least}'",
            )


def _imported(name: str) -> str:
    module = __import__(name)
    return str(module.__version__)


def _least() -> dict[str, str]:
    """Return the oldest versions that our own package asks for; none where it was not installed as a package."""
    try:
        lines = metadata.requires("recycle-onnx") or []
    except metadata.PackageNotFoundError:
        return {}
    matches = (re.fullmatch(r"([\w-]+)>=([\d.]+)", line) for line in lines)
    return {match[1]: match[2] for match in matches if match}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
