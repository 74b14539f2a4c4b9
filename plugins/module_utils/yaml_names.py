# SPDX-License-Identifier: MIT
"""Names that YAML has made something else of: 5.100 is 5.1, 007 is 7, 12:30 is 750, no is false."""

from __future__ import annotations

from datetime import date


def not_text(value: object, where: str) -> str | None:
    """One sentence if ``value``, a name, is not text; None if it is.

    The text that stood in the file is gone by then, so that it cannot be put right here.
    """
    if isinstance(value, str):
        return None
    if isinstance(value, bool):
        said = f"{str(value).lower()} to YAML, as are yes, no, on and off"
    elif isinstance(value, (int, float)):
        said = f"the number {value} to YAML, as 007 is 7, 5.100 is 5.1 and 12:30 is 750"
    elif isinstance(value, date):
        said = f"the date {value} to YAML"
    else:
        said = "nothing to YAML" if value is None else f"no text but a {type(value).__name__}"
    return f"{where} is {said}; put it in quotes, exactly as it is spelt (in a template: | string)"
