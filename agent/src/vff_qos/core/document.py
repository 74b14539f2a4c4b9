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
        self._lines: dict[_Key, int] = {}
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            self._loader = loader
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
        self._lines[path] = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            out: dict[str, Any] = {}
            for key_node, value_node in node.value:
                if not isinstance(key_node, yaml.ScalarNode):
                    raise ConfigError(
                        self.where, "a key must be a plain word", key_node.start_mark.line + 1
                    )
                key = str(key_node.value)
                if key in out:
                    raise ConfigError(
                        self.where,
                        "stands twice",
                        key_node.start_mark.line + 1,
                        ".".join((*path, key)),
                    )
                out[key] = self._value(value_node, (*path, key))
                here = (*path, key)
                self._lines[here] = key_node.start_mark.line + 1
            return out
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*path, str(index))) for index, item in enumerate(node.value)]
        return self._loader.construct_object(node)

    def fail(self, path: _Key, problem: str) -> ConfigError:
        """The error to raise about the value at ``path``."""
        return ConfigError(self.where, problem, self._lines.get(path, 0), ".".join(path))

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
