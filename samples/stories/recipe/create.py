"""Make the sample's data, tokenizer and untrained base.

    python create.py TINYSTORIES.txt OUT [--seed 0]

Writes OUT/train.txt and OUT/held_out.txt (the last 200 stories), and OUT/base: a byte-level BPE tokenizer trained on
train.txt, and a Llama with fresh weights.
"""

from __future__ import annotations

from pathlib import Path

import click
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from recycle_onnx.checkpoint import PlainLlama
from recycle_onnx.documents import SEPARATOR, read_documents
from recycle_onnx.files import new_folder, write_bytes, write_json
from recycle_onnx.training.model import FullModel

HELD_OUT = 200
CONFIG = PlainLlama(
    hidden_size=256,
    intermediate_size=512,
    num_layers=6,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    vocab_size=2048,
    context_length=512,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    tied_embeddings=True,
).describe()
END = 0


def train_tokenizer(documents: list[str]) -> Tokenizer:
    """Byte-level BPE; every text starts with the token that also ends one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG.vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SEPARATOR} $A", special_tokens=[(SEPARATOR, END)]
    )
    return tokenizer


@click.command()
@click.argument("tinystories", type=Path)
@click.argument("out", type=Path)
@click.option("--seed", default=0)
def main(tinystories: Path, out: Path, seed: int) -> None:
    """Write data, tokenizer and an untrained base under OUT."""
    documents = list(read_documents([tinystories]))
    train, held_out = documents[:-HELD_OUT], documents[-HELD_OUT:]
    out.mkdir(parents=True, exist_ok=True)
    for name, part in (("train.txt", train), ("held_out.txt", held_out)):
        write_bytes(out / name, f"\n{SEPARATOR}\n".join(part).encode())
    model = FullModel(CONFIG)
    model.initialise(seed)
    own = dict(model.named_parameters())
    weights = {name: own[name].detach().half() for name in CONFIG.tensor_shapes()}
    with new_folder(out / "base", force=True) as folder:
        train_tokenizer(train).save(str(folder / "tokenizer.json"))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        special = {"bos_token_id": END, "eos_token_id": END}
        write_json(folder / "config.json", CONFIG.to_hugging_face(**special))
        write_json(folder / "generation_config.json", special)
        write_json(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": SEPARATOR,
                "eos_token": SEPARATOR,
                "add_bos_token": True,
                "add_eos_token": False,
                "model_max_length": CONFIG.context_length,
                "clean_up_tokenization_spaces": False,
            },
        )
    click.echo(f"{out}: {len(train)} stories to train on, {len(held_out)} held out; base in {out / 'base'}")


if __name__ == "__main__":
    main()
