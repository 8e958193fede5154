"""What a recyclable module is: `recycler/config.json` states every convention, so that nothing is implied.

A wrong convention never crashes, it only lowers the acceptance rate; hence a value that this version does
not know is refused by name.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from recycle_onnx.checkpoint.base import BaseConfig, Shapes
from recycle_onnx.checkpoint.draft_vocabulary import DraftFile
from recycle_onnx.checkpoint.identity import BaseReference
from recycle_onnx.checkpoint.taps import check_taps
from recycle_onnx.contract import FINAL_POST
from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json
from recycle_onnx.limits import within

FORMAT = "1.1"
"""1.1 describes the base, so that another copy of it is recognised."""
EMBEDDING_FIRST = ("embedding", "hidden_state")
CHOICES: dict[str, tuple[Any, ...]] = {
    "concat": (EMBEDDING_FIRST, EMBEDDING_FIRST[::-1]),
    "norms_before_projection": (EMBEDDING_FIRST,),
    "final_norm": (True,),
    "recycle": ("post_norm", "pre_norm"),
    "embedding": ("shared",),
    "lm_head": ("shared",),
}
"""What each convention may be; layer and taps depend on the base."""


@dataclass(frozen=True)
class RecyclerConfig:
    """The conventions of a module that reads the hidden state at p and the token at p+1, and predicts p+2.

    `tap`: hidden states of the full model, side by side in this order (`taps.py`). `concat`: in which order they and
    the embedding stand before the projection. `recycle`: the module's own state in a chain, after or before its final
    norm; it takes the place of every tap. `window`: how many positions its layers look back, the own one included,
    where that is less than the base's layers do; None for as far as they do. `qk_norm`: whether its layers normalise
    the queries and keys of every head, also where the base's do not.
    `trained_depth` 0: it was never trained.

    `base` is the base beside it, `trained_on` the one that it was trained on, where that is another copy.
    `acceptance` is how often its proposals were right when it was published, and in what they were counted.
    """

    num_layers: int
    layer: str = "llama"
    tap: tuple[str, ...] = (FINAL_POST,)
    concat: tuple[str, ...] = EMBEDDING_FIRST
    norms_before_projection: tuple[str, ...] = EMBEDDING_FIRST
    final_norm: bool = True
    recycle: str = "post_norm"
    embedding: str = "shared"
    lm_head: str = "shared"
    window: int | None = None
    qk_norm: bool = False
    draft_vocabulary: DraftFile | None = None
    trained_depth: int = 0
    base: BaseReference | None = None
    trained_on: BaseReference | None = None
    acceptance: dict[str, Any] | None = None
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
        for name in ("base", "trained_on"):
            if values.get(name) is not None:
                values[name] = BaseReference.read(values[name], path)
        if not isinstance(values.get("acceptance"), dict | None):
            raise InputError(f"{path}: acceptance is {values['acceptance']!r}; expected an object or null")
        values["draft_vocabulary"] = _draft_file(values.get("draft_vocabulary"), path)
        tap = values.get("tap", FINAL_POST)
        values["tap"] = tuple(map(str, tap)) if isinstance(tap, tuple) else (str(tap),)
        _check_kinds(values, path)
        config = cls(**values)
        config.check(str(path))
        return config

    def check(self, where: str) -> None:
        """Refuse conventions that this version does not know; `where` says who asks.

        Raises:
            InputError: names the convention and what it may be.
        """
        for name, accepted in CHOICES.items():
            if (value := getattr(self, name)) not in accepted:
                expected = " or ".join(map(repr, accepted))
                raise InputError(f"{where}: {name} {value!r} is not supported; expected {expected}")

        if self.window is not None and (type(self.window) is not int or self.window < 1):
            raise InputError(f"{where}: window {self.window!r} is not supported; expected null, or at least 1 position")
        if type(self.qk_norm) is not bool:
            raise InputError(f"{where}: qk_norm {self.qk_norm!r} is not supported; expected true or false")

    def check_base(self, base: BaseConfig, where: str) -> None:
        """Refuse layers of another kind than the base's, and taps that it has not.

        Raises:
            InputError: names them and what the base has.
        """
        if self.layer != base.model_type:
            raise InputError(
                f"{where}: layer {self.layer!r} is not supported; "
                f"expected {base.model_type!r}, the kind of its base's layers"
            )
        check_taps(self.tap, base.num_layers, where)

    def to_json(self) -> dict[str, Any]:
        """Return the content of `recycler/config.json`."""
        return asdict(self)

    def layers_of(self, base: BaseConfig) -> BaseConfig:
        """Describe the module's layers: of the kind of the base's last ones, but for what differs."""
        last = base.last(self.num_layers)
        layers = last.layers
        if self.window is not None:
            layers = tuple(replace(layer, window=min(self.window, layer.window or self.window)) for layer in layers)
        return replace(last, layers=layers, qk_norm=(last.qk_norm or "head") if self.qk_norm else last.qk_norm)

    @property
    def trained(self) -> bool:
        """Whether anything was learnt."""
        return self.trained_depth != 0

    def hidden_norms(self) -> list[str]:
        """Return names of the norms' weights, one a tap."""
        if len(self.tap) == 1:
            return ["hidden_norm.weight"]
        return [f"hidden_norm.{index}.weight" for index in range(len(self.tap))]

    def tensor_shapes(self, base: BaseConfig) -> Shapes:
        """Return names and shapes of the module's own tensors; embedding and LM head are the base's."""
        hidden = base.hidden_size
        shapes: Shapes = {
            "embedding_norm.weight": (hidden,),
            **dict.fromkeys(self.hidden_norms(), (hidden,)),
            "projection.weight": (hidden, (1 + len(self.tap)) * hidden),
        }
        for index in range(self.num_layers):
            shapes |= self.layers_of(base).layer_shapes(f"layers.{index}.")
        return shapes | base.norm_shapes("norm")


def _check_kinds(values: dict[str, Any], path: Path) -> None:
    """Check sizes, and the texts and objects that `check` does not compare with its choices."""
    try:
        within("num_layers", values.get("num_layers"))
        within("trained_depth", values.get("trained_depth", 0), 0)
        for name, kind, expected in (("layer", str, "a text"), ("training", dict, "an object")):
            if not isinstance(values.get(name, kind()), kind):
                raise ValueError(f"{name} is {values[name]!r:.100}; expected {expected}")
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def _draft_file(value: Any, path: Path) -> DraftFile | None:
    if value is None:
        return None
    if isinstance(value, dict):
        size, file = value.get("size"), value.get("file")
        if type(size) is int and size > 0 and isinstance(file, str) and Path(file).name == file:
            return DraftFile(size, file)
    raise InputError(f"{path}: draft_vocabulary {value!r} is not supported; expected null, or a size and a file beside")
