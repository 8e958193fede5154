"""Execution providers as ONNX Runtime's documentation describes them: what brings each, and what it can run."""

from __future__ import annotations

from dataclasses import dataclass

from recycle_onnx.contract import FloatType

CPU = "cpu"
"""The provider that is always here, and runs what others leave."""
PREFERRED = ("cuda", "dml", "webgpu", CPU)
"""What `auto` tries, in this order. The others compile for fixed shapes, or have not been seen to gain anything."""

BOTH_FLAVOURS = ("ort", "standard")
BOTH_FLOATS: tuple[FloatType, ...] = ("float32", "float16")


@dataclass(frozen=True)
class Provider:
    """An execution provider, with what decides whether it can run a bundle here.

    `ort_name` is what ONNX Runtime calls it. `package` brings it, instead of `onnxruntime`, or beside it where `module`
    names the Python module that knows its plug-in library. `flavours` are those that it can run, the best first; of
    `partly` it leaves the attention to the CPU. `attention` are the float types (of hidden states and caches) of the
    `ort` flavour's attention there: with another one it runs on the CPU, and so the caches lie there. `options` are
    those it knows, None where it refuses others itself. `behind` are providers for nodes that it leaves.
    `folds_defaults`: it takes an optional input's default for a constant, so that logits come for all rows. `renames`
    are operators that it has by another name. `tested` says how far we have seen it.
    """

    name: str
    ort_name: str
    package: str
    module: str | None = None
    flavours: tuple[str, ...] = BOTH_FLAVOURS
    partly: tuple[str, ...] = ()
    attention: tuple[FloatType, ...] = BOTH_FLOATS
    options: frozenset[str] | None = None
    behind: tuple[str, ...] = ()
    folds_defaults: bool = False
    renames: tuple[tuple[str, str], ...] = ()
    needs: str = "nothing else"
    tested: str = "untested"


WEBGPU_OPTIONS = frozenset((
    "preferredLayout", "enableGraphCapture", "enableInt64", "multiRotaryCacheConcatOffset", "kvCacheQuantizationBits",
    "sessionBufferPoolGenerations", "forceCpuNodeNames", "enablePIXCapture", "deviceId", "validationMode",
    "enableRobustness", "preserveDevice", "maxStorageBufferBindingSize", "maxNumPendingDispatches",
    "storageBufferCacheMode", "uniformBufferCacheMode", "queryResolveBufferCacheMode", "defaultBufferCacheMode",
    "powerPreference", "dawnBackendType",
))  # fmt: skip
DML_OPTIONS = frozenset((
    "device_id", "performance_preference", "device_filter", "disable_metacommands", "disable_graph_fusion",
    "enable_graph_serialization", "enable_dynamic_graph_fusion",
))  # fmt: skip

PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider(CPU, "CPUExecutionProvider", "onnxruntime", options=frozenset(), tested="by every test"),
        Provider(
            "cuda", "CUDAExecutionProvider", "onnxruntime-gpu", attention=("float16",),
            needs="an NVIDIA GPU with its driver, CUDA and cuDNN",
        ),
        Provider(
            "openvino", "OpenVINOExecutionProvider", "onnxruntime-openvino", module="onnxruntime_ep_openvino",
            flavours=("ort",),
            folds_defaults=True, renames=(("RMSNormalization", "SimplifiedLayerNormalization"),),
            needs="an Intel processor, GPU or NPU", tested="on the CPU",
        ),
        Provider(
            "webgpu", "WebGpuExecutionProvider", "onnxruntime-ep-webgpu", module="onnxruntime_ep_webgpu",
            partly=("standard",),
            options=WEBGPU_OPTIONS, needs="a GPU with its driver (on Linux also libvulkan1)",
            tested="on a software adapter",
        ),
        Provider(
            "dml", "DmlExecutionProvider", "onnxruntime-directml", options=DML_OPTIONS,
            needs="Windows and a GPU with DirectX 12",
        ),
        Provider("coreml", "CoreMLExecutionProvider", "onnxruntime", flavours=("standard",), needs="macOS"),
        Provider(
            "tensorrt", "TensorrtExecutionProvider", "onnxruntime-gpu", flavours=("standard",), behind=("cuda",),
            needs="an NVIDIA GPU with its driver, CUDA, cuDNN and TensorRT",
        ),
        Provider(
            "qnn", "QNNExecutionProvider", "onnxruntime-qnn", module="onnxruntime_qnn", flavours=("standard",),
            needs="a Qualcomm processor with an NPU",
        ),
    )
}  # fmt: skip
