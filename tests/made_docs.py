"""What `make docs` writes from other files.

docs/VARIABLES.md comes from the role's argument specs and defaults, the tree in
docs/ARCHITECTURE.md from the first sentence of each module's docstring, the tables in
docs/JOURNAL.md and the catalog for journald from the agent's table of events, those in
docs/METRICS.md from its table of metrics, the one in docs/MIGRATION.md from the role's table of the
old role's variables.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import yaml

from checkout import AGENT, DOCS, ROLE, ROOT
from vff_qos.core.events import EVENTS, FIELDS, MANY, ONCE, PRIORITIES, JournalEvent
from vff_qos.metrics.catalogue import NODE, USER, MetricOf

VARIABLES = DOCS / "VARIABLES.md"
ARCHITECTURE = DOCS / "ARCHITECTURE.md"
MIGRATION = DOCS / "MIGRATION.md"
JOURNAL = DOCS / "JOURNAL.md"
METRICS = DOCS / "METRICS.md"
CATALOG = ROLE / "files" / "vff-qos.catalog"
_HEAD = """\
# Variables of the role

<!-- Made by `make docs` from roles/qos/meta/argument_specs.yml and defaults/main.yml. -->

{about}

`ansible-doc -t role vff.qos.qos` says the same in a terminal. Plans, patterns, weights, fair use
and quotas: [POLICY.md](POLICY.md). Sources of identities: [IDENTITIES.md](IDENTITIES.md).
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
    return _TYPES.get(option["type"], str(option["type"]))


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


def variables() -> str:
    """The page of variables."""
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


_TREE = re.compile(
    r"(?<=<!-- the tree: made by `make docs` -->\n).*?(?=<!-- end of the tree -->)", re.S
)


def _summary(path: Path) -> str:
    """The first sentence of a module's docstring."""
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    # pyroute2's plug-ins begin with a heading, as its own do.
    first = re.sub(r"^\S+\n\++\n\n", "", doc).partition("\n\n")[0]
    return (
        re.split(r"(?<=\.)\s\s?(?=[A-Z])", " ".join(first.split()))[0]
        .rstrip(".")
        .replace("``", "`")
    )


def _rows(directory: Path) -> list[str]:
    """A table of a package's modules, then those of the packages in it."""
    root = AGENT / "vff_qos"
    name = "/".join(directory.relative_to(root.parent).parts)
    rows = [f"**`{name}/`** {_summary(directory / '__init__.py')}\n", "| module | |", "|---|---|"]
    files = [p for p in sorted(directory.glob("*.py")) if not p.name.startswith("__")]
    if files:
        rows += [f"| `{path.name}` | {_summary(path)} |" for path in files] + [""]
    else:
        del rows[1:]
    for package in sorted(p.parent for p in directory.glob("*/__init__.py")):
        rows += _rows(package)
    return rows


def architecture() -> str:
    """ARCHITECTURE.md with the tree as it is now."""
    tree = "\n".join(["", *_rows(AGENT / "vff_qos")]) + "\n"
    text, count = _TREE.subn(lambda _: tree, ARCHITECTURE.read_text())
    assert count == 1, "ARCHITECTURE.md has no place for the tree"
    return text


_OLD = re.compile(
    r"(?<=<!-- old variables: made by `make docs` -->\n).*?(?=<!-- end of old variables -->)", re.S
)


def migration() -> str:
    """MIGRATION.md with the table of the old role's variables as it is now."""
    variables = yaml.safe_load((ROLE / "vars" / "main.yml").read_text())["__qos_old_variables"]
    rows = ["", "| variable | |", "|---|---|"]
    for name, meaning in variables.items():
        if "counts_as" in meaning:
            ours, _, condition = meaning["counts_as"].partition(" if ")
            rows.append(f"| `{name}` | counts as `{ours}`{condition and f' if {condition}'} |")
        else:
            rows.append(f"| `{name}` | no effect: {meaning['because']} |")
    table = "\n".join([*rows, "", ""])
    text, count = _OLD.subn(lambda _: table, MIGRATION.read_text())
    assert count == 1, "MIGRATION.md has no place for the table"
    return text


