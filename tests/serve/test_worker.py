"""Jobs and the event loop that waits for them."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext

from recycle_onnx.runtime.config import GenerationConfig
from recycle_onnx.runtime.model import Model
from recycle_onnx.serve.limits import Limits
from recycle_onnx.serve.metrics import Metrics
from recycle_onnx.serve.orders import Order
from recycle_onnx.serve.worker import Workers


def test_a_job_that_is_ahead_leaves_others_their_turn(endless_model: Model) -> None:
    """Tokens that are there already are taken one at a time, between whatever else the event loop has to do."""
    tokens = 50

    async def count_turns() -> int:
        turns = 0

        async def somebody_else() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        made = endless_model.stream("the cat", max_new_tokens=tokens)
        workers = Workers(lambda order: nullcontext(made), Limits(), Metrics())
        job = await workers.start(Order("the cat", GenerationConfig()))
        while workers.busy:
            await asyncio.sleep(0.01)
        other = asyncio.ensure_future(somebody_else())
        assert len([step async for step in job]) == tokens
        other.cancel()
        return turns

    assert asyncio.run(count_turns()) >= tokens


def test_who_waits_for_a_whole_answer_is_woken_at_its_end(endless_model: Model) -> None:
    async def ask() -> tuple[int, int]:
        made = endless_model.stream("the cat", max_new_tokens=20)
        workers = Workers(lambda order: nullcontext(made), Limits(), Metrics())
        job = await workers.start(Order("the cat", GenerationConfig()), stepwise=False)
        return len([step async for step in job]), len(job.tokens)

    assert asyncio.run(ask()) == (0, 20)
