"""ONNX Runtime sessions that behave inside someone's application."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from textwrap import shorten
from typing import Literal

import onnxruntime as ort

from recycle_onnx.bundle import Bundle
from recycle_onnx.contract import GraphSpec, Kind, Tensor
from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.kinds import Number
from recycle_onnx.machine.huge_pages import in_huge_pages
from recycle_onnx.runtime.ort.providers import Place, Placement
from recycle_onnx.runtime.ort.renamed import renamed

FATAL_ONLY = 4
"""ONNX Runtime's severity at which it writes to standard error: what fails is raised too, and told in one line."""
THREADS = Number(least=1, whole=True, optional=True)
DEFAULT_THREADS = 0
"""ONNX Runtime's own choice: one a physical core."""
MOST_OF_A_REASON = 400
"""Characters of ONNX Runtime's reason for a failure: some list a whole graph."""
OUT_OF_MEMORY = ("failed to allocate", "bad_alloc", "bad allocation", "out of memory", "not enough memory")
"""How libraries word it: ONNX Runtime has no error of its own for a lack of memory."""
Opener = Callable[[Bundle, Kind, Place, int | None], ort.InferenceSession]
"""Gives a session of one half: bundle, half, provider, threads."""
Prepacking = Literal["parallel", "serial", "off"]
INT8_ACTIVATIONS = ("session.qdq_matmulnbits_accuracy_level", "4")
"""For products with integers in ONNX's own form, which ONNX Runtime fuses: what MatMulNBits has in `ort` bundles."""
TYPES = {
    "int64": "tensor(int64)", "float32": "tensor(float)", "float16": "tensor(float16)", "uint8": "tensor(uint8)",
    "int8": "tensor(int8)",
}  # fmt: skip
"""The contract's types in ONNX Runtime's words."""
SHORT_SPINNING = ("session.intra_op.spin_duration_us", "50")
"""How long a thread waits for work awake. Operators follow each other faster than that, so a quiet machine is as fast
with the usual milliseconds. But those are taken from whatever else it runs: among seven other busy programs, steps took
twice as long so (benchmarks/busy_cores.py). ONNX Runtime before 1.26 knows no such setting, and ignores it."""
PREPACKING: dict[Prepacking, tuple[str, str]] = {
    "parallel": ("session.prepack.enable_parallel", "1"),
    "serial": ("session.prepack.enable_parallel", "0"),
    "off": ("session.disable_prepacking", "1"),
}
"""Session settings. `off` leaves float32 weights in the mapped file, and suits matrices that are inputs."""


def open_session(
    path: Path, spec: GraphSpec | None, provider: Place, threads: int | None, options: ort.SessionOptions | None = None
) -> ort.InferenceSession:
    """Load a graph and compare its interface with the contract, unless `spec` is None.

    `threads` is the number of intra-op threads, None for one a physical core; `options` take the place of ours.

    Raises:
        InputError: a provider that is unknown, not here or refuses its options, a number of threads below one, or a
            path that is not UTF-8.
        RecycleError: ONNX Runtime cannot load the graph, it does not fit into memory, or it does not follow the
            contract.
    """
    place = Placement.of(provider)
    check_threads(threads)
    check_path(path)
    ort.disable_telemetry_events()
    try:
        with in_huge_pages():
            session = _load(path, place, threads, options or session_options(threads))
    except InputError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        raise _failure(path, place, error) from error
    if place.provider.ort_name not in session.get_providers():
        with_options = "".join(f" with {name}={value}" for name, value in place.options.items())
        raise RecycleError(
            f"provider {place.provider.name!r} did not start{with_options}; it needs {place.provider.needs} "
            "(`recycle-onnx doctor`)"
        )
    if spec is not None:
        _check_interface(session, spec, path)
    return session


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads below one, and what is no whole number.

    Raises:
        InputError: it is.
    """
    THREADS.own("threads", threads)


def check_path(path: Path) -> None:
    """Refuse a path that is not UTF-8, which Linux allows.

    Raises:
        InputError: it is not.
    """
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{path}: a name on this path is not UTF-8, and ONNX Runtime opens no such path; rename or move it"
        ) from error


def open_original(bundle: Bundle, kind: Kind, provider: Place, threads: int | None) -> ort.InferenceSession:
    """Open a session of the bundle's own graph."""
    return open_session(bundle.graph(kind), bundle.manifest.graphs[kind], provider, threads)


def open_mapped(bundle: Bundle, kind: Kind, provider: Place, threads: int | None) -> ort.InferenceSession:
    """Open a session for a check or two: float32 weights stay in the mapped file, and steps are slower."""
    options = mapped_options(bundle, threads)
    return open_session(bundle.graph(kind), bundle.manifest.graphs[kind], provider, threads, options)


