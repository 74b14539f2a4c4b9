"""YAML that remembers its lines, so that every complaint names file, line and key."""

from __future__ import annotations

import difflib
from typing import Any

import yaml

from ..errors import ConfigError

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Key = tuple[str, ...]


class Document:
    """A YAML mapping: ``data`` holds plain values, ``fail`` raises with the line of a key.

    Keys are strings throughout (``12: x`` is the key ``"12"``: Remnawave's emails are numbers);
    a key that stands twice is refused, because YAML would silently keep the last.
    """

    def __init__(self, text: bytes, where: str) -> None:
        """``where`` is the file's name for messages.  Raises ConfigError if it is no mapping."""
        self.where = where
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            self._root, self._loader = node, loader
            self.data: dict[str, Any] = {} if node is None else self._value(node, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            raise ConfigError(
                where, f"not valid YAML: {error.problem}", mark.line + 1 if mark else 0
            ) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(where, f"not valid YAML: {str(error).splitlines()[0]}") from error
        finally:
            loader.dispose()
        if not isinstance(self.data, dict):
            raise ConfigError(where, "must be a mapping of keys to values", 1)

    def _value(self, node: Any, path: _Key) -> Any:
        if isinstance(node, yaml.ScalarNode):
            text = node.tag == "tag:yaml.org,2002:str"
            return node.value if text else self._loader.construct_object(node)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*path, str(index))) for index, item in enumerate(node.value)]
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(self.where, "a key must be a plain word", line)
            key = str(key_node.value)
            if key in out:
                raise ConfigError(self.where, "stands twice", line, ".".join((*path, key)))
            out[key] = self._value(value_node, (*path, key))
        return out

    def line(self, path: _Key) -> int:
        """The line of the key or item at ``path``; 0 if there is none."""
        # Looked for when somebody asks: a table of all lines would be larger than the data.
        node, line = self._root, self._root.start_mark.line + 1 if self._root else 0
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
                near = difflib.get_close_matches(key, allowed, 1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise self.fail((*path, key), f"unknown key; {hint}allowed: {', '.join(allowed)}")
        return value
