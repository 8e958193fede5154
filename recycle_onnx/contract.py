"""The graphs' interface: names, element types and shapes of what goes in and comes out.

The one thing that exporter and runtime have in common. B batch, S tokens in this call; a key-value buffer has at
least as many rows as the text. The valid length T after the call is the number of ones in the attention mask; what
the mask and the buffers hold beyond T is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

INPUT_IDS = "input_ids"
"""Names of inputs and outputs as optimum has them, so that other programs run `model.onnx` as it is."""
ATTENTION_MASK = "attention_mask"
HIDDEN_STATES = "hidden_states"
HIDDEN_STATES_OUT = "hidden_states_out"
RECYCLE_STATES = "recycle_states"
LOGITS = "logits"
LOGITS_TO_KEEP = "logits_to_keep"
DROPPED_ROWS = "dropped_rows"

BATCH = "batch_size"
"""Names of free dimensions; `TOTAL` is an expression, which ONNX Runtime compares as a text."""
SEQUENCE = "sequence_length"
PAST = "past_sequence_length"
TOTAL = "past_sequence_length + sequence_length"

FINAL_POST = "final_post"
"""The tap that `hidden_states` is: the full model's residual stream after its final norm."""

Pooling = Literal["mean", "last"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
"""Ways to make one vector of a text's hidden states: the mean of all, or the last token's."""

Kind = Literal["full", "recycler"]
FloatType = Literal["float32", "float16"]
CacheType = Literal["float32", "float16", "uint8", "int8"]
"""Element types of key-value buffers."""
BYTES: dict[CacheType, int] = {"float32": 4, "float16": 2, "uint8": 1, "int8": 1}


class Tensor(NamedTuple):
    """The element type (`int64`, `float32`, …) and shape; a string is a free dimension's name."""

    dtype: str
    shape: tuple[str | int, ...]


def tap_output(tap: str) -> str:
    """Return the name of the full model's output for a tap."""
    return HIDDEN_STATES if tap == FINAL_POST else f"{HIDDEN_STATES}.{tap}"


@dataclass(frozen=True)
class GraphSpec:
    """The numbers that decide a graph's interface.

    `vocab_size` is the number of logits of a token, which are float32 always.

    `float_type` is that of hidden states, and of key-value buffers where there is no `cache_type`. With `int8` keys are
    uint8 around 128 and values int8, in steps that the graph knows; past and present are then buffers of one size, and
    a run has one text. `taps` are the hidden states of the full model that the module reads, side by side. `places` are
    the tokens that a run of the module proposes: the logits of all of them lie side by side. A module without layers
    has such places only; with layers, a chain goes on by a run for each token. `reach` is how many rows decide what
    comes out for the last of them, itself included; None where all before it do. `windows` are the rows that each layer
    sees, the last one included, None for all; empty where the graph needs all rows of every layer nonetheless.
    `flavour` is the manifest's, which tells it to its graphs.
    """

    kind: Kind
    num_layers: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    float_type: FloatType = "float32"
    taps: tuple[str, ...] = (FINAL_POST,)
    cache_type: Literal["int8"] | None = None
    places: int = 1
    reach: int | None = None
    windows: tuple[int | None, ...] = ()
    flavour: str = "ort"

    @property
    def longest_chain(self) -> int | None:
        """Most tokens that the module can propose; None for as many as are asked for."""
        return None if self.num_layers else self.places

    @property
    def state_size(self) -> int:
        """Width of what the module reads: a hidden state for each tap."""
        return len(self.taps) * self.hidden_size

    @property
    def state_input(self) -> str:
        """Name of what the module reads [B, S, state_size]."""
        return HIDDEN_STATES if self.taps == (FINAL_POST,) else RECYCLE_STATES

    def state_outputs(self) -> list[str]:
        """Return outputs that, side by side, are the module's next input: the taps, or its own state."""
        return [tap_output(tap) for tap in self.taps] if self.kind == "full" else [HIDDEN_STATES_OUT]

    def past_names(self) -> list[str]:
        """Return names of the key-value inputs, key and value of layer 0 first."""
        return [f"past_key_values.{layer}.{part}" for layer in range(self.num_layers) for part in ("key", "value")]

    def present_names(self) -> list[str]:
        """Return names of the key-value outputs, in the order of `past_names`."""
        return [f"present.{layer}.{part}" for layer in range(self.num_layers) for part in ("key", "value")]

    def cache_types(self) -> list[CacheType]:
        """Return element types of the key-value buffers, in the order of `past_names`."""
        pair: list[CacheType] = ["uint8", "int8"] if self.cache_type == "int8" else [self.float_type, self.float_type]
        return pair * self.num_layers

    def has_window(self) -> list[bool]:
        """Tell of each key-value buffer, in the order of `past_names`, whether it can do without its oldest rows."""
        by_layer = [window is not None for window in self.windows] or [False] * self.num_layers
        return [has_window for has_window in by_layer for _ in ("key", "value")]

    @property
    def widest_window(self) -> int | None:
        """Rows that layers with a window see at most; None where there are none."""
        return max((window for window in self.windows if window is not None), default=None)

    @property
    def row_bytes(self) -> int:
        """Bytes that the keys and values of a token take."""
        return sum(BYTES[dtype] for dtype in self.cache_types()) * self.num_kv_heads * self.head_dim

    def inputs(self) -> dict[str, Tensor]:
        """Return the required inputs, in the graph's order."""
        states = {self.state_input: self._states(self.state_size)}
        return {
            INPUT_IDS: Tensor("int64", (BATCH, SEQUENCE)),
            **(states if self.kind == "recycler" else {}),
            ATTENTION_MASK: Tensor("int64", (BATCH, TOTAL)),
            **self._caches(self.past_names(), PAST),
        }

    def optional_inputs(self) -> dict[str, Tensor]:
        """Return the inputs with a default of 0.

        `logits_to_keep` is the number of last rows that get logits, 0 for all. `dropped_rows` is how many rows of the
        text the buffers of layers with a window no longer have: their first one is that of the next token.
        """
        names = (LOGITS_TO_KEEP,) if self.widest_window is None else (LOGITS_TO_KEEP, DROPPED_ROWS)
        return {name: Tensor("int64", ()) for name in names}

    def outputs(self) -> dict[str, Tensor]:
        """Return all outputs, in the graph's order."""
        states = {HIDDEN_STATES: self._states(self.hidden_size)} if self.kind == "full" else {}
        width = self.hidden_size if self.kind == "full" else self.state_size
        return {
            LOGITS: Tensor("float32", (BATCH, SEQUENCE, self.places * self.vocab_size)),
            **states,
            **dict.fromkeys(self.state_outputs(), self._states(width)),
            **self._caches(self.present_names(), TOTAL if self.cache_type is None else PAST),
        }

    def _states(self, width: int) -> Tensor:
        return Tensor(self.float_type, (BATCH, SEQUENCE, width))

    def _caches(self, names: list[str], rows: str) -> dict[str, Tensor]:
        shape = (BATCH, self.num_kv_heads, rows, self.head_dim)
        return {name: Tensor(dtype, shape) for name, dtype in zip(names, self.cache_types(), strict=True)}
