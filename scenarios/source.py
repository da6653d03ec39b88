"""A YAML file whose every value knows its line: reading it finds all mistakes, not the first one.

Owns syntax: nodes, places, plain values, durations, unknown keys. What keys there are, and what they mean, is the
business of `reading`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml

from scenarios.errors import Problem, ScenarioInvalid
from twins.errors import Mistake, path_text
from twins.words import duration_s, nearest, one_of

Value = TypeVar("Value")

# Deeper than any shadow may be nested; it also ends a mapping that contains itself.
_DEPTH_MAX: Final = 8


class Source:
    """One file on its way to being understood: its mistakes so far."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []

    def blame(self, node: yaml.Node, path: str, text: str) -> None:
        """Note a mistake at the place of `node`."""
        mark = node.start_mark
        self.problems.append(Problem(self.file, mark.line + 1, mark.column + 1, path, text))

    def refuse_if_wrong(self) -> None:
        """Raise ScenarioInvalid if any mistake was noted."""
        if self.problems:
            raise ScenarioInvalid(self.problems)


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
        return {key.value: self._plain(value, depth + 1) for key, value in node.value}

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
                below = f"{path}.{key.value}" if path else str(key.value)
                if str(key.value) in seen:
                    self.source.blame(key, below, "stands there twice; keep one")
                seen.add(str(key.value))
                self._blame_repeated_keys(value, below, depth + 1)

    def blame_at(self, mistake: Mistake) -> None:
        """Note a mistake that was found in the plain value, at its place, or as near as anything stands there."""
        node, place = self.node, self.node
        for step in mistake.path:
            if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                node = place = node.value[step]
                continue
            pairs = node.value if isinstance(node, yaml.MappingNode) else ()
            found = [pair for pair in pairs if str(pair[0].value) == step]
            if not found:
                break
            key, node = found[-1]
            place = key if mistake.is_of_key else node
        self.source.blame(place, path_text(mistake.path), mistake.text)

    def text(self) -> str:
        """Return a text; anything else is a mistake."""
        value = self.plain() if isinstance(self.node, yaml.ScalarNode) else None
        if isinstance(value, str) and value:
            return value
        self.blame(f"must be a text, not {self.describe()}")
        return ""

    def number(self, *, minimum: float, maximum: float = float("inf"), is_whole: bool = False) -> float:
        """Return a number between the bounds; anything else is a mistake, and true is no number."""
        value = self.plain() if isinstance(self.node, yaml.ScalarNode) else None
        wanted = "a whole number" if is_whole else "a number"
        allowed = int if is_whole else (int, float)
        if value is None or isinstance(value, bool) or not isinstance(value, allowed):
            self.blame(f"must be {wanted}, not {self.describe()}")
        elif not minimum <= value <= maximum:
            upper = "" if maximum == float("inf") else f" and at most {maximum:,}"
            self.blame(f"must be at least {minimum:,}{upper}, not {value:,}")
        else:
            return value
        return minimum

    def duration_s(self, *, minimum: float = 0.0) -> float:
        """Return a duration in seconds, written like 10s, 2m, 1h or 250ms."""
        value = self.node.value if isinstance(self.node, yaml.ScalarNode) else ""
        seconds = duration_s(value)
        if seconds is None:
            self.blame(f"must be a duration like 10s, 2m or 1h, not {self.describe()}")
            return minimum
        if seconds < minimum:
            self.blame(f"must be at least {minimum:g}s, not {value}")
            return minimum
        return seconds

    def whole_seconds(self, *, minimum: int = 0) -> int:
        """Return a duration of whole seconds: virtual time goes in ticks of one second."""
        seconds = self.duration_s(minimum=minimum)
        if seconds != int(seconds):
            self.blame(f"must be whole seconds, not {self.describe()}: virtual time goes in ticks of 1 s")
        return int(seconds)

    def choice(self, words: Collection[str], *, later: Collection[str] = ()) -> str:
        """Return one of `words`; a word of `later` belongs to the language, but this version does not have it."""
        value = self.node.value if isinstance(self.node, yaml.ScalarNode) else ""
        if value in words:
            return str(value)
        if value in later:
            self.blame(f"{value!r} is not supported by this version")
        else:
            self.blame(f"must be {one_of(words)}, not {self.describe()}{nearest(value, words)}")
        return next(iter(words))

    def items(self) -> list[Item]:
        """Return the elements of a list; anything else is a mistake."""
        if not isinstance(self.node, yaml.SequenceNode):
            self.blame(f"must be a list, not {self.describe()}")
            return []
        return [
            Item(self.source, node, f"{self.path}[{index}]") for index, node in enumerate(self.node.value)
        ]

    def entries(self) -> Entries:
        """Return the keys of a mapping; anything else, and a key that stands there twice, is a mistake."""
        if isinstance(self.node, yaml.MappingNode):
            return Entries(self, self.node)
        self.blame(f"must be a mapping of keys, not {self.describe()}")
        return Entries(self, yaml.MappingNode("", [], self.node.start_mark, self.node.end_mark))

    def describe(self) -> str:
        """Return what stands in the file, in a few words."""
        if isinstance(self.node, yaml.ScalarNode):
            return repr(self.node.value) if self.node.value else "nothing"
        return "a list" if isinstance(self.node, yaml.SequenceNode) else "a mapping"


