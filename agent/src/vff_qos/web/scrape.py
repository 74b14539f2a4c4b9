"""``GET /metrics``: what ``vff-qos metrics`` prints, for a Prometheus that asks."""

from __future__ import annotations

import tempfile
from typing import IO, TYPE_CHECKING

from bottle import Bottle, HTTPResponse, response

from ..errors import QosError
from .asking import write_metrics

if TYPE_CHECKING:
    from .app import Site

#: Prometheus' text format.
_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def add_routes(app: Bottle, site: Site) -> None:
    """As `app.make_app` asks."""

    def metrics() -> IO[bytes] | HTTPResponse:
        # Of 10,000 users they are some megabytes.  The server closes it.
        text = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            write_metrics(site.paths, text)
        except QosError as error:
            text.close()
            plain = {"Content-Type": "text/plain; charset=utf-8"}
            return HTTPResponse(f"{error}\n", 503, plain)
        text.seek(0)
        response.content_type = _TYPE
        return text

    app.get("/metrics", callback=metrics)