_BOUNDS = {"": "", ONCE: "once a minute", MANY: "200 a minute"}


def _table(name: str, head: str, rows: list[str], text: str) -> str:
    """``text`` with another table between the comments that name it."""
    place = re.compile(
        rf"(?<=<!-- {name}: made by `make docs` -->\n).*?(?=<!-- end of {name} -->)", re.S
    )
    table = "\n".join(["", head, re.sub("[^|]+", "---", head), *rows]) + "\n\n"
    text, count = place.subn(lambda _: table, text)
    assert count == 1, f"the page has no place for {name}"
    return text


def _event_row(event: JournalEvent) -> str:
    means = event.means + (f" **Do:** {event.remedy}" if event.remedy else "")
    fields = ", ".join(f"`{name}`" for name in event.fields)
    cells = (
        f"`{event.name}`",
        f"`{event.number:02x}`",
        PRIORITIES[event.priority],
        means.replace("|", "\\|"),
        fields,
        _BOUNDS[event.bound],
    )
    return "| " + " | ".join(cells) + " |"


def journal() -> str:
    """JOURNAL.md with the tables as they are now."""
    events = sorted(EVENTS.values(), key=lambda event: event.number)
    text = _table(
        "the events",
        "| event | last two digits | priority | what it means, and what to do | fields | at most |",
        [_event_row(event) for event in events],
        JOURNAL.read_text(),
    )
    rows = [f"| `VFF_QOS_{name}` | {what} |" for name, what in FIELDS.items()]
    return _table("the fields", "| field | |", rows, text)


def _metric_row(metric: MetricOf, labels: tuple[str, ...]) -> str:
    named = ", ".join(f"`{label}`" for label in labels)
    help_ = metric.help.replace("|", "\\|")
    return f"| `{metric.full_name}` | {metric.kind} | {named} | {help_} | {metric.same_as} |"


def metrics() -> str:
    """METRICS.md with the tables as they are now."""
    head = "| metric | type | labels | | the same figure |"
    rows = [_metric_row(metric, metric.labels) for metric in NODE]
    text = _table("the node", head, rows, METRICS.read_text())
    rows = [_metric_row(metric, ("user", *metric.labels)) for metric in USER]
    return _table("the users", head, rows, text)


def _placeholders(text: str) -> str:
    """Fields in the manner of catalogs: @FIELD@ is the entry's own."""
    return re.sub(r"\{(\w+)\}", lambda found: f"@VFF_QOS_{found[1].upper()}@", text)


def catalog() -> str:
    """The catalog for journald, see systemd's "Journal Message Catalogs"."""
    site = yaml.safe_load((ROOT / "galaxy.yml").read_text())
    parts = ["# Made by `make docs` from agent/src/vff_qos/core/events.py.\n"]
    for event in sorted(EVENTS.values(), key=lambda event: event.number):
        body = [
            event.means,
            f"What to do: {event.remedy}" if event.remedy else "Nothing is to be done.",
        ]
        paragraphs = [textwrap.fill(text, 78, break_on_hyphens=False) for text in body]
        parts.append(
            "\n".join(
                [
                    f"-- {event.message_id}",
                    f"Subject: {_placeholders(event.title)}",
                    "Defined-By: vff.qos",
                    f"Support: {site['issues']}",
                    f"Documentation: {site['documentation']}/JOURNAL.md",
                    "",
                    "\n\n".join(paragraphs),
                    "",
                ]
            )
        )
    return "\n".join(parts)


if __name__ == "__main__":
    VARIABLES.write_text(variables())
    ARCHITECTURE.write_text(architecture())
    JOURNAL.write_text(journal())
    CATALOG.write_text(catalog())
    METRICS.write_text(metrics())
    MIGRATION.write_text(migration())