def mapped_options(bundle: Bundle, threads: int | None) -> ort.SessionOptions:
    """Return the session options of `open_mapped`."""
    return session_options(threads, "off" if bundle.manifest.precision == "fp32" else "parallel")


def session_options(threads: int | None, prepacking: Prepacking = "parallel") -> ort.SessionOptions:
    """Return options for a session that is quiet, and a good neighbour to the application's and the other one.

    Prepacking copies weights into the kernels' layout, on all threads unless it is `serial`. Where they have that
    layout already, `serial` copies nothing, and `parallel` still a part of them.
    """
    options = ort.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    options.intra_op_num_threads = threads or DEFAULT_THREADS
    options.inter_op_num_threads = 1
    # Two sessions take turns: idle threads of the one would spin on the cores that the other needs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry(*SHORT_SPINNING)
    options.add_session_config_entry(*PREPACKING[prepacking])
    options.add_session_config_entry(*INT8_ACTIVATIONS)
    return options


def _load(path: Path, place: Placement, threads: int | None, options: ort.SessionOptions) -> ort.InferenceSession:
    providers, model = place.attach(options, threads), _model(path, place, options)
    try:
        # without a fallback to other providers: it would print to standard output
        return ort.InferenceSession(model, options, providers=providers, enable_fallback=False)
    except RuntimeError as error:
        if "global thread pool" not in str(error):
            raise
        # The application gave its process one pool for all sessions: then there may be no other. (Making such a pool
        # ourselves would suit two sessions that take turns, but every other session of the application that asks for
        # its own threads would then fail.)
        options.use_per_session_threads = False
        return ort.InferenceSession(model, options, providers=providers, enable_fallback=False)


def _model(path: Path, place: Placement, options: ort.SessionOptions) -> Path | bytes:
    """Return what to load: the file, unless the provider has other names for some operators."""
    if not place.provider.renames:
        return path
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    return renamed(path.read_bytes(), dict(place.provider.renames))


def _failure(path: Path, place: Placement, error: Exception) -> RecycleError:
    """Turn an exception at loading into one that says whose fault it is, and what to do."""
    name, text = place.provider.name, str(error)
    reason = _reason(text) or type(error).__name__
    if isinstance(error, MemoryError) or any(sign in text.lower() for sign in OUT_OF_MEMORY):
        size = sum(file.stat().st_size for file in (path, Path(f"{path}.data")) if file.exists())
        return RecycleError(
            f"{path}: too little memory on provider {name!r} for a graph of {size / 1e6:.0f} MB ({reason}); "
            "close other programs, or export the model again with --precision int4"
        )
    if refused := [option for option in place.options if option in text]:
        return InputError(f"provider {name!r} does not take the option {refused[0]!r} ({reason})")
    return RecycleError(f"{path}: ONNX Runtime {ort.__version__} cannot load it on provider {name!r} ({reason})")


def _reason(text: str) -> str:
    """Return what ONNX Runtime says without its codes, and without the place in its source."""
    last = text.split(" : ")[-1]
    last = last.rsplit(") ", 1)[-1] if ".cc:" in last else last
    return shorten(last, MOST_OF_A_REASON, placeholder=" …")


def _check_interface(session: ort.InferenceSession, spec: GraphSpec, path: Path) -> None:
    actual = (
        [value.name for value in session.get_inputs()],
        [value.name for value in session.get_overridable_initializers()],
        [value.name for value in session.get_outputs()],
    )
    expected = (list(spec.inputs()), list(spec.optional_inputs()), list(spec.outputs()))
    if actual != expected:
        odd = sorted(set(chain(*actual)) ^ set(chain(*expected)))
        raise RecycleError(f"{path}: does not follow the graph contract ({', '.join(odd) or 'another order'})")
    for value in (*session.get_inputs(), *session.get_outputs()):
        _check_tensor(value, (spec.inputs() | spec.outputs())[value.name], path)


def _check_tensor(value: ort.NodeArg, expected: Tensor, path: Path) -> None:
    """Compare type and shape; a dimension that either leaves open fits."""
    type_, shape = TYPES[expected.dtype], value.shape or []
    fits = len(shape) in (0, len(expected.shape)) and all(
        size == wanted or not (type(size) is int and type(wanted) is int)
        for size, wanted in zip(shape, expected.shape, strict=False)
    )
    if value.type != type_ or not fits:
        raise RecycleError(
            f"{path}: does not follow the graph contract ({value.name} is {value.type}{shape}; "
            f"the manifest says {type_}{list(expected.shape)})"
        )
