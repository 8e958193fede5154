"""Counters and gauges for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recycle_onnx.runtime.generation import Result

PREFIX = "recycle_onnx_"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Bounds of the histograms' buckets: a first token takes hundredths of a second, a long answer minutes."""
CLIENT_GONE = "499"
"""What is counted where no answer was sent, as nginx does."""
OTHER = "other"
"""The path of requests that no route takes: clients may ask for endlessly many."""


class Metrics:
    """The server's counters and gauges. None of them names a client or a text."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by path and status.", "path", "status")
        self.tokens = self._counter("tokens", "Tokens: prompt, cached of it, restored of those, new, recycled.", "kind")
        self.proposals = self._counter("proposals", "Tokens that were proposed, and those that stayed.", "outcome")
        self.restores = self._counter("restored_prompts", "Prompts that begin with tokens from disk.")
        self.runs = self._counter("runs", "Runs of each half.", "half")
        self.on_fewer_threads = self._counter("runs_on_fewer_threads", "Of the full model's: while others used cores.")
        self.seconds = self._histogram("request_seconds", "Time to the end of an answer.")
        self.first_token = self._histogram("first_token_seconds", "Time from a slot to the first token.")

    def show(self, name: str, text: str, value: Callable[[], int]) -> None:
        """Add a gauge whose value is read whenever the metrics are."""
        Gauge(PREFIX + name, text, registry=self._registry).set_function(value)

    def count(self, result: Result) -> None:
        """Add what a generation took, whether it was finished or broken off."""
        stats = result.stats
        self.tokens.labels("prompt").inc(stats.prompt_tokens)
        self.tokens.labels("cached").inc(stats.reused_tokens)
        self.tokens.labels("new").inc(stats.new_tokens)
        self.tokens.labels("recycled").inc(sum(result.recycled))
        self.proposals.labels("accepted").inc(stats.accepted)
        self.proposals.labels("rejected").inc(stats.proposed - stats.accepted)
        self.runs.labels("full").inc(stats.full_runs)
        self.runs.labels("recycler").inc(stats.recycle_runs)
        self.on_fewer_threads.inc(stats.runs_on_fewer_threads)
        if result.tokens:
            self.first_token.observe(stats.time_to_first_token_s)

    def count_restored(self, tokens: int) -> None:
        """Add the tokens of a prompt that came from disk, or 0 where none did."""
        self.tokens.labels("restored").inc(tokens)
        self.restores.inc(tokens > 0)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(PREFIX + name, text, registry=self._registry, buckets=SECONDS)


@dataclass
class RequestCounter:
    """An ASGI layer that counts the requests that pass through it."""

    app: ASGIApp
    metrics: Metrics
    routes: Sequence[Route]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = self._path(scope["path"])
        started, status = time.perf_counter(), CLIENT_GONE

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, send_counted)
        finally:
            self.metrics.requests.labels(path, status).inc()
            if scope["method"] == "POST" and path != OTHER:
                self.metrics.seconds.observe(time.perf_counter() - started)

    def _path(self, path: str) -> str:
        """Return the path of the route that a request's path belongs to: names in it are no labels of their own."""
        return next((route.path for route in self.routes if route.path_regex.match(path)), OTHER)
