"""Heads of every format, random, with their forward passes in torch as the reference implementations have them.

Decoder layers, norms and rotary embeddings are transformers' own. What stands around them is written from the source
that each class names. Nothing is cached: every step runs over the whole text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Ernie4_5Config,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
)
from transformers.models.ernie4_5 import modeling_ernie4_5 as ernie
from transformers.models.llama import modeling_llama as llama
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from recycle_onnx.files import read_json, write_json
from tests.helpers import tiny

Some = TypeVar("Some", bound=nn.Module)
LAYERS = {
    "llama": (llama.LlamaDecoderLayer, llama.LlamaRotaryEmbedding, llama.LlamaRMSNorm),
    "qwen2": (qwen2.Qwen2DecoderLayer, qwen2.Qwen2RotaryEmbedding, qwen2.Qwen2RMSNorm),
    "qwen3": (qwen3.Qwen3DecoderLayer, qwen3.Qwen3RotaryEmbedding, qwen3.Qwen3RMSNorm),
    "ernie4_5": (ernie.Ernie4_5DecoderLayer, ernie.Ernie4_5RotaryEmbedding, ernie.Ernie4_5RMSNorm),
}
CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config, "ernie4_5": Ernie4_5Config}
HIDDEN, VOCABULARY, DEPTH = 32, 300, 6
SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "vocab_size": VOCABULARY, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0, "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
"""Of heads; bases have two heads of 16 in their attention, so that a head's layers are not of the base's kind."""


def write_base(folder: Path, kind: str = "llama") -> Path:
    """A random base of six layers: no two norms are alike."""
    tiny.write_base(folder, tiny.tiny_config(num_layers=DEPTH, tied_embeddings=False), seed=8)
    if kind == "llama":
        return folder
    config = CONFIGS["qwen2" if kind == "mimo" else kind](
        **{**SIZES, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1}
    )
    if kind == "ernie4_5":
        config.use_bias = True
    torch.manual_seed(4)
    model = shaken(AutoModelForCausalLM.from_config(config).float())
    model.save_pretrained(folder)
    if kind == "mimo":
        raw = {**read_json(folder / "config.json"), "model_type": "mimo", "num_nextn_predict_layers": 1}
        write_json(folder / "config.json", {**raw, "architectures": ["MiMoForCausalLM"]})
    tiny.write_text_files(folder)
    return folder


def shaken(module: Some) -> Some:
    """Give every parameter values of its own, norms and biases included."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_((0.0 if name.endswith("bias") else 1.0) + 0.2 * torch.randn(parameter.shape))
            else:
                parameter.copy_(torch.randn(parameter.shape) * parameter.shape[-1] ** -0.5)
    return module


def transformers_base(folder: Path) -> PreTrainedModel:
    """The base as transformers runs it."""
    if read_json(folder / "config.json")["model_type"] == "mimo":
        config = Qwen2Config.from_pretrained(folder)
        return Qwen2ForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


