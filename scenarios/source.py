"""A YAML file whose every value knows its place: reading it finds all mistakes, not the first one.

Owns syntax: nodes, places, plain values. What keys there are, and what they mean, is the business of `scenario_form`
and `reading`. Nodes may come from several files; each knows its own.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from scenarios.errors import Problem, ScenarioInvalid
from twins.errors import Mistake, path_text

# Deeper than any shadow may be nested; it also ends a mapping that contains itself.
_DEPTH_MAX: Final = 16


class Source:
    """One file on its way to being understood: its mistakes so far."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []

    def blame(self, node: yaml.Node, path: str, text: str) -> None:
        """Note a mistake at the place of `node`."""
        mark = node.start_mark
        self.problems.append(Problem(mark.name, mark.line + 1, mark.column + 1, path, text))

    def refuse_if_wrong(self) -> None:
        """Raise ScenarioInvalid if any mistake was noted."""
        if self.problems:
            raise ScenarioInvalid(list(dict.fromkeys(self.problems)))


class Item:
    """One value in the file, with its place and the path that leads to it."""

    def __init__(self, source: Source, node: yaml.Node, path: str) -> None:
        self.source = source
        self.node = node
        self.path = path

    def blame(self, text: str) -> None:
        """Note that this value is wrong."""
        self.source.blame(self.node, self.path, text)

    def plain(self) -> Any:
        """Return the value as plain Python: text, number, boolean, None, list or dictionary."""
        return self._plain(self.node, 0)

    def _plain(self, node: yaml.Node, depth: int) -> Any:
        if depth > _DEPTH_MAX:
            self.source.blame(node, self.path, f"is nested more than {_DEPTH_MAX} levels deep")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(element, depth + 1) for element in node.value]
        return {key_of(key): self._plain(value, depth + 1) for key, value in node.value}

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        kind = node.tag.rpartition(":")[2]
        if kind not in ("str", "int", "float", "bool", "null"):
            return node.value
        try:
            return yaml.SafeLoader("").construct_object(node)
        except (ValueError, yaml.YAMLError) as error:
            self.source.blame(node, self.path, f"{node.value!r} is no {kind}: {error}")
            return None

    def blame_repeated_keys(self) -> None:
        """Note every key that stands twice in a mapping, here or below: `plain` keeps the last one only."""
        self._blame_repeated_keys(self.node, self.path, 0)

    def _blame_repeated_keys(self, node: yaml.Node, path: str, depth: int) -> None:
        if depth > _DEPTH_MAX:
            return
        if isinstance(node, yaml.SequenceNode):
            for index, element in enumerate(node.value):
                self._blame_repeated_keys(element, f"{path}[{index}]", depth + 1)
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                name = key_of(key)
                below = f"{path}.{name}" if path else name
                if name in seen:
                    self.source.blame(key, below, "stands there twice; keep one")
                seen.add(name)
                self._blame_repeated_keys(value, below, depth + 1)

    def blame_all(self, mistakes: Sequence[Mistake]) -> None:
        """Note all mistakes that were found in the plain value."""
        for mistake in mistakes:
            self.blame_at(mistake)

    def blame_at(self, mistake: Mistake) -> None:
        """Note a mistake that was found in the plain value, at its place, or as near as anything stands there."""
        node, place = self.node, self.node
        for step in mistake.path:
            if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                node = place = node.value[step]
                continue
            pairs = node.value if isinstance(node, yaml.MappingNode) else ()
            found = [pair for pair in pairs if key_of(pair[0]) == step]
            if not found:
                break
            key, node = found[-1]
            place = key if mistake.is_of_key else node
        self.source.blame(place, path_text(mistake.path), mistake.text)


def key_of(node: yaml.Node) -> str:
    """Return a key of a mapping as text; what is no scalar is none, and refused as unknown."""
    return str(node.value) if isinstance(node, yaml.ScalarNode) else "?"


def entries_of(node: yaml.Node) -> Mapping[str, yaml.Node]:
    """Return the values of a mapping by key; of anything else, nothing."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    return {key_of(key): value for key, value in pairs}


def read_yaml(file: Path) -> Item:
    """Return the root of a YAML file; ScenarioInvalid where it cannot be read or is no YAML."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ScenarioInvalid([Problem(str(file), 1, 1, "", f"cannot be read: {reason}")]) from None
    return parse_yaml(text, str(file))


def parse_yaml(text: str, file: str) -> Item:
    """Return the root of YAML text that stands in `file`; ScenarioInvalid where it is no YAML."""
    try:
        root = yaml.compose(_Named(text, file), Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise ScenarioInvalid([Problem(file, line, column, "", f"is not YAML: {error.problem}")]) from None
    except yaml.YAMLError as error:
        raise ScenarioInvalid([Problem(file, 1, 1, "", f"is not YAML: {error}")]) from None
    if root is None:
        raise ScenarioInvalid([Problem(file, 1, 1, "", "is empty")])
    return Item(Source(file), root, "")


class _Named(io.StringIO):
    """A text that the parser's marks know by the name of its file."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.name = name


# The C parser where the library was built with it: ten times as fast, the same nodes.
_LOADER: Final[type[Any]] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
