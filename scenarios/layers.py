"""What a scenario file is made of: what it includes, what is said beside it (KEY=VALUE), and the cells of its matrix.

Works on YAML nodes, so that every value keeps its place, in whichever file that is. Nodes are never changed: new ones
share what is the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Final

import yaml

from scenarios.errors import Problem, ScenarioInvalid
from scenarios.source import Item, Source, entries_of, key_of, parse_yaml, read_yaml
from twins.words import nearest

INCLUDE: Final = "include"
MATRIX: Final = "matrix"
# A file that includes itself is refused long before; this bounds a chain that nobody means.
_INCLUDE_DEPTH_MAX: Final = 8
# Runs of one file; a night has no room for more.
_CELLS_MAX: Final = 1000
_STEP: Final = re.compile(r"([^.\[\]{}=]+(?:\{[^{}]*\})?)|\[([^\[\]]+)\]")
# Where a value said beside the file stands, in messages.
_BESIDE: Final = "--set"


def included(root: Item) -> Item:
    """Return the file with what it includes; mistakes in that are noted where they stand.

    Its own values win over those of included files, later files over earlier ones. Mappings are merged key by key.
    The lists of the top level are joined: an element that has the name of an earlier one is merged with it.
    """
    return Item(root.source, _included(root.node, root.source, ()), root.path)


def _included(node: yaml.Node, source: Source, chain: tuple[Path, ...]) -> yaml.Node:
    listed = entries_of(node).get(INCLUDE)
    if listed is None or not isinstance(node, yaml.MappingNode):
        return node
    own = Path(node.start_mark.name)
    files = listed.value if isinstance(listed, yaml.SequenceNode) else [listed]
    base: yaml.Node | None = None
    for position, each in enumerate(files):
        path = f"{INCLUDE}[{position}]"
        if not isinstance(each, yaml.ScalarNode) or not each.value:
            source.blame(each, path, "must be the path of a scenario file, relative to this one")
            continue
        file = own.parent / each.value
        if file.resolve() in (*(one.resolve() for one in chain), own.resolve()):
            source.blame(each, path, f"{each.value} includes itself")
            continue
        if len(chain) >= _INCLUDE_DEPTH_MAX:
            source.blame(each, path, f"is included more than {_INCLUDE_DEPTH_MAX} levels deep")
            continue
        try:
            part = read_yaml(file)
        except ScenarioInvalid as error:
            source.problems.extend(error.problems)
            continue
        found = _included(part.node, source, (*chain, own))
        base = found if base is None else _merged(base, found, is_top=True)
    rest = [pair for pair in node.value if key_of(pair[0]) != INCLUDE]
    mine = yaml.MappingNode(node.tag, rest, node.start_mark, node.end_mark)
    return mine if base is None else _merged(base, mine, is_top=True)


def _merged(base: yaml.Node, over: yaml.Node, *, is_top: bool = False) -> yaml.Node:
    if not (isinstance(base, yaml.MappingNode) and isinstance(over, yaml.MappingNode)):
        return over
    pairs = {key_of(key): (key, value) for key, value in base.value}
    repeated = []
    own: set[str] = set()
    for key, value in over.value:
        name = key_of(key)
        if name in own:
            # A mistake, which is told by who looks for it.
            repeated.append((key, value))
        elif name in pairs:
            present = pairs[name][1]
            lists = isinstance(present, yaml.SequenceNode) and isinstance(value, yaml.SequenceNode)
            pairs[name] = (key, _joined(present, value) if is_top and lists else _merged(present, value))
        else:
            pairs[name] = (key, value)
        own.add(name)
    return yaml.MappingNode(over.tag, [*pairs.values(), *repeated], over.start_mark, over.end_mark)


def _joined(base: yaml.Node, over: yaml.Node) -> yaml.Node:
    elements = list(base.value)
    places = {_name_of(element): place for place, element in enumerate(elements)}
    for element in over.value:
        place = places.get(_name_of(element)) if _name_of(element) else None
        if place is None:
            elements.append(element)
        elif isinstance(element, yaml.MappingNode):
            elements[place] = _merged(elements[place], element)
    return yaml.SequenceNode(over.tag, elements, over.start_mark, over.end_mark)


def _name_of(element: yaml.Node) -> str:
    """Return what an element of a list is called: itself where it is a word."""
    name = element if isinstance(element, yaml.ScalarNode) else entries_of(element).get("name")
    return str(name.value) if isinstance(name, yaml.ScalarNode) else ""


def overridden(root: Item, overrides: Sequence[str]) -> Item:
    """Return the file with values set as `KEY=VALUE` says: `groups[0].count=1000`, or `groups[sensors].count=1000`.

    What is wrong with KEY is noted; mistakes in a VALUE have `--set KEY=VALUE` for their file.
    """
    node = root.node
    for override in overrides:
        key, sign, value = override.partition("=")
        name = f"{_BESIDE} {override}"
        if not sign or not value.strip():
            problem = Problem(name, 1, 1, "", "must be KEY=VALUE, like groups[0].count=1000")
            root.source.problems.append(problem)
            continue
        try:
            put = parse_yaml(value, name).node
        except ScenarioInvalid as error:
            root.source.problems.extend(error.problems)
            continue
        node = _changed(node, key, put, root.source, name)
    return Item(root.source, node, root.path)


def _changed(node: yaml.Node, key: str, put: yaml.Node, source: Source, name: str) -> yaml.Node:
    steps = _STEP.findall(key)
    if "".join(f"[{index}]" if index else word for word, index in steps) != key.replace(".", "") or not steps:
        source.problems.append(Problem(name, 1, 1, "", f"{key!r} is no key; write it like groups[0].count"))
        return node
    try:
        return _set(node, [word or (index,) for word, index in steps], put)
    except LookupError as error:
        source.problems.append(Problem(name, 1, 1, key, str(error.args[0])))
        return node


def _set(node: yaml.Node, steps: Sequence[str | tuple[str]], put: yaml.Node) -> yaml.Node:
    """Return the node with another value at the end of some steps; a key that is not there yet is made."""
    if not steps:
        return put
    step, rest = steps[0], steps[1:]
    if isinstance(step, tuple):
        place = _place(node, step[0])
        elements = list(node.value)
        elements[place] = _set(elements[place], rest, put)
        return yaml.SequenceNode(node.tag, elements, node.start_mark, node.end_mark)
    if not isinstance(node, yaml.MappingNode):
        raise LookupError(f"{step!r} is no key there: what stands there is no mapping")
    pairs = list(node.value)
    found = [place for place, (key, _) in enumerate(pairs) if key_of(key) == step]
    mark = put.start_mark
    if found:
        key, value = pairs[found[-1]]
        pairs[found[-1]] = (key, _set(value, rest, put))
    else:
        key = yaml.ScalarNode("tag:yaml.org,2002:str", step, mark, mark)
        empty = yaml.MappingNode("tag:yaml.org,2002:map", [], mark, mark)
        pairs.append((key, _set(empty, rest, put)))
    return yaml.MappingNode(node.tag, pairs, node.start_mark, node.end_mark)


def _place(node: yaml.Node, index: str) -> int:
    if not isinstance(node, yaml.SequenceNode):
        raise LookupError(f"[{index}] is no element there: what stands there is no list")
    if index.isdigit():
        if int(index) < len(node.value):
            return int(index)
        raise LookupError(f"there is no element {index}; the list has {len(node.value)}, counted from 0")
    names = [_name_of(element) for element in node.value]
    if index not in names:
        raise LookupError(f"no element is named {index!r}{nearest(index, names)}")
    return names.index(index)


def cells_of(root: Item, overrides: Sequence[str]) -> tuple[Item, list[Mapping[str, str]]]:
    """Return the file without its matrix, and the cells of that: by key, the value as text; one empty cell without.

    A key that is overridden is no axis any more.
    """
    matrix = entries_of(root.node).get(MATRIX)
    if matrix is None or not isinstance(root.node, yaml.MappingNode):
        return root, [{}]
    rest = [pair for pair in root.node.value if key_of(pair[0]) != MATRIX]
    node = yaml.MappingNode(root.node.tag, rest, root.node.start_mark, root.node.end_mark)
    taken = {override.partition("=")[0] for override in overrides}
    axes: list[list[tuple[str, str]]] = []
    for key, values in entries_of(matrix).items():
        path = f"{MATRIX}.{key}"
        if not isinstance(values, yaml.SequenceNode) or not values.value:
            root.source.blame(values, path, "must be a list of the values that the key takes")
        elif not all(isinstance(value, yaml.ScalarNode) for value in values.value):
            root.source.blame(values, path, "must be a list of plain values: texts, numbers, truth values")
        elif key not in taken:
            axes.append([(key, str(value.value)) for value in values.value])
    if not isinstance(matrix, yaml.MappingNode) or not matrix.value:
        root.source.blame(matrix, MATRIX, "must be a mapping of keys to lists: {seed: [1, 2, 3]}")
    size = 1
    for axis in axes:
        size *= len(axis)
    if size > _CELLS_MAX:
        root.source.blame(matrix, MATRIX, f"has {size:,} cells; {_CELLS_MAX:,} are the most")
        axes = []
    return Item(root.source, node, root.path), [dict(cell) for cell in product(*axes)]
