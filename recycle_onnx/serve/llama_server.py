"""What llama.cpp's server has beside OpenAI's API: texts to tokens and back, a chat's prompt, and what is loaded."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from recycle_onnx import __version__
from recycle_onnx.runtime.settings import SETTINGS
from recycle_onnx.runtime.text import encode
from recycle_onnx.serve import answers, orders
from recycle_onnx.serve.errors import ApiError
from recycle_onnx.serve.models import card
from recycle_onnx.serve.schema import ServedRequest, TokenId, TurnsRequest
from recycle_onnx.serve.service import Service, as_json
from recycle_onnx.tokenizer import special_tokens

MOST_CHARACTERS = 1 << 18
"""Of a text that is only tokenized: it takes a quarter of a second, and 100 MB."""
MOST_TOKENS = 1 << 17
"""The same for tokens that are only decoded."""
LLAMA_NAMES = {"max_new_tokens": "n_predict", "repetition_penalty": "repeat_penalty"}
"""Settings that llama.cpp calls otherwise."""
SPECIAL = ("bos_token", "eos_token")


class TokenizeRequest(ServedRequest):
    """A text to make tokens of."""

    content: Annotated[str, Field(max_length=MOST_CHARACTERS)]
    add_special: bool | None = Field(None, description="Add what the tokenizer puts around a prompt; false.")
    parse_special: Literal[True] | None = Field(None, description="Special tokens in the text are always read as such.")
    with_pieces: bool | None = Field(None, description="Return the text of each token too.")


class TokenPiece(BaseModel):
    """A token and its text; bytes that form no character by themselves are U+FFFD."""

    id: int
    piece: str


class TokenizeAnswer(BaseModel):
    """The tokens of a text."""

    tokens: list[int] | list[TokenPiece]


class DetokenizeRequest(ServedRequest):
    """Tokens to make a text of."""

    tokens: Annotated[list[TokenId], Field(max_length=MOST_TOKENS, fail_fast=True)]


class DetokenizeAnswer(BaseModel):
    """The text of tokens."""

    content: str


class TemplateAnswer(BaseModel):
    """The prompt of messages."""

    prompt: str


class DefaultSettings(BaseModel):
    """The context, and settings that hold where a request says nothing."""

    n_ctx: int
    params: dict[str, Any]


class Modalities(BaseModel):
    """The kinds of input beside text."""

    vision: Literal[False] = False
    audio: Literal[False] = False


class Props(BaseModel):
    """What is loaded, and how it generates."""

    default_generation_settings: DefaultSettings
    total_slots: int
    model_alias: str
    bos_token: str | None
    eos_token: str | None
    modalities: Modalities = Modalities()
    build_info: str
    recycle: answers.ModelRecycle


async def tokenize(service: Service, request: Request) -> Response:
    """Return the tokens of a text."""
    asked, _ = await service.read(request, TokenizeRequest, lambda asked: None)
    ids = await service.aside(lambda: encode(service.decoder.tokenizer, asked.content, bool(asked.add_special)))
    if not asked.with_pieces:
        return as_json(TokenizeAnswer(tokens=ids))
    text = service.decoder.text
    return as_json(await service.aside(lambda: TokenizeAnswer(tokens=[TokenPiece(id=i, piece=text(i)) for i in ids])))


async def detokenize(service: Service, request: Request) -> Response:
    """Return the text of tokens, special ones included."""
    asked, _ = await service.read(request, DetokenizeRequest, lambda asked: None)
    size = service.engine.model.bundle.manifest.graphs["full"].vocab_size
    for index, token in enumerate(asked.tokens):
        if token >= size:
            message = f"tokens[{index}] is {token}; expected an id below {size}, the size of the vocabulary"
            raise ApiError(400, "invalid_value", message, f"tokens[{index}]")
    decode = service.decoder.tokenizer.decode
    content = await service.aside(lambda: str(decode(asked.tokens, skip_special_tokens=False)))
    return as_json(DetokenizeAnswer(content=content))


async def apply_template(service: Service, request: Request) -> Response:
    """Return the prompt that a chat with these messages would have."""
    _, turns = await service.read(request, TurnsRequest, orders.turns_of)
    prompt = await service.aside(lambda: service.engine.rendered(turns))
    return as_json(TemplateAnswer(prompt=prompt))


async def props(service: Service, request: Request) -> Response:
    """Tell what is loaded, and how it generates."""
    model = service.engine.model
    # a seed is drawn for each request that has none
    served = (name for name, about in SETTINGS.items() if name == "max_new_tokens" or (about.served and name != "seed"))
    params = {LLAMA_NAMES.get(name, name): _plain(getattr(model.generation_config, name)) for name in served}
    context = model.bundle.manifest.context_length
    names = special_tokens(model.bundle.folder / "tokenizer_config.json", SPECIAL)
    described = Props(
        default_generation_settings=DefaultSettings(n_ctx=context, params=params),
        total_slots=service.limits.slots,
        model_alias=service.name,
        bos_token=names.get("bos_token"),
        eos_token=names.get("eos_token"),
        build_info=f"recycle-onnx {__version__}",
        recycle=card(service).recycle,
    )
    return as_json(described)


def _plain(value: Any) -> Any:
    """Return a setting as JSON has it."""
    return dict(value) if hasattr(value, "items") else list(value) if isinstance(value, tuple) else value
