"""Writes docs/VARIABLES.md from the role's argument specs and defaults (`make docs`)."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from checkout import DOCS, ROLE

PAGE = DOCS / "VARIABLES.md"
_HEAD = """\
# Variables of the role

<!-- Made by `make docs` from roles/qos/meta/argument_specs.yml and defaults/main.yml. -->

{about}

`ansible-doc -t role vff.qos.qos` says the same in a terminal. Plans, patterns, weights, fair use and quotas:
[POLICY.md](POLICY.md). Sources of identities: [IDENTITIES.md](IDENTITIES.md).
"""


def _plain(text: str | list[str]) -> str:
    """Ansible's markup as Markdown."""
    joined = text if isinstance(text, str) else " ".join(text)
    marked = re.sub(r"\b[VCO]\(([^()]*)\)", r"`\1`", " ".join(joined.split()))
    return marked.replace("|", "\\|")


#: Ansible's types in words.
_TYPES = {"str": "text", "int": "number", "bool": "true, false", "dict": "mapping",
          "raw": "list or text"}  # fmt: skip


def _values(option: dict[str, Any]) -> str:
    if choices := option.get("choices"):
        return ", ".join(f"`{choice}`" for choice in choices)
    return _TYPES.get(option["type"], option["type"])


def _default(value: object) -> str:
    """As it is written in YAML; a default that is another variable is that variable."""
    if isinstance(value, str):
        other = re.fullmatch(r"\{\{ (.*) \}\}", value)
        value = other[1] if other else value
        return f"`{value}`" if value else "empty"
    return f"`{json.dumps(value)}`"


def _groups() -> list[tuple[str, list[str]]]:
    """(heading, variables): as the comments of defaults/main.yml have them."""
    groups: list[tuple[str, list[str]]] = []
    for block in (ROLE / "defaults" / "main.yml").read_text().split("\n\n")[1:]:
        heading = re.match(r"# (.+)\n", block)
        assert heading, f"a group of defaults/main.yml without a heading: {block!r}"
        groups.append((heading[1], re.findall(r"^(qos_\w+):", block, re.M)))
    return groups


def render() -> str:
    """The page."""
    specs = yaml.safe_load((ROLE / "meta" / "argument_specs.yml").read_text())
    main = specs["argument_specs"]["main"]
    parts = [_HEAD.format(about="\n".join(_plain(line) for line in main["description"]))]
    for heading, names in _groups():
        parts.append(f"## {heading}\n")
        parts.append("| variable | values | default | |\n|---|---|---|---|")
        for name in names:
            option = main["options"][name]
            cells = (_values(option), _default(option["default"]), _plain(option["description"]))
            parts.append(f"| `{name}` | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render())
