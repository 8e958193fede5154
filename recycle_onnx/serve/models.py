"""What is served, and how busy the server is."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from recycle_onnx.runtime.chat_template import PLAIN
from recycle_onnx.serve import answers
from recycle_onnx.serve.service import Service, as_json


async def health(service: Service, request: Request) -> Response:
    """Tell that the server takes requests."""
    workers = service.workers
    state = answers.Health(slots=service.limits.slots, slots_busy=workers.busy, queue_waiting=workers.waiting)
    return as_json(state)


async def metrics(service: Service, request: Request) -> Response:
    """Show the counters for Prometheus."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def listed(service: Service, request: Request) -> Response:
    """List the one model."""
    return as_json(answers.ModelList(data=[card(service)]))


async def one(service: Service, request: Request) -> Response:
    """Describe the model; another name is not found, whatever requests may say."""
    service.check_own_name(request.path_params["model"])
    return as_json(card(service))


def card(service: Service) -> answers.ModelCard:
    """Return the description of the model that is served."""
    manifest = service.engine.model.bundle.manifest
    can = answers.ModelRecycle(
        strategies=list(manifest.strategies),
        default_strategy=manifest.default_strategy,
        chat=service.engine.template.name != PLAIN,
        context_length=manifest.context_length,
        precision=manifest.precision,
        parameters=manifest.base.get("parameters"),
    )
    return answers.ModelCard(id=service.name, created=service.started, recycle=can)
