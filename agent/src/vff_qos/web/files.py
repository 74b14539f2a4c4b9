"""The page's own files, as they lie in ``static``: there is nothing to build."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bottle import Bottle, HTTPResponse, request, response

if TYPE_CHECKING:
    from .app import Site

STATIC = Path(__file__).parent / "static"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


def add_routes(app: Bottle, _site: Site) -> None:
    """As `app.make_app` asks."""
    for path in sorted(STATIC.iterdir()):
        # Those that are there at the start, and by their own names: no path is made of a question.
        name = "/" if path.name == "index.html" else f"/{path.name}"
        app.get(name, callback=_serving(path.read_bytes(), _KINDS[path.suffix]))


def _serving(content: bytes, kind: str) -> Callable[[], bytes | HTTPResponse]:
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'

    def serve() -> bytes | HTTPResponse:
        # Kept by the browser, and asked for anew each time whether it is still the same.
        fields = {"ETag": tag, "Cache-Control": "no-cache"}
        if request.get_header("If-None-Match") == tag:
            return HTTPResponse("", 304, fields)
        for field, value in fields.items():
            response.set_header(field, value)
        response.content_type = kind
        return content

    return serve
