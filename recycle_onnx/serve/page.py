"""The page at `/`: one file, and a policy that lets it talk to its own server and to nobody else."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from starlette.responses import HTMLResponse


@cache
def _text() -> str:
    return (files("recycle_onnx.serve") / "page.html").read_text(encoding="utf-8")


@cache
def policy() -> str:
    """Return a Content-Security-Policy under which only what the file holds runs, and nothing else is fetched."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash('script')}",
            f"style-src {_hash('style')}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


def _hash(tag: str) -> str:
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", _text(), re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def page() -> HTMLResponse:
    """Return the page with its policy."""
    return HTMLResponse(_text(), headers={"Content-Security-Policy": policy()})
