"""YAML that remembers its lines, so that every complaint names file, line and key."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import yaml

from ..errors import ConfigError

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Key = tuple[str, ...]
#: No file of ours needs more than five; Python would give up at a thousand, in its own words.
_MAX_DEPTH = 32


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _scalar(loader: Any, event: Any) -> Any:
    tag = event.tag
    if tag in (None, "!"):
        tag = loader.resolve(yaml.ScalarNode, event.value, event.implicit)
    if tag == "tag:yaml.org,2002:str":
        return event.value
    value = loader.construct_object(yaml.ScalarNode(tag, event.value, event.start_mark))
    loader.constructed_objects.clear()
    return value


class Document:
    """A YAML mapping: ``data`` holds plain values, ``fail`` raises with the line of a key.

    Keys are strings throughout (``12: x`` is the key ``"12"``: Remnawave's emails are numbers);
    a key that stands twice is refused, because YAML would silently keep the last.
    """

    def __init__(self, text: bytes, where: str) -> None:
        """``where`` is the file's name for messages.  Raises ConfigError if it is no mapping."""
        self.where = where
        self._text = text
        self._anchors: dict[str, Any] = {}
        data = self._parsed(self._document)
        #: Whether the file holds nothing: no text, comments alone, or ``null``.
        self.is_empty = data is None
        self.data: dict[str, Any] = {} if data is None else data
        if not isinstance(self.data, dict):
            raise ConfigError(where, "must be a mapping of keys to values", 1)

    def _parsed(self, read: Callable[[Any], Any]) -> Any:
        """What ``read`` makes of a loader; what is not YAML becomes a ConfigError."""
        loader = _Loader(self._text)
        try:
            return read(loader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            raise ConfigError(
                self.where, f"not valid YAML: {error.problem}", mark.line + 1 if mark else 0
            ) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            problem = str(error).splitlines()[0]
            raise ConfigError(self.where, f"not valid YAML: {problem}") from error
        finally:
            loader.dispose()

    def _document(self, loader: Any) -> Any:
        """The only document's value, from events: a tree of nodes costs ten times the memory.

        None if there is none.
        """
        loader.get_event()  # start of the stream
        if loader.check_event(yaml.StreamEndEvent):
            return None
        loader.get_event()  # start of the document
        value = self._value(loader, loader.get_event(), ())
        loader.get_event()  # its end
        if not loader.check_event(yaml.StreamEndEvent):
            line = _line(loader.peek_event())
            raise ConfigError(self.where, "holds more than one document", line)
        return value

    def _value(self, loader: Any, event: Any, path: _Key) -> Any:
        if len(path) > _MAX_DEPTH:
            raise ConfigError(self.where, "is nested too deeply", _line(event))
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                problem = f"there is no anchor {event.anchor!r} before this"
                raise ConfigError(self.where, problem, _line(event), ".".join(path))
            return self._anchors[event.anchor]
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(loader, event)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(item := loader.get_event(), yaml.SequenceEndEvent):
                value.append(self._value(loader, item, (*path, str(len(value)))))
        else:
            value = self._mapping(loader, path)
        if event.anchor:
            self._anchors[event.anchor] = value
        return value

    def _mapping(self, loader: Any, path: _Key) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := loader.get_event(), yaml.MappingEndEvent):
            line = _line(event)
            if not isinstance(event, yaml.ScalarEvent):
                raise ConfigError(self.where, "a key must be a plain word", line)
            # Thousands of entries have the same few keys.
            key = sys.intern(event.value)
            if key in found:
                raise ConfigError(self.where, "stands twice", line, ".".join((*path, key)))
            found[key] = self._value(loader, loader.get_event(), (*path, key))
        return found

    def line(self, path: _Key) -> int:
        """The line of the key or item at ``path``; 0 if there is none."""
        # Read again when somebody asks: a table of all lines would be larger than the data.
        node = self._parsed(lambda loader: loader.get_single_node())
        line = node.start_mark.line + 1 if node else 0
        for name in path:
            if isinstance(node, yaml.MappingNode):
                found = [pair for pair in node.value if pair[0].value == name]
            elif isinstance(node, yaml.SequenceNode) and name.isdecimal():
                found = [(item, item) for item in node.value[int(name) :][:1]]
            else:
                found = []
            if not found:
                return 0
            key_node, node = found[0]
            line = key_node.start_mark.line + 1
        return int(line)

    def fail(self, path: _Key, problem: str) -> ConfigError:
        """The error to raise about the value at ``path``."""
        return ConfigError(self.where, problem, self.line(path), ".".join(path))

    def check_keys(self, path: _Key, value: Any, allowed: tuple[str, ...]) -> dict[str, Any]:
        """``value`` if it is a mapping whose keys are all allowed; ConfigError otherwise."""
        if not isinstance(value, dict):
            raise self.fail(path, f"must be a mapping with {', '.join(allowed)}")
        for key in value:
            if key not in allowed:
                # Only a mistake needs it.
                import difflib  # noqa: PLC0415

                near = difflib.get_close_matches(key, allowed, 1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise self.fail((*path, key), f"unknown key; {hint}allowed: {', '.join(allowed)}")
        return value
