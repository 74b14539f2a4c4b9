"""Refuses settings that cannot work, on the controller, before a host is touched."""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.vff.qos.plugins.module_utils.yaml_names import not_text

_AGENT = Path(__file__).resolve().parents[2] / "agent" / "src"

#: Key in policy.yml -> the role's variable; a key of settings.yml is its variable without "qos_".
_VARIABLES = {
    "default.upload": "qos_upload_default",
    "default.download": "qos_download_default",
    "default.plan": "qos_plan_default",
}
#: systemd.time(7), as far as an operator needs it: "10min", "1h 30min", "90".
_TIME_SPAN = re.compile(r"(?:\d+ ?(?:s|sec|min|m|h|hr|d)?(?: |$))+|(?:\d+(?:s|sec|min|m|h|hr|d))+")


def _variable(key: str) -> str:
    """The role's variable for a dotted key: ``users.a@x.upload`` -> ``qos_users[a@x.upload]``."""
    if not key or key in _VARIABLES:
        return _VARIABLES.get(key, "")
    head, _dot, rest = key.partition(".")
    for kind in ("service", "network"):
        if head == "users" and rest.startswith(f"{kind}:"):
            head, rest = f"{kind}s", rest[len(kind) + 1 :]
    return f"qos_{head}[{rest}]" if rest else f"qos_{head}"


#: Name or pattern -> ``{"counts_as": what}`` or ``{"because": why it has no effect}``.
OldVariables = Mapping[str, Mapping[str, str]]


def _old_meaning(name: str, old: OldVariables) -> Mapping[str, str] | None:
    """What became of a variable of the old role; the name itself counts before a pattern."""
    if name in old:
        return old[name]
    return next((old[pattern] for pattern in old if fnmatch.fnmatchcase(name, pattern)), None)


def old_variables(names: Iterable[str], old: OldVariables) -> list[str]:
    """What became of those of ``names`` that are the old role's, a sentence each."""
    notes = []
    for name in sorted(set(names)):
        meaning = _old_meaning(name, old)
        if meaning is not None and "counts_as" in meaning:
            notes.append(f"{name} counts as {meaning['counts_as']}")
        elif meaning is not None:
            notes.append(f"{name} has no effect: {meaning['because']}")
    return notes


def contradictions(twice: Iterable[Sequence[str]]) -> list[str]:
    """One sentence for each variable that is set under its old name and under ours, to different
    values; what is set by nobody has the value that comes last."""
    return [
        f"{old}: {value} and {ours}: {now} contradict each other; leave out {old}, the old name of "
        "the latter"
        for old, value, ours, now, unset in twice
        if value and now not in (value, unset)
    ]


def unknown_variables(
    names: Iterable[str], known: Iterable[str], old: OldVariables | None = None
) -> list[str]:
    """One sentence for each of ``names`` that is not in ``known``, with the likely meaning.

    Those of ``old`` are known, too.
    """
    allowed = sorted(known)
    problems = []
    for name in sorted(set(names) - set(allowed)):
        if _old_meaning(name, old or {}) is not None:
            continue
        near = difflib.get_close_matches(name, allowed, 1)
        hint = f"did you mean {near[0]}?" if near else "see ansible-doc -t role vff.qos.qos"
        problems.append(f"{name} is not a variable of the role vff.qos.qos; {hint}")
    return problems