class Entries:
    """The keys of one mapping, taken one by one; what nobody has taken in the end is unknown."""

    def __init__(self, item: Item, node: yaml.MappingNode) -> None:
        self.item = item
        self._left: dict[str, tuple[yaml.Node, Item]] = {}
        self._known: list[str] = []
        for key_node, value_node in node.value:
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
            path = f"{item.path}.{key}" if item.path else key
            if key in self._left:
                item.source.blame(key_node, path, "stands there twice; keep one")
            self._left[key] = (key_node, Item(item.source, value_node, path))

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def remaining(self) -> Iterator[tuple[str, Item]]:
        """Yield every key that was not taken yet with its value, and take it: for mappings with free keys."""
        for key in list(self._left):
            yield key, self._left.pop(key)[1]

    def take(self, key: str, read: Callable[[Item], Value], default: Any) -> Value:
        """Return the value of `key` as `read` understands it, or `default` where it is absent."""
        self._known.append(key)
        _, item = self._left.pop(key, (None, None))
        return default if item is None else read(item)

    def need(self, key: str, read: Callable[[Item], Value], stand_in: Any) -> Value:
        """Return the value of `key`; its absence is a mistake, after which reading goes on with `stand_in`."""
        if key not in self._left:
            self.item.blame(f"{key!r} is missing")
        return self.take(key, read, stand_in)

    def close(self, *, later: Collection[str] = ()) -> None:
        """Note every key that was not taken as unknown, or, if it is one of `later`, as not supported yet."""
        for key, (node, item) in self._left.items():
            if key in later:
                text = "is part of the scenario language, but not supported by this version"
            else:
                advice = nearest(key, self._known) or f"; known here: {', '.join(self._known)}"
                text = f"unknown key{advice}"
            self.item.source.blame(node, item.path, text)


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
        root = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise ScenarioInvalid([Problem(file, line, column, "", f"is not YAML: {error.problem}")]) from None
    except yaml.YAMLError as error:
        raise ScenarioInvalid([Problem(file, 1, 1, "", f"is not YAML: {error}")]) from None
    if root is None:
        raise ScenarioInvalid([Problem(file, 1, 1, "", "is empty")])
    return Item(Source(file), root, "")


# The C parser where the library was built with it: ten times as fast, the same nodes.
_LOADER: Final[type[Any]] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def merge_texts(item: Item) -> Mapping[str, str]:
    """Return a mapping of free keys to texts."""
    return {key: value.text() for key, value in item.entries().remaining()}
