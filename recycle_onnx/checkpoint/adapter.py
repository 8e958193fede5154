"""LoRA adapters (arXiv 2106.09685) as PEFT saves them: what they add to a base's tensors, or put in their place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recycle_onnx.checkpoint.weights import ADAPTER, Safetensors
from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json

WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
PREFIX = "base_model.model."
"""What PEFT puts before transformers' names of modules."""
WRAPPERS = (".base_layer", ".modules_to_save")
"""Names that PEFT puts between a module and its own tensors; they stand for the module itself."""
FACTORS = {
    ".lora_A.weight": (".lora_B.weight", False),
    ".lora_embedding_A": (".lora_embedding_B", True),
}
"""Endings of the names of A and of B, and whether B · A is the transpose of an embedding's table."""
READ = ("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out")
WITHOUT_EFFECT = (
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save", "peft_version", "qalora_group_size",
    "revision", "runtime_config", "target_modules", "task_type",
)  # fmt: skip
"""Fields of a config that say how an adapter was trained, or what the names of its tensors say again."""
BEGINNINGS = (None, True, False, "gaussian", "eva")
"""Values of `init_lora_weights` that leave the base as it is. (PiSSA and its like change its weights too.)"""
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
"""What the name of a base on the hub looks like."""
QUANTIFIER = re.compile(r"[*+?{]")
MOST_QUANTIFIERS = 4
"""Of a pattern for names: more of them, or one after a group, could take years to try on a name."""


@dataclass(frozen=True)
class LowRank:
    """What is added to a matrix: `scale` · B · A, or the transpose of that. `a` and `b` name the factors' tensors."""

    a: str
    b: str
    scale: float
    transposed: bool

    def shape(self, tensors: Safetensors) -> tuple[int, ...]:
        """Return the shape of what is added."""
        shape = (tensors.shape(self.b)[0], tensors.shape(self.a)[1])
        return shape[::-1] if self.transposed else shape


