"""The OpenAPI description and the answers: schemathesis asks what nobody would think of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance

from vff_qos.web.api import PREFIX, ROUTES

from .page_node import PageNode

EMAILS = ["alice@x", "bob@x", "имя@пример", "it's <b>mine</b>@x"]
PORT = 9471


@pytest.fixture
def page(tmp_path: Path, trees: tuple[str, str]) -> Iterator[PageNode]:
    made = PageNode(tmp_path)
    made.remember(EMAILS, 1)
    made.start()
    made.come(EMAILS)
    made.run("block", "bob@x", "--reason", "does not pay")
    made.serve(f"127.0.0.1:{PORT}")
    yield made
    made.close()


def test_every_answer_is_as_described(page: PageNode) -> None:
    """Good and bad parameters of every route; status, content type and schema of each answer."""
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{PORT}{PREFIX}/openapi.json")
    asked: dict[str, set[int]] = {}
    for result in schema.get_all_operations():
        operation: Any = result.ok()  # type: ignore[union-attr]
        # A stream does not end; test_web.py reads it.
        if operation.path != f"{PREFIX}/stream":
            asked[operation.path] = ask_much(operation)
    assert asked.keys() == {PREFIX + route.path for route in ROUTES}
    assert all(200 in codes for codes in asked.values()), asked
    assert not any(500 in codes for codes in asked.values())


def ask_much(operation: Any) -> set[int]:
    """Good and bad questions of one route; the statuses of the answers."""
    codes: set[int] = set()
    # What a command of its own answers takes half a second.
    count = 6 if operation.path.endswith(("/explain", "/events")) else 40
    modes = schemathesis.GenerationMode
    kinds = [modes.POSITIVE, modes.NEGATIVE] if operation.query else [modes.POSITIVE]
    cases = {mode: operation.as_strategy(generation_mode=mode) for mode in kinds}

    # What is no time is refused, and no pattern says which day there is.
    unfit = [positive_data_acceptance] if operation.path.endswith("/usage") else []

    @settings(
        max_examples=count, database=None, derandomize=True,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(data=st.data())
    def every(data: st.DataObject) -> None:
        case = data.draw(cases[data.draw(st.sampled_from(kinds))])
        codes.add(case.call_and_validate(excluded_checks=unfit).status_code)

    every()
    return codes
