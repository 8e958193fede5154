"""The page at `/`: a few files sent as one, under a policy that lets it talk to its own server and to nobody else."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from starlette.responses import HTMLResponse

SCRIPTS = ("state", "markdown", "server", "chats", "transfer", "settings", "answer", "turns", "page")
"""In this order: each uses what those before it define when it starts, and all of them when something happens."""


def _file(name: str) -> str:
    return (files("recycle_onnx.serve") / "chat_page" / name).read_text(encoding="utf-8")


@cache
def _style() -> str:
    return _file("page.css")


@cache
def _script() -> str:
    return "\n".join(_file(f"{name}.js") for name in SCRIPTS)


@cache
def _text() -> str:
    filled = _file("page.html").replace("<style></style>", f"<style>{_style()}</style>")
    return filled.replace("<script></script>", f"<script>{_script()}</script>")


@cache
def policy() -> str:
    """Return a Content-Security-Policy under which only what the page holds runs, and nothing else is fetched."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash(_script())}",
            f"style-src {_hash(_style())}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


async def show(service: object, request: object) -> HTMLResponse:
    """Answer with the page, which is the same for every service."""
    return page()


def page() -> HTMLResponse:
    """Return the page with its policy."""
    return HTMLResponse(_text(), headers={"Content-Security-Policy": policy()})
