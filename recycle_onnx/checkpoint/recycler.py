"""What a recyclable module is: `recycler/config.json` states every convention, so that nothing is implied.

A wrong convention never crashes, it only lowers the acceptance rate; hence a value that this version does
not know is refused by name.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from recycle_onnx.checkpoint.base import BaseConfig, Shapes
from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json

FORMAT = "1.0"


@dataclass(frozen=True)
class BaseReference:
    """Which base a module belongs to: its digests, and its folder when it lies elsewhere."""

    config_sha256: str
    weights_sha256: str
    path: str | None = None


@dataclass(frozen=True)
class RecyclerConfig:
    """Conventions of a module that reads the hidden state at p and the token at p+1, and predicts p+2."""

    num_layers: int
    layer: str = "llama"
    tap: str = "final_post"
    concat: tuple[str, ...] = ("embedding", "hidden_state")
    norms_before_projection: tuple[str, ...] = ("embedding", "hidden_state")
    final_norm: bool = True
    recycle: str = "post_norm"
    embedding: str = "shared"
    lm_head: str = "shared"
    draft_vocabulary: None = None
    trained_depth: int = 0
    base: BaseReference | None = None
    training: dict[str, Any] = field(default_factory=dict)
    format: str = FORMAT

    @classmethod
    def read(cls, path: Path) -> RecyclerConfig:
        """Read `recycler/config.json`; fields that a later minor version added are ignored.

        Raises:
            InputError: a future format, a missing field, or a convention this version does not know.
        """
        raw = read_json(path)
        version = str(raw.get("format", ""))
        if version.split(".")[0] != FORMAT.split(".")[0]:
            raise InputError(f"{path}: format {version!r} is not known; this version reads {FORMAT}: upgrade it")
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in raw.items() if name in known
        }
        if base := values.get("base"):
            if not isinstance(base, dict):
                raise InputError(f"{path}: base is {base!r}; expected the digests of the module's base")
            digests: dict[str, Any] = {f.name: base.get(f.name) for f in fields(BaseReference)}
            values["base"] = BaseReference(**digests)
        if not isinstance(values.get("num_layers"), int) or values["num_layers"] < 1:
            raise InputError(f"{path}: num_layers is {values.get('num_layers')!r}; expected at least 1")
        config = cls(**values)
        config._refuse_unknown_conventions(path)
        return config

    def _refuse_unknown_conventions(self, path: Path) -> None:
        reference = RecyclerConfig(num_layers=1)
        for name in (
            "tap", "concat", "norms_before_projection", "final_norm", "recycle", "embedding", "lm_head",
            "draft_vocabulary",
        ):  # fmt: skip
            given, expected = getattr(self, name), getattr(reference, name)
            if given != expected:
                raise InputError(f"{path}: {name} {given!r} is not supported; expected {expected!r}")

    def to_json(self) -> dict[str, Any]:
        """The content of `recycler/config.json`."""
        return asdict(self)

    def tensor_shapes(self, base: BaseConfig) -> Shapes:
        """Names and shapes of the module's own tensors; embedding and LM head are the base's."""
        hidden = base.hidden_size
        shapes: Shapes = {
            "embedding_norm.weight": (hidden,),
            "hidden_norm.weight": (hidden,),
            "projection.weight": (hidden, 2 * hidden),
        }
        for index in range(self.num_layers):
            shapes |= base.layer_shapes(f"layers.{index}.")
        return shapes | base.norm_shapes("norm")
