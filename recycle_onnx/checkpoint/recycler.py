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
from recycle_onnx.checkpoint.families import describe
from recycle_onnx.checkpoint.identity import BaseReference
from recycle_onnx.checkpoint.taps import FUSED, check_taps
from recycle_onnx.contract import FINAL_POST
from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json
from recycle_onnx.limits import within

FORMAT, FORMAT_OF_HEADS = "1.1", "1.2"
"""1.1 describes the base, so that another copy of it is recognised; 1.2 has what only other people's heads need."""
EMBEDDING_FIRST = ("embedding", "hidden_state")
"""The order of RecycleGPT's paper; checkpoints of other trainings concatenate the other way round."""
PROJECTION, ATTENTION = "projection", "attention"
"""What may read the embedding and the hidden state side by side; or nothing does, and the embedding is not read."""
CHOICES: dict[str, tuple[Any, ...]] = {
    "concat": (EMBEDDING_FIRST, EMBEDDING_FIRST[::-1]),
    "norms_before_projection": (EMBEDDING_FIRST, ("embedding",), ("hidden_state",), ()),
    "final_norm": (True, False),
    "recycle": ("post_norm", "pre_norm"),
    "embedding": ("shared", "own"),
    "lm_head": ("shared", "own"),
    "fusion": (None, "linear", "norm, linear", "norms, linear"),
    "join": (PROJECTION, ATTENTION, None),
    "residual": ("hidden_state", "normed_hidden_state"),
    "first_norm": (True, False),
    "projection_bias": (False, True),
}
"""What each convention may be; layer and taps depend on the base."""
OF_HEADS = (
    "fusion", "join", "residual", "first_norm", "projection_bias", "places", "blocks", "layer_config", "read_from",
)  # fmt: skip
"""Fields that `config.json` has only where they say something: modules of our own never need them."""
SINCE_HEADS = ("norms_before_projection", "final_norm", "embedding", "lm_head")
"""Fields that had one value only before other people's heads were read."""

FUSION = "fusion_projection.weight"
"""Names of tensors that only some modules have; what a bundle keeps in more bits goes by parts of these names."""
OWN_EMBEDDING, OWN_HEAD = "embed_tokens.weight", "lm_head.weight"
FIRST_NORM = "layers.0.input_layernorm."
FIRST_MATRICES = tuple(f"layers.0.self_attn.{part}_proj.weight" for part in "qkv")
WITHOUT_LAYERS: dict[str, Any] = {
    "num_layers": 0, "norms_before_projection": (), "final_norm": False, "recycle": "pre_norm", "embedding": "shared",
    "window": None, "qk_norm": False, "fusion": None, "layer_config": None,
}  # fmt: skip
"""What is true of a module that reads the hidden state alone: it has no layers, and a chain nothing to go on from."""