class Adapter:
    """An adapter's tensors by the names of the base's, as transformers has them.

    `added` are low-rank matrices to add; `replaced` are names of tensors that take the place of the base's.
    """

    def __init__(self, folder: Path) -> None:
        """Read config and headers.

        Raises:
            InputError: no adapter, a pickle, another kind than LoRA, or a damaged or contradictory one.
        """
        self.folder = folder
        if not folder.is_dir():
            what = "a file" if folder.exists() else "no such folder"
            raise InputError(f"{folder}: {what}; expected an adapter's folder, with {ADAPTER} and {WEIGHTS}")
        self._path = folder / ADAPTER
        if not self._path.is_file():
            raise InputError(f"{folder}: not an adapter; expected PEFT's {ADAPTER} and {WEIGHTS} in it")
        self.config = read_json(self._path)
        self._check()
        if (folder / PICKLE).exists() and not (folder / WEIGHTS).exists():
            raise InputError(
                f"{folder / PICKLE}: a torch pickle, which may run any code when it is opened; expected {WEIGHTS}: "
                "load the adapter with peft, and save it with `save_pretrained`"
            )
        self.tensors = Safetensors([folder / WEIGHTS])
        self.added: dict[str, LowRank] = {}
        self.replaced: dict[str, str] = {}
        for name in sorted(self.tensors.names()):
            self._sort(name)
        if not (self.added or self.replaced):
            raise InputError(f"{folder / WEIGHTS}: holds no tensors; the adapter is damaged")

    @property
    def files(self) -> list[Path]:
        """The files that say what the adapter does."""
        return [self._path, *self.tensors.files]

    def origin(self) -> dict[str, Any]:
        """Return what `source.json` records: the folder's name, the base that was named and the files' digest.

        (Of a base in a folder only its name: what is published names no path of anybody's machine.)
        """
        base = self.config.get("base_model_name_or_path")
        if not isinstance(base, str) or not HUB_ID.fullmatch(base):
            base = re.split(r"[/\\]", str(base or "").rstrip("/\\"))[-1] or None
        return {"name": self.folder.resolve().name, "base": base, "sha256": self.tensors.digest()}

    def _check(self) -> None:
        """Refuse other methods than LoRA, and what changes the result and is not understood."""
        if (kind := self.config.get("peft_type")) != "LORA":
            raise self._wrong("peft_type", kind, "'LORA'")
        if self.config.get("use_dora"):
            raise self._wrong("use_dora", True, "LoRA without DoRA; merge it with peft's `merge_and_unload()`")
        beginning = self.config.get("init_lora_weights")
        if beginning not in BEGINNINGS:
            raise self._wrong("init_lora_weights", beginning, "an adapter that leaves its base's weights as they are")
        for name, value in self.config.items():
            if value and name not in (*READ, *WITHOUT_EFFECT):
                raise self._wrong(name, value, "none; merge it with peft's `merge_and_unload()`")

    def _sort(self, stored: str) -> None:
        """Take one tensor as a factor or as a replacement.

        Raises:
            InputError: its name is none that PEFT gives, or it lacks its other factor.
        """
        name = stored.removeprefix(PREFIX)
        for first, (second, transposed) in FACTORS.items():
            if name.endswith(first):
                module = name.removesuffix(first)
                self.added[f"{module}.weight"] = self._low_rank(module, stored, f"{PREFIX}{module}{second}", transposed)
                return
            if name.endswith(second):
                self._need(f"{PREFIX}{name.removesuffix(second)}{first}", stored)
                return
        if name == stored or "lora_" in name or not name.endswith((".weight", ".bias")):
            raise InputError(f"{self.tensors.where}: tensor {stored!r} is not known; expected PEFT's LoRA factors")
        module, _, kind = name.rpartition(".")
        for wrapper in WRAPPERS:
            module = module.removesuffix(wrapper)
        self.replaced[f"{module}.{kind}"] = stored

    def _low_rank(self, module: str, a: str, b: str, transposed: bool) -> LowRank:
        self._need(b, a)
        rank, alpha = self._of(module, "r", "rank_pattern"), self._of(module, "lora_alpha", "alpha_pattern")
        first, second = self.tensors.shape(a), self.tensors.shape(b)
        if len(first) != 2 or len(second) != 2 or not first[0] == second[1] == rank:
            raise InputError(
                f"{self.tensors.where}: {module} has factors of shape {list(first)} and {list(second)}; the config "
                f"implies a rank of {rank:g}"
            )
        scale = alpha / (rank**0.5 if self.config.get("use_rslora") else rank)
        return LowRank(a, b, scale, transposed or bool(self.config.get("fan_in_fan_out")))

    def _need(self, name: str, other: str) -> None:
        if name not in self.tensors.names():
            raise InputError(f"{self.tensors.where}: tensor {name!r} is missing, which belongs to {other!r}")

    def _of(self, module: str, name: str, patterns: str) -> float:
        """Return a module's rank or alpha: that of the first pattern that fits, as in PEFT, or the usual one."""
        by_pattern = self.config.get(patterns) or {}
        if not isinstance(by_pattern, Mapping):
            raise self._wrong(patterns, by_pattern, "an object")
        key = next((key for key in by_pattern if self._fits(key, module)), None)
        value: Any = self.config.get(name) if key is None else by_pattern[key]
        if type(value) not in (int, float) or not 0 < value < 1e6:
            raise self._wrong(name if key is None else f"{patterns} {key}", value, "a number above 0")
        return float(value)

    def _fits(self, pattern: str, module: str) -> bool:
        quantifiers = QUANTIFIER.findall(pattern)
        if len(quantifiers) > MOST_QUANTIFIERS or re.search(r"\)[*+?{]", pattern):
            raise self._wrong("pattern", pattern, "the name of a module, or a simple pattern")
        try:
            return re.match(rf"(.*\.)?({pattern})$", module) is not None
        except re.error as error:
            raise self._wrong("pattern", pattern, f"a regular expression ({error})") from error

    def _wrong(self, name: str, value: object, expected: str) -> InputError:
        return InputError(f"{self._path}: {name} {value!r:.100} is not supported; expected {expected}")


def stored_name(name: str, present: Iterable[str]) -> str | None:
    """Return the base's tensor that an adapter calls `name`: the trunk may have a prefix in one and not the other."""
    fits = [own for own in present if own == name or own.endswith(f".{name}") or name.endswith(f".{own}")]
    return name if name in fits else fits[0] if len(fits) == 1 else None
