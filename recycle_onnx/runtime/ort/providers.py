"""Whether an execution provider is here and can run a bundle, and how a session is put on it."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import onnxruntime as ort

from recycle_onnx.bundle import Manifest
from recycle_onnx.errors import InputError
from recycle_onnx.runtime.ort.provider_table import CPU, PREFERRED, PROVIDERS, Provider

AUTO = "auto"
"""No provider, but the wish for the best one that is here."""
STANDARD_SINCE = (1, 26)
"""The oldest ONNX Runtime that runs the flavour `standard`, which is of opset 24 and IR version 12."""

logger = logging.getLogger(__name__)


def known(name: str) -> Provider:
    """Return the provider of this name: ours, or one whose library was registered.

    Raises:
        InputError: there is none.
    """
    provider = PROVIDERS.get(name) or _registered.get(name)
    if provider is None:
        names = ", ".join((*PROVIDERS, *_registered, AUTO))
        raise InputError(f"provider {name!r} is not known; expected one of: {names}")
    return provider


def devices(provider: Provider) -> list[Any]:
    """Return the devices that a plug-in library offers for this provider (`OrtEpDevice`), GPUs first."""
    _load_plugin(provider)
    offered = [device for device in ort.get_ep_devices() if device.ep_name == provider.ort_name]
    return sorted(offered, key=lambda device: ("GPU", "NPU", "CPU").index(device.device.type.name))


def is_built_in(provider: Provider) -> bool:
    """Tell whether the installed ONNX Runtime has the provider in itself."""
    return provider.ort_name in ort.get_available_providers()


def why_missing(provider: Provider) -> str | None:
    """Say why the provider cannot be used on this machine and what to do; None where nothing is in its way."""
    if is_built_in(provider) or devices(provider):
        return None
    if provider.module is not None and importlib.util.find_spec(provider.module) is not None:
        reason = _plugin_failures.get(provider.name) or f"its plug-in finds no device; it needs {provider.needs}"
        return f"provider {provider.name!r} cannot run here: {reason}"
    where = "" if provider.package == "onnxruntime" else " in place of onnxruntime"
    if provider.module == provider.package.replace("-", "_"):
        where = " beside onnxruntime"
    return (
        f"provider {provider.name!r} is not in this ONNX Runtime ({ort.__version__}); "
        f"pip install {provider.package}{where}; it needs {provider.needs}"
    )


def why_unfit(provider: Provider, manifest: Manifest) -> str | None:
    """Say why the provider cannot run this bundle and what to do, or None where it can."""
    cache = manifest.graphs["full"].cache_type
    if cache is not None and provider.name != CPU:
        return (
            f"provider {provider.name!r} cannot run keys and values in {cache}, whose products only the CPU has; "
            "export the model again without --kv"
        )
    if manifest.flavour in provider.flavours:
        return why_too_old(manifest.flavour, cache)
    return (
        f"provider {provider.name!r} cannot run the flavour {manifest.flavour!r}, whose operators it does not have; "
        f"export the model again with --flavour {provider.flavours[0]}"
    )


def why_too_old(flavour: str, cache: str | None = None) -> str | None:
    """Say why the installed ONNX Runtime cannot run a flavour and what to do, or None where it can.

    `cache` is the type of keys and values where they are no floats: their graphs are of the same opset as `standard`.
    """
    installed = tuple(int(part) for part in re.findall(r"\d+", ort.__version__)[:2])
    if (flavour != "standard" and cache is None) or installed >= STANDARD_SINCE:
        return None
    least = ".".join(map(str, STANDARD_SINCE))
    what, instead = ("the flavour 'standard'", "with --flavour ort") if cache is None else (f"--kv {cache}", "without")
    return (
        f"{what} needs ONNX Runtime {least} or newer, and {ort.__version__} is installed; "
        f"pip install --upgrade 'onnxruntime>={least}', or export the model again {instead}"
    )


def why_slow(provider: Provider, manifest: Manifest) -> str | None:
    """Say what a provider that can run this bundle leaves to the CPU, or None where that is little."""
    if manifest.flavour in provider.partly:
        return (
            f"provider {provider.name!r} leaves the attention of the flavour {manifest.flavour!r} to the CPU; "
            f"export the model again with --flavour {provider.flavours[0]}"
        )
    odd = [spec.float_type for spec in manifest.graphs.values() if spec.float_type not in provider.attention]
    if not odd or manifest.flavour != "ort":
        return None
    return (
        f"provider {provider.name!r} has no attention for {odd[0]}: it runs on the CPU, and caches lie there; "
        "export the model again with --precision fp16, or int4 with --activations fp16, to have all of it on the device"
    )


def choose(name: str, manifest: Manifest) -> Provider:
    """Return the provider of this name, once it is known to be here and to run the bundle; `auto` takes the best.

    Raises:
        InputError: unknown, not here, or it cannot run the bundle: one line that says what to do.
    """
    if name == AUTO:
        chosen = next((each for each in map(known, PREFERRED) if _fits_well(each, manifest)), PROVIDERS[CPU])
        if reason := why_unfit(chosen, manifest):
            raise InputError(reason)
        logger.info("provider auto: %s", chosen.name)
        return chosen
    provider = known(name)
    if reason := why_missing(provider) or why_unfit(provider, manifest):
        raise InputError(reason)
    if slow := why_slow(provider, manifest):
        logger.warning("%s", slow)
    return provider


def place(name: str, options: Mapping[str, str], manifest: Manifest) -> Placement:
    """Make the placement of a session of this bundle.

    Raises:
        InputError: as `choose` says, or an option that the provider does not know and would ignore.
    """
    provider = choose(name, manifest)
    unknown = [] if provider.options is None else sorted(set(options) - provider.options)
    if unknown:
        expected = ", ".join(sorted(provider.options or ())) or "none at all"
        raise InputError(f"provider {provider.name!r} has no option {unknown[0]!r}; expected: {expected}")
    return Placement(provider, options)


def options_of_module(provider: str | None, options: Mapping[str, str] | None) -> Mapping[str, str]:
    """Return the options for the module's own provider, if it has one.

    Raises:
        InputError: there are options, but no provider is named for them.
    """
    if provider is None and options:
        raise InputError(
            "options for the module's own provider were given, but not which one; name it too (--recycler-provider)"
        )
    return options or {}


def register_library(name: str, path: str | os.PathLike[str]) -> Provider:
    """Register a plug-in library: as the provider of this name in our table, or as a new one.

    Raises:
        InputError: no such file, not a plug-in library, or it finds no device here.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; expected the plug-in library of provider {name!r}")
    before = _device_names()
    _register(name, path)
    provider = PROVIDERS.get(name) or _registered.get(name)
    if provider is None and (new := sorted(_device_names() - before)):
        provider = _registered[name] = Provider(name, new[0], package=Path(path).name)
    if provider is None or provider.ort_name not in _device_names():
        raise InputError(f"{path}: the library finds no device here for provider {name!r}")
    return provider


