"""What a base model is, whatever its family: the numbers its computation depends on, and the tensors it consists of.

A family (`checkpoint/families`) reads a `config.json` into this description; exporter, torch model and `attach` know
the description only. Tensors have neutral names, those of a Hugging Face Llama where it has such a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from recycle_onnx.limits import LEAST, MOST

Shapes = dict[str, tuple[int, ...]]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]
Placement = Literal["pre", "post", "both", "parallel"]

SIZES = (
    "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "vocab_size",
    "context_length",
)  # fmt: skip
"""Sizes with limits: at least `LEAST` (1 where it says nothing), at most `MOST`."""


@dataclass(frozen=True)
class Norm:
    """A norm over the last axis: RMSNorm (arXiv 1910.07467) or LayerNorm (arXiv 1607.06450).

    With `plus_one` a stored weight w acts as 1 + w.
    """

    eps: float
    kind: Literal["rms", "layer"] = "rms"
    bias: bool = False
    plus_one: bool = False


@dataclass(frozen=True)
class Rope:
    """A rotary embedding (arXiv 2104.09864) of the first 2 · len(frequencies) values of a head.

    Position p turns pair i by p · frequencies[i] radians, whatever scaling those came from, and stretches it by
    `factor`. Pair i are values i and i + len(frequencies), or, `interleaved`, values 2i and 2i + 1.
    """

    frequencies: tuple[float, ...]
    factor: float = 1.0
    interleaved: bool = False


@dataclass(frozen=True)
class Layer:
    """The fields in which layers may differ: `scale` of attention scores, `window` (keys seen, own one included)."""

    scale: float
    rope: Rope | None = None
    window: int | None = None


@dataclass(frozen=True)
class BaseConfig:
    """A causal decoder of attention and feed-forward layers.

    Norms stand before attention and feed-forward (`pre`), behind them and before the residual sum (`post`), in `both`
    places; or before, where both read the same residual stream (`parallel`). `qk_norm` normalises queries and keys,
    each head before (`head`) or after (`rotated_head`) it is rotated, or their whole `width`. Learned positions begin
    in row `position_offset` of their table; None: there are none. Softcaps are c · tanh(x / c). `logit_scale` and
    `embedding_scale` multiply, `residual_scale` what a sublayer adds.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    tied_embeddings: bool
    norm: Norm
    layers: tuple[Layer, ...]
    placement: Placement = "pre"
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: Literal["head", "rotated_head", "width"] | None = None
    attention_softcap: float | None = None
    gated: bool = True
    activation: Activation = "silu"
    feed_forward_bias: bool = False
    position_offset: int | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    genai_type: str = "decoder"
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_layers(self) -> int:
        """The number of decoder layers."""
        return len(self.layers)

    def last(self, count: int) -> BaseConfig:
        """Return the description with the last `count` layers only: the kind that a module's layers have."""
        return replace(self, layers=self.layers[len(self.layers) - count :])

    def ropes(self) -> list[Rope]:
        """Return the distinct rotary embeddings, in the order of their first layers."""
        return list(dict.fromkeys(layer.rope for layer in self.layers if layer.rope))

    def contradiction(self) -> str | None:
        """Say what is impossible about these numbers, if anything."""
        for name in SIZES:
            if getattr(self, name) < (least := LEAST.get(name, 1)):
                return f"{name} is {getattr(self, name)}; expected at least {least}"
            if getattr(self, name) > MOST[name]:
                return f"{name} is {getattr(self, name)}; expected at most {MOST[name]}"
        if self.num_heads % self.num_kv_heads:
            return f"{self.num_heads} attention heads cannot share {self.num_kv_heads} key-value heads evenly"
        if any(2 * len(rope.frequencies) > self.head_dim for rope in self.ropes()):
            return f"head_dim is {self.head_dim}; rotary embeddings need an even one, at least as wide as they are"
        return None

    def layer_shapes(self, prefix: str) -> Shapes:
        """Return names and shapes of one decoder layer's tensors, linear weights as [out, in]."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        shapes = self._norm_at(f"{prefix}input_layernorm", self.placement != "post")
        for part, rows in (("q", queries), ("k", keys), ("v", keys)):
            shapes |= _linear(f"{attention}{part}_proj", rows, hidden, self.qkv_bias)
        if self.qk_norm:
            widths = (queries, keys) if self.qk_norm == "width" else (self.head_dim, self.head_dim)
            for part, width in zip("qk", widths, strict=True):
                shapes |= self.norm_shapes(f"{attention}{part}_norm", width)
        shapes |= _linear(f"{attention}o_proj", hidden, queries, self.output_bias)
        shapes |= self._norm_at(f"{prefix}attention_output_norm", self.placement in ("post", "both"))
        shapes |= self._norm_at(f"{prefix}post_attention_layernorm", self.placement != "post")
        for part in ("gate_proj", "up_proj") if self.gated else ("up_proj",):
            shapes |= _linear(f"{mlp}{part}", inner, hidden, self.feed_forward_bias)
        shapes |= _linear(f"{mlp}down_proj", hidden, inner, self.feed_forward_bias)
        return shapes | self._norm_at(f"{prefix}feed_forward_output_norm", self.placement in ("post", "both"))

    def _norm_at(self, name: str, present: bool) -> Shapes:
        return self.norm_shapes(name) if present else {}

    def norm_shapes(self, name: str, width: int | None = None) -> Shapes:
        """Return names and shapes of a norm's tensors, over the hidden size unless another `width` is named."""
        shape = (width or self.hidden_size,)
        shapes: Shapes = {f"{name}.weight": shape}
        return shapes | ({f"{name}.bias": shape} if self.norm.bias else {})

    def tensor_shapes(self) -> Shapes:
        """Return neutral names and shapes of every tensor of the base."""
        shapes: Shapes = {"model.embed_tokens.weight": (self.vocab_size, self.hidden_size)}
        if self.position_offset is not None:
            rows = self.context_length + self.position_offset
            shapes["model.embed_positions.weight"] = (rows, self.hidden_size)
        for index in range(self.num_layers):
            shapes |= self.layer_shapes(f"model.layers.{index}.")
        shapes |= self.norm_shapes("model.norm")
        if not self.tied_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        return shapes

    def summary(self) -> dict[str, Any]:
        """Return the description as plain values, without its layers and its `config.json`."""
        plain = replace(self, layers=(), raw={})
        return {"num_layers": self.num_layers, **{k: v for k, v in asdict(plain).items() if k not in _LONG}}

    def to_hugging_face(self, **changes: Any) -> dict[str, Any]:
        """Return the `config.json` that the description was read from, with `changes`."""
        return {**self.raw, **changes}


_LONG = ("layers", "raw")
"""Fields that a summary leaves out: an entry for each layer, and the whole config."""


def _linear(name: str, rows: int, columns: int, bias: bool) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (rows, columns)}
    return shapes | ({f"{name}.bias": (rows,)} if bias else {})