def unquoted_names(variables: Mapping[str, Any]) -> list[str]:
    """One sentence for each name among ``variables`` that YAML did not read as text.

    The text that the operator wrote is gone by then, so that it cannot be put right here.
    """
    problems = []

    def check(value: object, where: str) -> None:
        if problem := not_text(value, where):
            problems.append(problem)

    def check_plan(entry: object, where: str) -> None:
        if isinstance(entry, Mapping) and "plan" in entry:
            check(entry["plan"], f"{where}: the plan")

    for name, value in variables.items():
        if name in ("qos_users", "qos_plans"):
            # What is no mapping is refused with all else.
            for key, entry in value.items() if isinstance(value, Mapping) else ():
                check(key, f"{name}: a name")
                check_plan(entry, f"{name}[{key}]")
        elif name == "qos_hooks_users":
            for key, secret in value.items() if isinstance(value, Mapping) else ():
                check(key, f"{name}: a name")
                if not isinstance(secret, str):  # which is never shown
                    problems.append(f"{name}[{key}]: the secret is no text; put it in quotes")
        elif name in ("qos_services", "qos_networks"):
            for key, entry in value.items() if isinstance(value, Mapping) else ():
                check(key, f"{name}: a name")
                check_plan(entry, f"{name}[{key}]")
        elif name == "qos_people":
            for key, identities in value.items() if isinstance(value, Mapping) else ():
                check(key, f"{name}: a name")
                for identity in identities if isinstance(identities, (list, tuple)) else ():
                    check(identity, f"{name}[{key}]: an identity")
        elif name == "qos_match":
            for number, entry in enumerate(value if isinstance(value, (list, tuple)) else ()):
                if isinstance(entry, Mapping) and "pattern" in entry:
                    check(entry["pattern"], f"{name}[{number}]: the pattern")
                check_plan(entry, f"{name}[{number}]")
        else:
            check(value, name)
    return problems


def overruled(values: Mapping[str, Any], winner: str, defaults: Mapping[str, Any]) -> list[str]:
    """One sentence for each of ``values`` that somebody has set and that ``winner``, if it is set,
    overrules.

    ``defaults`` are the role's own: what is equal to them counts as not set.
    """
    if not winner:
        return []
    return [
        # A token is nobody's to read.
        f"{name}{'' if name.endswith('_token') else f': {value}'} has no effect beside {winner}; "
        "leave one of them out"
        for name, value in values.items()
        if str(value) != str(defaults[name])
    ]


#: One source of identities in words of its own.
_SHORT_FORM = (
    "identity_source", "xray_access_log_path", "container", "journal_unit", "webhook_listen",
    "webhook_group", "webhook_token",
)  # fmt: skip


