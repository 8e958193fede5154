"""How a bundle on disk becomes a model in memory: its files are checked, its halves opened on their providers."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from recycle_onnx.bundle import Bundle
from recycle_onnx.progress import Progress, silent
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.ort.native import at_work
from recycle_onnx.runtime.ort.prepacked import open_prepacked
from recycle_onnx.runtime.ort.providers import options_of_module, place, register_library
from recycle_onnx.runtime.ort.sessions import open_original


# Eleven parameters, since this is what applications call first: their editors show each keyword with its default.
def load(
    path: str | PathLike[str],
    *,
    provider: str = "cpu",
    recycler_provider: str | None = None,
    provider_options: Mapping[str, str] | None = None,
    recycler_provider_options: Mapping[str, str] | None = None,
    provider_libraries: Mapping[str, str | PathLike[str]] | None = None,
    threads: int | None = None,
    fixed_threads: bool = False,
    verify: bool = False,
    prepacked: bool = False,
    progress: Progress = silent,
) -> Model:
    """Load a bundle.

    Args:
        path: the folder that `recycle-onnx export` wrote.
        provider: where to run: `cpu`, another one of `docs/providers.md`, or `auto` for the best that is here.
        recycler_provider: where the module runs, if not there too.
        provider_options: what the provider takes, by ONNX Runtime's names (`{"device_id": "1"}`).
        recycler_provider_options: the same for the module's provider, if it has one of its own.
        provider_libraries: files of plug-in providers, by the name to call each.
        threads: threads of each session, None for one a physical core.
        fixed_threads: run all steps on so many threads. Otherwise they run on half as many while others use the cores
            and that is faster; the text is the same. The sessions for that are loaded when they are needed, where an
            eighth of the free memory has room for the weights again, or with `prepacked`.
        verify: hash the weights again, even if this very file was checked before.
        prepacked: keep weights in the user's cache, laid out for this processor (twice the bundle's size), and map
            them: the memory they take can be shared and taken back. Without it every model has a private copy.
        progress: called with what is done, of how much, and what comes now: bytes of files checked, then graphs loaded.

    Raises:
        InputError: not a bundle, an altered file, a future format, a provider that is unknown or not here, cannot run
            the bundle or does not know an option.
        RecycleError: ONNX Runtime cannot load a graph, or there is too little memory.
    """
    for name, file in (provider_libraries or {}).items():
        register_library(name, file)
    opener = open_prepacked if prepacked else open_original
    bundle = Bundle.open(Path(path), verify=verify, progress=progress)
    full = place(provider, provider_options or {}, bundle.manifest)
    own = options_of_module(recycler_provider, recycler_provider_options)
    other = None if recycler_provider is None else place(recycler_provider, own, bundle.manifest)
    with at_work():
        return Model(bundle, full, threads, opener, progress, other, fixed_threads=fixed_threads)