@dataclass(frozen=True)
class RecyclerConfig:
    """The conventions of a module that reads the hidden state at p and the token at p+1, and predicts p+2.

    `tap`: hidden states of the full model, side by side in this order (`taps.py`). `concat`: in which order they and
    the embedding stand before the projection. `recycle`: the module's own state in a chain, after or before its final
    norm; it takes the place of every tap. `window`: how many positions its layers look back, the own one included,
    where that is less than the base's layers do; None for as far as they do. `qk_norm`: whether its layers normalise
    the queries and keys of every head, also where the base's do not.
    `trained_depth` 0: it was never trained.

    `fusion`: how the taps become one hidden state before everything else, where they do: a matrix, before which there
    is one norm over all taps side by side, or a norm for each tap. A chain goes on behind it. `join`: whether a
    projection reads embedding and hidden state, or the first layer's attention itself, whose matrices are then twice as
    wide (EAGLE-3, arXiv 2503.01840); that layer adds to the `residual`, the hidden state before or after its norm.
    `places`: how many tokens one run proposes, where nothing joins embedding and hidden state (Medusa, arXiv
    2401.10774). There are no layers then: each place has `blocks` of its own, x + SiLU(projection(x)), which begin with
    the hidden state, and perhaps an LM head of its own. The n-th place is the n-th of a chain.
    `first_norm`: whether the first layer normalises what a projection gives it. `layer_config`: the `config.json` of
    the layers where they are not of the base's kind. `read_from`: whose format the module was read from, and what was
    measured of its conventions.

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
    fusion: str | None = None
    join: str | None = PROJECTION
    residual: str = "hidden_state"
    first_norm: bool = True
    projection_bias: bool = False
    places: int = 1
    blocks: int = 0
    layer_config: dict[str, Any] | None = None
    read_from: dict[str, Any] | None = None
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
        for name in ("acceptance", "layer_config", "read_from"):
            if not isinstance(values.get(name), dict | None):
                raise InputError(f"{path}: {name} is {values[name]!r:.100}; expected an object or null")
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
        if self.fusion and len(self.tap) < 2:
            raise InputError(f"{where}: fusion {self.fusion!r} of one tap; expected two taps or more")
        if self.join == ATTENTION and not self.fusion and len(self.tap) > 1:
            raise InputError(f"{where}: join {ATTENTION!r} of {len(self.tap)} taps without fusion; expected a fusion")
        self._check_places(where)

    def _check_places(self, where: str) -> None:
        """Refuse layers of a module that reads the hidden state alone, and places of any other."""
        expected = WITHOUT_LAYERS if self.join is None else {"places": 1, "blocks": 0}
        for name, value in expected.items():
            if (own := getattr(self, name)) != value:
                raise InputError(f"{where}: {name} is {own!r:.80} with join {self.join!r}; expected {value!r}")
        if self.join is not None and self.num_layers < 1:
            raise InputError(f"{where}: num_layers is {self.num_layers} with join {self.join!r}; expected at least 1")
        if self.join is None and len(self.tap) > 1:
            raise InputError(f"{where}: {len(self.tap)} taps that nothing joins; expected one")

    def check_base(self, base: BaseConfig, where: str) -> None:
        """Refuse layers of another kind than the base's, and taps that it has not.

        Raises:
            InputError: names them and what the base has.
        """
        kind = base.model_type if self.layer_config is None else self.layer_config.get("model_type")
        if self.layer != kind:
            raise InputError(
                f"{where}: layer {self.layer!r} is not supported; expected {kind!r}, the kind of its "
                f"{'base' if self.layer_config is None else 'layer_config'}'s layers"
            )
        self.layers_of(base)  # refuses a layer_config that says nothing sensible
        check_taps(self.tap, base.num_layers, where)

    def to_json(self) -> dict[str, Any]:
        """Return the content of `recycler/config.json`, without what only heads say where it says nothing."""
        usual = RecyclerConfig(self.num_layers)
        differ = {name for name in (*OF_HEADS, *SINCE_HEADS) if getattr(self, name) != getattr(usual, name)}
        values = {name: value for name, value in asdict(self).items() if name not in OF_HEADS or name in differ}
        return {**values, "format": FORMAT_OF_HEADS if differ else self.format}

    def layers_of(self, base: BaseConfig) -> BaseConfig:
        """Describe the module's layers: of the kind of the base's last ones, but for what differs."""
        own = base if self.layer_config is None else self._described(base, self.layer_config)
        last = own.last(self.num_layers)
        layers = last.layers
        if self.window is not None:
            layers = tuple(replace(layer, window=min(self.window, layer.window or self.window)) for layer in layers)
        return replace(last, layers=layers, qk_norm=(last.qk_norm or "head") if self.qk_norm else last.qk_norm)

    def _described(self, base: BaseConfig, layer_config: dict[str, Any]) -> BaseConfig:
        """Describe layers that are not the base's, between the base's embedding and its LM head."""
        where = Path("recycler") / "config.json"
        own, _ = describe(layer_config, where)
        if own.num_layers != self.num_layers or own.hidden_size != base.hidden_size:
            raise InputError(
                f"{where}: layer_config has {own.num_layers} layers of {own.hidden_size}; "
                f"expected {self.num_layers} of {base.hidden_size}, the base's hidden size"
            )
        return replace(
            own,
            vocab_size=base.vocab_size,
            context_length=base.context_length,
            tied_embeddings=base.tied_embeddings,
        )

    @property
    def size(self) -> str:
        """What it is made of, in words."""
        count, part = (self.num_layers, "layer") if self.join is not None else (self.places, "place")
        return f"{count} {part}{'' if count == 1 else 's'}"

    @property
    def trained(self) -> bool:
        """Whether anything was learnt."""
        return self.trained_depth != 0

    @property
    def states(self) -> tuple[str, ...]:
        """What the module's graph reads side by side: the taps, or the one state that the full model makes of them."""
        return (FUSED,) if self.fusion else self.tap

    @property
    def reads_directly(self) -> bool:
        """Whether the first layer's attention reads its input as it is, without a norm of that layer."""
        return self.join == ATTENTION or not self.first_norm

    def hidden_norms(self) -> list[str]:
        """Return names of the norms' weights, one a hidden state that the module reads; none without such norms."""
        if "hidden_state" not in self.norms_before_projection:
            return []
        if len(self.states) == 1:
            return ["hidden_norm.weight"]
        return [f"hidden_norm.{index}.weight" for index in range(len(self.states))]

    def fusion_norms(self) -> list[str]:
        """Return names of the norms' weights before the fusion of taps: none, one over all of them, or one a tap."""
        if self.fusion == "norms, linear":
            return [f"fusion_norm.{index}.weight" for index in range(len(self.tap))]
        return ["fusion_norm.weight"] if self.fusion == "norm, linear" else []

    def tensor_shapes(self, base: BaseConfig) -> Shapes:
        """Return names and shapes of the module's own tensors; what it shares is the base's."""
        if self.join is None:
            return self._place_shapes(base)
        hidden, taps, layers = base.hidden_size, len(self.tap), self.layers_of(base)
        width = (1 + len(self.states)) * hidden
        shapes: Shapes = {}
        if "embedding" in self.norms_before_projection:
            shapes["embedding_norm.weight"] = (hidden,)
        shapes |= dict.fromkeys(self.hidden_norms(), (hidden,))
        if self.fusion:
            norms = self.fusion_norms()
            shapes |= dict.fromkeys(norms, (hidden * (taps if len(norms) == 1 else 1),))
            shapes[FUSION] = (hidden, taps * hidden)
        if self.join == PROJECTION:
            shapes["projection.weight"] = (hidden, width)
            shapes |= {"projection.bias": (hidden,)} if self.projection_bias else {}
        for index in range(self.num_layers):
            shapes |= layers.layer_shapes(f"layers.{index}.")
        if self.reads_directly:
            shapes = {name: shape for name, shape in shapes.items() if not name.startswith(FIRST_NORM)}
        if self.join == ATTENTION:
            shapes |= {name: (shapes[name][0], width) for name in FIRST_MATRICES}
        shapes |= layers.norm_shapes("norm") if self.final_norm else {}
        if self.embedding == "own":
            shapes[OWN_EMBEDDING] = (base.vocab_size, hidden)
        if self.lm_head == "own":
            shapes[OWN_HEAD] = (self.proposes(base), hidden)
        return shapes

    def proposes(self, base: BaseConfig) -> int:
        """Count the tokens that the module has logits for."""
        return base.vocab_size if self.draft_vocabulary is None else self.draft_vocabulary.size

    def _place_shapes(self, base: BaseConfig) -> Shapes:
        """Return names and shapes of the tensors of a module that has places for layers."""
        hidden, shapes = base.hidden_size, Shapes()
        for place in range(self.places):
            for block in range(self.blocks):
                name = block_name(place, block)
                shapes[f"{name}.weight"] = (hidden, hidden)
                shapes |= {f"{name}.bias": (hidden,)} if self.projection_bias else {}
            if self.lm_head == "own":
                shapes[place_head(place)] = (self.proposes(base), hidden)
        return shapes


def block_name(place: int, block: int) -> str:
    """Return the beginning of a block's names, by its place in a chain and its number there."""
    return f"places.{place}.projection.{block}"


def place_head(place: int) -> str:
    """Return the name of a place's own LM head."""
    return f"places.{place}.{OWN_HEAD}"


def _check_kinds(values: dict[str, Any], path: Path) -> None:
    """Check sizes, and the texts and objects that `check` does not compare with its choices."""
    try:
        within("num_layers", values.get("num_layers"), 0)
        within("trained_depth", values.get("trained_depth", 0), 0)
        within("places", values.get("places", 1))
        within("blocks", values.get("blocks", 0), 0)
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