def one_form_of_sources(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the list of sources, or with the short form of one where that is empty."""
    left_out = _SHORT_FORM if settings.get("sources") else ("sources",)
    return {key: value for key, value in settings.items() if key not in left_out}


#: What says where a service or a network is; all else is what it may use.
_PLACES = ("ports", "protocol", "address", "prefixes")


def static_places(entries: Any) -> Any:
    """Of services or networks only where they are; what is no mapping stays, to be refused."""
    if not isinstance(entries, Mapping):
        return entries
    return {
        name: {key: value for key, value in entry.items() if key in _PLACES}
        if isinstance(entry, Mapping)
        else entry
        for name, entry in entries.items()
    }


def static_limits(users: Any, services: Any, networks: Any) -> Any:
    """``users`` and what services and networks may use, under the names that they have as users.

    An entry of ``users`` wins.
    """
    if not isinstance(users, Mapping):
        return users
    found = {}
    for kind, entries in (("service", services), ("network", networks)):
        for name, entry in entries.items() if isinstance(entries, Mapping) else ():
            limits = {}
            if isinstance(entry, Mapping):
                limits = {key: value for key, value in entry.items() if key not in _PLACES}
            if limits:
                found[f"{kind}:{name}"] = limits
    return {**found, **users}


def entries_of_people(policy: Mapping[str, Any], people: Mapping[str, str]) -> list[str]:
    """One sentence for each user of the policy who is an identity of somebody: it would count for
    nobody."""
    users = policy.get("users")
    return [
        f"{_variable(f'users.{name}')}: {name!r} is an identity of {people[name]!r} (qos_people); "
        f"write qos_users[{people[name]}]"
        for name in (users if isinstance(users, Mapping) else ())
        if name in people
    ]


def _agents(name: str) -> Any:
    """A module of the agent, by its name below vff_qos: what it refuses, the role refuses."""
    if str(_AGENT) not in sys.path:
        sys.path.append(str(_AGENT))
    try:
        return importlib.import_module(f"vff_qos.{name}")
    except ImportError as error:
        raise AnsibleFilterError(f"the agent's code is not in {_AGENT}: {error}") from error


def _parse(problems: list[str], kind: str, how: Any, data: Mapping[str, Any], *more: Any) -> Any:
    """What ``how`` makes of ``data``; None if it refuses them, with a sentence in ``problems``.

    ``kind``: how the role's variables for these data begin, after ``qos_``.
    """
    try:
        # JSON is YAML; ansible's own string and number types pass through it as plain ones.
        return how(json.dumps(data, ensure_ascii=False, default=str).encode(), "", *more)
    except _agents("errors").ConfigError as error:
        problems.append(f"{_variable(kind + error.key)}: {error.problem}")
        return None


def settings_problems(
    settings: Mapping[str, Any],
    policy: Mapping[str, Any],
    identities: Mapping[str, Any],
    intervals: Mapping[str, str],
) -> list[str]:
    """One sentence for each thing in the settings that the agent would refuse.

    The agent names the first problem of a file, so at most one comes from each of the three.
    """
    in_settings, in_identities = _agents("core.settings"), _agents("core.identities")
    problems: list[str] = []

    def parse(how: Any, data: Mapping[str, Any], *more: Any) -> Any:
        return _parse(problems, "", how, data, *more)

    known = parse(in_settings.parse_settings, one_form_of_sources(settings))
    parse(_agents("core.policy.parse").parse_policy, policy)
    if known:
        prefixes = in_settings.name_prefixes(known)
        found = parse(in_identities.parse_identities, identities, known.service_ports, prefixes)
    else:
        # Which sources there are is not known: the next run says what is wrong with people.
        found = parse(in_identities.parse_identities, {**identities, "people": {}})
    if found is not None:
        problems += entries_of_people(policy, found.people)
    problems += [
        f"{name}: {interval!r} is not a time such as 10min or 1h 30min"
        for name, interval in intervals.items()
        if not _TIME_SPAN.fullmatch(interval)
    ]
    return problems


def hooks_problems(
    hooks: Mapping[str, Any], users: Mapping[str, Any], flows: Mapping[str, Any]
) -> list[str]:
    """One sentence for each thing in the settings of the hooks that they would refuse.

    ``flows``: the node's source of that type; empty if there is none.
    """
    problems: list[str] = []
    if not flows:
        problems.append(
            "qos_hooks_enable needs a source of the type flows in qos_sources, such as "
            "{type: flows, listen: 'unix:/run/vff-qos-flows.sock', group: vff-qos-hooks}"
        )
    elif flows.get("group") in (None, "", "root"):
        problems.append(
            "qos_hooks_enable needs a group other than root for the source flows of qos_sources, "
            "such as vff-qos-hooks: the hooks are not root"
        )
    _parse(problems, "hooks_", _agents("core.hooks.hook_settings").parse_hooks, hooks)
    _parse(problems, "hooks_", _agents("core.hooks.credentials").parse_users, users)
    return problems


def leads_to_itself(url: str) -> bool:
    """Whether a URL leads a host to itself alone; an empty one does."""
    return bool(_agents("core.hooks.hook_settings").is_local(url))


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        return {
            "contradictions": contradictions,
            "hooks_problems": hooks_problems,
            "leads_to_itself": leads_to_itself,
            "old_variables": old_variables,
            "one_form_of_sources": one_form_of_sources,
            "overruled": overruled,
            "settings_problems": settings_problems,
            "static_limits": static_limits,
            "static_places": static_places,
            "unknown_variables": unknown_variables,
            "unquoted_names": unquoted_names,
        }