class Decoder(nn.Module):
    """Decoder layers of transformers, run over a whole text with a causal mask and perhaps a window."""

    def __init__(self, kind: str, count: int, values: dict[str, Any]) -> None:
        super().__init__()
        layer, rotary, _ = LAYERS[kind]
        config = CONFIGS[kind](**{**SIZES, **values, "num_hidden_layers": count})
        config._attn_implementation = "eager"
        self.config = config
        self.layers = nn.ModuleList(layer(config, index) for index in range(count))
        self.rotary = [rotary(config)]  # not a module's part: it has no weights
        self.window = values.get("sliding_window") if "layer_types" in values else None

    def run(self, index: int, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        distance = places[:, None] - places
        hidden = (distance < 0) if self.window is None else (distance < 0) | (distance >= self.window)
        mask = torch.zeros(distance.shape).masked_fill(hidden, torch.finfo(torch.float32).min)[None, None]
        rotated = self.rotary[0](x, places[None])
        out = self.layers[index](x, attention_mask=mask, position_ids=places[None], position_embeddings=rotated)
        return out[0] if isinstance(out, tuple) else out


class Reference(nn.Module):
    """A head: what it makes of the base's hidden states, and one step of its chain."""

    recurrent: bool = True

    def __init__(self, kind: str, count: int = 1, **values: Any) -> None:
        super().__init__()
        self.kind, self.values = kind, values
        self.decoder = Decoder(kind, count, values)
        self.norm_class = LAYERS[kind][2]

    def new_norm(self, size: int = HIDDEN) -> nn.Module:
        return self.norm_class(size, eps=SIZES["rms_norm_eps"])

    def states(self, streams: list[Tensor], final: Tensor) -> Tensor:
        """What it reads [1, S, H]: `streams[n]` is the residual stream after n layers, `final` after the final norm."""
        return final

    def step(self, embedding: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What the LM head reads, and the state for the next step."""
        raise NotImplementedError

    def named(self) -> dict[str, Tensor]:
        """The tensors by the names of the format."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """The `config.json` of the format."""
        layers = self.decoder.config.num_hidden_layers
        return {**SIZES, **self.values, "num_hidden_layers": layers, "model_type": self.kind}


class Eagle(Reference):
    """EAGLE 1 and 2. Source: SafeAILab/EAGLE, eagle/model/cnets1.py; vLLM, model_executor/models/llama_eagle.py."""

    def __init__(self, kind: str = "llama", count: int = 1, *, bias: bool = False, **values: Any) -> None:
        super().__init__(kind, count, **values)
        self.fc = nn.Linear(2 * HIDDEN, HIDDEN, bias=bias)
        self.decoder.layers[0].input_layernorm = nn.Identity()

    def step(self, embedding: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        x = self.fc(torch.cat([embedding, hidden], dim=-1))
        for index in range(len(self.decoder.layers)):
            x = self.decoder.run(index, x)
        return x, x

    def named(self) -> dict[str, Tensor]:
        names = self.state_dict()
        return {name.removeprefix("decoder."): tensor for name, tensor in names.items()}


class HassOfSpeculators(Eagle):
    """EAGLE with norms. Source: vllm-project/speculators, models/eagle.py (`layernorms`, `fusion_bias`)."""

    def __init__(self) -> None:
        Reference.__init__(self, "llama")
        self.fusion_fc = nn.Linear(2 * HIDDEN, HIDDEN, bias=True)
        self.embedding_layernorm, self.pre_lm_head_layernorm = self.new_norm(), self.new_norm()

    def step(self, embedding: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        x = self.fusion_fc(torch.cat([self.embedding_layernorm(embedding), hidden], dim=-1))
        x = self.pre_lm_head_layernorm(self.decoder.run(0, x))
        return x, x

    def named(self) -> dict[str, Tensor]:
        return {name.replace("decoder.layers.0.", "transformer."): t for name, t in self.state_dict().items()}

    def config(self) -> dict[str, Any]:
        return {"speculators_model_type": "eagle", "transformer_layer_config": super().config()}


class Eagle3(Reference):
    """EAGLE 3. Source: vllm-project/speculators, models/eagle3/{core,model_definitions}.py; sgl-project/SpecForge,
    modeling/draft/llama3_eagle.py; vLLM, llama_eagle3.py; the norms before fc as in lightseek's eagle3 for speculators'
    EAGLE 3.1 (`input_norm`, `fc_norm`, `norm_output`)."""

    def __init__(
        self,
        kind: str = "llama",
        count: int = 1,
        *,
        names: str = "midlayer",
        taps: tuple[int, ...] | None = None,
        draft: int | None = 64,
        own_head: bool = True,
        own_embedding: bool = False,
        norm_before_residual: bool = False,
        norm_before_fc: bool = False,
        fc_norm: bool = False,
        norm_output: bool = False,
        **values: Any,
    ) -> None:
        super().__init__(kind, count, **values)
        self.names, self.named_taps = names, taps
        self.taps = (2, DEPTH // 2, DEPTH - 3 + (DEPTH == 6)) if taps is None else taps
        self.flags = {
            "norm_before_residual": norm_before_residual, "norm_before_fc": norm_before_fc, "fc_norm": fc_norm,
            "norm_output": norm_output,
        }  # fmt: skip
        first, width = self.decoder.layers[0], 2 * HIDDEN
        for part in "qkv":
            old = getattr(first.self_attn, f"{part}_proj")
            setattr(first.self_attn, f"{part}_proj", nn.Linear(width, old.out_features, bias=old.bias is not None))
        first.hidden_norm = self.new_norm()
        self.fc = nn.Linear(len(self.taps) * HIDDEN, HIDDEN, bias=False)
        self.norm = self.new_norm()
        if norm_before_fc:
            self.input_norm = self.new_norm(len(self.taps) * HIDDEN)
        if fc_norm:
            self.fc_norm = nn.ModuleList(self.new_norm() for _ in self.taps)
        self.draft = None if draft is None else torch.randperm(VOCABULARY)[:draft].sort().values
        if own_head:
            self.lm_head = nn.Linear(HIDDEN, VOCABULARY if draft is None else draft, bias=False)
        if own_embedding:
            self.embed_tokens = nn.Embedding(VOCABULARY, HIDDEN)

    def states(self, streams: list[Tensor], final: Tensor) -> Tensor:
        taps = [streams[number] for number in self.taps]
        if self.flags["fc_norm"]:
            taps = [norm(tap) for norm, tap in zip(self.fc_norm, taps, strict=True)]
        joined = torch.cat(taps, dim=-1)
        return self.fc(self.input_norm(joined) if self.flags["norm_before_fc"] else joined)

    def step(self, embedding: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        layer, places = self.decoder.layers[0], torch.arange(hidden.shape[1])[None]
        normed = layer.hidden_norm(hidden)
        residual = normed if self.flags["norm_before_residual"] else hidden
        joined = torch.cat([layer.input_layernorm(embedding), normed], dim=-1)
        distance = places[0, :, None] - places[0]
        outside = distance < 0 if self.decoder.window is None else (distance < 0) | (distance >= self.decoder.window)
        mask = torch.zeros(outside.shape).masked_fill(outside, torch.finfo(torch.float32).min)[None, None]
        rotated = self.decoder.rotary[0](hidden, places)
        attended = layer.self_attn(
            hidden_states=joined, attention_mask=mask, position_ids=places, position_embeddings=rotated
        )[0]
        x = residual + attended
        x = x + layer.mlp(layer.post_attention_layernorm(x))
        for index in range(1, len(self.decoder.layers)):
            x = self.decoder.run(index, x)
        normed = self.norm(x)
        return normed, normed if self.flags["norm_output"] else x

    def named(self) -> dict[str, Tensor]:
        tensors = {name.removeprefix("decoder."): tensor for name, tensor in self.state_dict().items()}
        if self.names == "midlayer":
            tensors = {name.replace("layers.0.", "midlayer."): tensor for name, tensor in tensors.items()}
        if self.names == "nemo":
            inner = ("lm_head.",)
            tensors = {name if name.startswith(inner) else f"model.{name}": t for name, t in tensors.items()}
        if self.draft is not None:
            tensors["d2t"] = self.draft - torch.arange(len(self.draft))
            tensors["t2d"] = torch.zeros(VOCABULARY, dtype=torch.bool).index_fill(0, self.draft, True)
        return tensors

    def config(self) -> dict[str, Any]:
        flags = {name: value for name, value in self.flags.items() if value}
        draft = {} if self.draft is None else {"draft_vocab_size": len(self.draft)}
        if self.names == "speculators":
            ids = {} if self.named_taps is None else {"eagle_aux_hidden_state_layer_ids": list(self.named_taps)}
            inner = super().config()
            return {"speculators_model_type": "eagle3", "transformer_layer_config": inner, **flags, **draft, **ids}
        outputs = [] if self.named_taps is None else [number - 1 for number in self.named_taps]
        eagle = {"eagle_config": {"eagle_aux_hidden_state_layer_ids": outputs}} if outputs else {}
        return {**super().config(), **flags, **draft, **eagle, "architectures": ["LlamaForCausalLMEagle3"]}


class Mtp(Reference):
    """Layers of a checkpoint that predict the token after next.

    Sources: vLLM, model_executor/models/{mimo_mtp,ernie_mtp,deepseek_mtp}.py (without their mask on position 0);
    vllm-project/speculators, models/mtp/model_definitions.py.
    """

    def __init__(self, names: str, kind: str, **values: Any) -> None:
        super().__init__(kind, **values)
        self.names = names
        self.embedding_norm, self.hidden_norm = self.new_norm(), self.new_norm()
        self.project = nn.Linear(2 * HIDDEN, HIDDEN, bias=False)
        if names != "ernie":
            self.norm = self.new_norm()

    def step(self, embedding: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        parts = [self.embedding_norm(embedding), self.hidden_norm(hidden)]
        x = self.decoder.run(0, self.project(torch.cat(parts[::-1] if self.names == "mimo" else parts, dim=-1)))
        if self.names == "ernie":
            return x, x
        normed = self.norm(x)
        return normed, x if self.names == "deepseek" else normed

    def named(self) -> dict[str, Tensor]:
        def renamed(name: str) -> str:
            part, _, rest = name.partition(".")
            if part == "decoder":
                rest = rest.removeprefix("layers.0.")
                prefix = {"mimo": "model.mtp_layers.0.", "speculators": "mtp_layers.0.", "ernie": "model.mtp_block.0."}
                return prefix.get(self.names, "model.layers.6.") + rest
            return NAMES[self.names][part] + rest

        return {renamed(name): tensor for name, tensor in self.state_dict().items()}

    def config(self) -> dict[str, Any]:
        return {"speculators_model_type": "mtp", "transformer_layer_config": super().config()}


class Medusa(Reference):
    """Medusa. Source: FasterDecoding/Medusa, medusa/model/medusa_model.py; vLLM, model_executor/models/medusa.py, whose
    blocks have no bias by default."""

    recurrent = False

    def __init__(
        self, names: str = "", count: int = 3, blocks: int = 1, *, bias: bool = True, own_head: bool = True
    ) -> None:
        nn.Module.__init__(self)
        self.names, self.count, self.blocks, self.own_head = names, count, blocks, own_head
        self.linear = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN, bias=bias) for _ in range(count * blocks))
        if own_head:
            self.heads = nn.ModuleList(nn.Linear(HIDDEN, VOCABULARY, bias=False) for _ in range(count))

    def step(self, embedding: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.place(0, hidden), hidden

    def place(self, place: int, hidden: Tensor) -> Tensor:
        """What the LM head of one place reads."""
        for linear in self.linear[place * self.blocks : (place + 1) * self.blocks]:
            hidden = hidden + nn.functional.silu(linear(hidden))
        return hidden

    def named(self) -> dict[str, Tensor]:
        block, head = ("blocks.{}.layers.{}.", "lm_heads.{}.") if self.names == "vllm" else ("{}.{}.linear.", "{}.{}.")
        prefix, tensors = {"inside": "medusa_head."}.get(self.names, ""), {}
        for name, tensor in self.state_dict().items():
            part, number, rest = name.split(".")
            index = (int(number) // self.blocks, int(number) % self.blocks)
            stored = block.format(*index) if part == "linear" else head.format(int(number), self.blocks)
            tensors[f"{prefix}{stored}{rest}"] = tensor
        return tensors

    def config(self) -> dict[str, Any]:
        return {"medusa_num_heads": 2, "medusa_num_layers": self.blocks, "base_model_name_or_path": "base"}


_QWEN = {
    "embedding_norm": "token_layernorm.", "hidden_norm": "hidden_layernorm.", "project": "input_proj.",
    "norm": "final_layernorm.",
}  # fmt: skip
NAMES = {
    "mimo": {name: f"model.mtp_layers.0.{stored}" for name, stored in _QWEN.items()},
    "speculators": {name: f"mtp_layers.0.{stored}" for name, stored in _QWEN.items()},
    "ernie": {
        "embedding_norm": "model.mtp_emb_norm.0.", "hidden_norm": "model.mtp_hidden_norm.0.",
        "project": "model.mtp_linear_proj.0.",
    },
    "deepseek": {
        "embedding_norm": "model.layers.6.enorm.", "hidden_norm": "model.layers.6.hnorm.",
        "project": "model.layers.6.eh_proj.", "norm": "model.layers.6.shared_head.norm.",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A base's kind, what makes the head, and whether the head's tensors lie in the base's own file."""

    make: Callable[[], Reference]
    base: str = "llama"
    inside: bool = False


INSIDE = {"num_attention_heads": 2, "num_key_value_heads": 1}
"""Layers inside a checkpoint are of the base's kind."""
WINDOWED = {"sliding_window": 5, "layer_types": ["sliding_attention"] * 2}
CASES = {
    "eagle": Case(Eagle),
    "eagle, two layers of Qwen 2, a bias": Case(lambda: Eagle("qwen2", 2, bias=True)),
    "eagle, norms, speculators": Case(HassOfSpeculators),
    "eagle3": Case(lambda: Eagle3(taps=(2, 3, 4))),
    "eagle3, whole vocabulary": Case(lambda: Eagle3(taps=(1, 3, 5), draft=None, own_embedding=True)),
    "eagle3, the base's tables": Case(lambda: Eagle3(taps=(2, 3, 5), own_head=False)),
    "eagle3, speculators": Case(
        lambda: Eagle3("qwen3", names="speculators", taps=(1, 3, 5), norm_before_residual=True, norm_before_fc=True,
                       norm_output=True),
    ),
    "eagle3, two layers, windows, a norm a tap": Case(
        lambda: Eagle3(count=2, names="speculators", taps=(2, 4), fc_norm=True, **WINDOWED)
    ),
    "eagle3, NeMo": Case(lambda: Eagle3(names="nemo", taps=(1, 2, 4), own_embedding=True)),
    "mtp, MiMo": Case(lambda: Mtp("mimo", "qwen2", **INSIDE), "mimo", inside=True),
    "mtp, ERNIE": Case(lambda: Mtp("ernie", "ernie4_5", use_bias=True, **INSIDE), "ernie4_5", inside=True),
    "mtp, DeepSeek": Case(lambda: Mtp("deepseek", "llama", rope_theta=10000.0, **INSIDE), inside=True),
    "mtp, speculators": Case(lambda: Mtp("speculators", "qwen3")),
    "medusa": Case(Medusa),
    "medusa, two blocks, inside": Case(lambda: Medusa("inside", 4, 2), inside=True),
    "medusa, the base's LM head": Case(lambda: Medusa(own_head=False)),
    "medusa, vLLM": Case(lambda: Medusa("vllm", 5, bias=False)),
    "medusa, one head": Case(lambda: Medusa(count=1)),
}  # fmt: skip


def write(case: Case, folder: Path) -> tuple[Path, Path, Reference]:
    """A base and a head in its format; where the head lies inside, both are one folder."""
    base = write_base(folder / "base", case.base)
    torch.manual_seed(11)
    head = shaken(case.make().float()).eval()
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in head.named().items()}
    if case.inside:
        save_file({**load_file(base / "model.safetensors"), **tensors}, base / "model.safetensors", {"format": "pt"})
        return base, base, head
    (folder / "head").mkdir()
    save_file(tensors, folder / "head" / "model.safetensors", {"format": "pt"})
    write_json(folder / "head" / "config.json", head.config())
    return base, folder / "head", head
