"""``GET /healthz``: whether the page's own process answers.  How the node is, the API says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bottle import Bottle, response

if TYPE_CHECKING:
    from .app import Site


def add_routes(app: Bottle, _site: Site) -> None:
    """As `app.make_app` asks."""
    app.get("/healthz", callback=_healthz)


def _healthz() -> str:
    response.content_type = "text/plain; charset=utf-8"
    return "ok\n"
