"""Two texts at once, in one event loop that never waits for the model: python samples/asyncio_stream.py BUNDLE A B."""

import asyncio
import sys

import recycle_onnx


async def main(bundle: str, *prompts: str) -> None:
    """Print each text's pieces as they come, with the number of its prompt."""
    model = recycle_onnx.load(bundle, threads=1)

    async def tell(number: int, prompt: str) -> None:
        async for token in model.stream(prompt, max_new_tokens=30):
            print(number, repr(token.text))

    await asyncio.gather(*(tell(number, prompt) for number, prompt in enumerate(prompts, start=1)))


asyncio.run(main(*sys.argv[1:]))