@dataclass(frozen=True)
class Placement:
    """A place to run a session: a provider, and options for it."""

    provider: Provider = PROVIDERS[CPU]
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, place: Placement | str) -> Placement:
        """Make a placement from a provider's name, without options.

        Raises:
            InputError: there is no such provider, or it is not here.
        """
        if isinstance(place, Placement):
            return place
        provider = known(place)
        if reason := why_missing(provider):
            raise InputError(reason)
        return cls(provider)

    def attach(self, options: ort.SessionOptions, threads: int | None) -> list[Any]:
        """Set the session's options up for it; give what `InferenceSession` takes as `providers`.

        Raises:
            InputError: a plug-in has no device of the number given as `device_id`.
        """
        provider_options = {**_threads(self.provider, threads), **self.options}
        if is_built_in(self.provider):
            behind = [known(name).ort_name for name in self.provider.behind]
            last = [] if self.provider.name == CPU else [PROVIDERS[CPU].ort_name]
            return [
                (self.provider.ort_name, provider_options) if provider_options else self.provider.ort_name,
                *behind,
                *last,
            ]
        offered, number = devices(self.provider), provider_options.pop("device_id", "0")
        if not number.isdigit() or int(number) >= len(offered):
            raise InputError(
                f"device_id is {number!r}; provider {self.provider.name!r} has devices 0 to {len(offered) - 1}"
            )
        options.add_provider_for_devices([offered[int(number)]], provider_options)
        return []


def folds_defaults(session: ort.InferenceSession) -> bool:
    """Tell whether the session's provider ignores what is passed for an optional input."""
    names = session.get_providers()
    return any(provider.folds_defaults for provider in PROVIDERS.values() if provider.ort_name in names)


Place = Placement | str
"""A placement, or the name of a provider that needs no options."""

_registered: dict[str, Provider] = {}
"""Providers whose plug-in library an application has registered, under names that our table does not have."""
_plugin_failures: dict[str, str] = {}
"""Why the library of an installed plug-in did not load, by provider: told to whoever asks for that provider."""


@cache
def _load_plugin(provider: Provider) -> None:
    """Register the library of an installed plug-in package, once."""
    if provider.module is None or is_built_in(provider) or importlib.util.find_spec(provider.module) is None:
        return
    try:
        _register(provider.name, import_module(provider.module).get_library_path())
    except Exception as error:  # whatever such a package raises, the provider is not there
        _plugin_failures[provider.name] = f"its plug-in does not load ({error})"


def _register(name: str, path: str | os.PathLike[str]) -> None:
    try:
        ort.register_execution_provider_library(name, os.fspath(path))
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        if "already" not in str(error):
            reason = str(error).split(" : ")[-1]
            raise InputError(f"{path}: not a plug-in that ONNX Runtime {ort.__version__} loads ({reason})") from error


def _device_names() -> set[str]:
    return {device.ep_name for device in ort.get_ep_devices()}


def _fits_well(provider: Provider, manifest: Manifest) -> bool:
    return not (why_missing(provider) or why_unfit(provider, manifest) or why_slow(provider, manifest))


def _threads(provider: Provider, threads: int | None) -> dict[str, str]:
    """Return the options that set a provider's threads; only OpenVINO has threads of its own."""
    return {"num_of_threads": str(threads)} if provider.name == "openvino" and threads else {}
