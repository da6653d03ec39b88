"""The rules of the code's structure, read off the syntax trees: who may import whom, in which order, and how long.

Each rule is a function from sources to findings, so that it is itself tested on sources that break it.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent

# Imports point right only: a package may use those that stand after it.
LAYERS: Final = ("twinfleet", "scenarios", "actors", "twins")
# Configuration beside the code: it imports nothing of ours, and the world around the core reads it.
ASIDE: Final = "broker_config"
PACKAGES: Final = (*LAYERS, ASIDE)

# The core computes from bytes and a time. What reads a clock, draws luck, waits or touches the world is not for it.
NOT_IN_CORE: Final = frozenset(
    "asyncio concurrent ctypes io multiprocessing os pathlib random secrets select selectors shutil signal"  # noqa: SIM905
    " socket ssl subprocess tempfile threading time urllib uuid".split()  # (a list would take a line for each name)
)
CORE_LIBRARIES: Final = ("numpy", "msgspec")  # columns, and the one codec
CORE_LIBRARY_MODULES: Final = {
    "pyarrow": ("twins/snapshot.py",),
    "numba": ("twins/kernel_loops.py",),
    # The shipped device models are YAML files of the package: part of the program, which never change while it runs.
    "yaml": ("twins/shipped.py",),
}
NOT_CALLED_IN_CORE: Final = frozenset({"open", "input", "print"})

# Its acknowledgements need our own path around it, which only these modules take.
MQTT_CLIENT_MODULES: Final = ("actors/mqtt_*.py", "scenarios/device_link.py")
# Settings are read once, in one place; add a module here only with a reason beside it.
ENVIRONMENT_MODULES: Final = ("actors/settings.py",)

FILE_LINES_MAX: Final = 600  # what a reader can hold; the aim is 400
FUNCTION_LINES_MAX: Final = 70  # a screenful; the aim is 40

# A checkout works with whatever index its machine is set up with, and on any machine. The brackets keep these patterns
# from finding themselves.
PACKAGE_INDEX: Final = re.compile(r"pyp[i]\.org|python[h]osted|npm[j]s\.|deb[.]debian\.org|crates[.]io")
MACHINE_PATH: Final = re.compile(r"(?<![\w./\\>}])/(?:work|home|Users)/\w")
NOT_OURS: Final = frozenset({".git", ".venv", ".twinfleet", ".hypothesis", "__pycache__", "node_modules"})


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name: `module` as far as it is a module of ours, else as it is written."""

    line: int
    module: str


def imports_of(source: str, *, modules: frozenset[str] = frozenset()) -> Iterator[Import]:
    """Give every import in the source, wherever it stands; `from a import b` gives `a.b` where that is a module."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (Import(node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=str(parent), names=names):
                for alias in names:
                    child = f"{parent}.{alias.name}"
                    yield Import(node.lineno, child if child in modules else parent)
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield Import(node.lineno, name)


def module_name(path: str) -> str:
    """Return the dotted name of a source file, a package's own for its `__init__.py`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def direction_findings(path: str, source: str) -> list[str]:
    """Find imports that point to the left, or from the packages into the tests."""
    package = path.split("/", 1)[0]
    allowed: tuple[str, ...] = (package,)
    if package in LAYERS:
        allowed = LAYERS[LAYERS.index(package) :] + (() if package == "twins" else (ASIDE,))
    forbidden = {*PACKAGES, "tests"} - set(allowed)
    return [
        f"{path}:{found.line}: {package} may not import {found.module}"
        for found in imports_of(source)
        if found.module.split(".", 1)[0] in forbidden
    ]


def core_findings(path: str, source: str) -> list[str]:
    """Find what the pure core may not import, call or draw from."""
    findings = []
    for found in imports_of(source):
        top = found.module.split(".", 1)[0]
        is_standard = top in sys.stdlib_module_names and top not in NOT_IN_CORE
        is_library = top in CORE_LIBRARIES or path in CORE_LIBRARY_MODULES.get(top, ())
        if not (is_standard or is_library or top == "twins") or found.module.startswith("numpy.random"):
            findings.append(f"{path}:{found.line}: the core may not import {found.module}")
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in NOT_CALLED_IN_CORE:
                findings.append(f"{path}:{node.lineno}: the core may not call {name}()")
            case ast.Attribute(value=ast.Name(id="np" | "numpy"), attr="random"):
                findings.append(
                    f"{path}:{node.lineno}: the core draws from twins.draws, not from numpy.random"
                )
    return findings


def mqtt_findings(path: str, source: str) -> list[str]:
    """Find uses of the MQTT client outside the modules that know its traps."""
    if any(fnmatch(path, pattern) for pattern in MQTT_CLIENT_MODULES):
        return []
    return [
        f"{path}:{found.line}: only {', '.join(MQTT_CLIENT_MODULES)} may import {found.module}"
        for found in imports_of(source)
        if found.module.split(".", 1)[0] == "gmqtt"
    ]


def environment_findings(path: str, source: str) -> list[str]:
    """Find readers of the environment outside the settings."""
    if path in ENVIRONMENT_MODULES:
        return []
    names = {"environ", "environb", "getenv", "getenvb"}
    findings = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr=name) if name in names:
                findings.append(f"{path}:{node.lineno}: os.{name} belongs into {ENVIRONMENT_MODULES[0]}")
            case ast.ImportFrom(module="os", names=aliases):
                findings += [
                    f"{path}:{node.lineno}: os.{alias.name} belongs into {ENVIRONMENT_MODULES[0]}"
                    for alias in aliases
                    if alias.name in names
                ]
    return findings


def reading_order(docstring: str) -> list[str]:
    """Return the names between backticks in the paragraph of a package's docstring that begins "Reading order"."""
    for paragraph in re.split(r"\n\s*\n", docstring):
        if paragraph.lstrip().startswith("Reading order"):
            return re.findall(r"`(\w+)`", paragraph)
    return []


def order_findings(package: str, sources: Mapping[str, str]) -> list[str]:
    """Find modules of the package that its reading order misses, invents, or that import what stands after them.

    `sources` maps the package's paths (with those of its sub-packages) to their text. A sub-package is one name here.
    """
    folder = package.replace(".", "/")
    inside = {path: text for path, text in sources.items() if path.startswith(f"{folder}/")}
    own = f"{folder}/__init__.py"
    order = reading_order(ast.get_docstring(ast.parse(inside[own])) or "")
    names = {path: path.removeprefix(f"{folder}/").split("/", 1)[0].removesuffix(".py") for path in inside}
    present = set(names.values()) - {"__init__", "__main__"}
    findings = [f"{own}: the reading order misses `{name}`" for name in sorted(present - set(order))]
    findings += [
        f"{own}: the reading order names `{name}`, which is not there"
        for name in order
        if name not in present
    ]
    modules = frozenset(map(module_name, sources))
    for path, text in sorted(inside.items()):
        if names[path] not in order:
            continue
        earlier = order[: order.index(names[path])]
        for found in dict.fromkeys(imports_of(text, modules=modules)):
            target = found.module.removeprefix(f"{package}.").split(".", 1)[0]
            is_inside = found.module == package or found.module.startswith(f"{package}.")
            if is_inside and target != names[path] and target not in earlier:
                findings.append(
                    f"{path}:{found.line}: imports {found.module}, which does not stand before it"
                )
    return findings


def length_findings(path: str, source: str) -> list[str]:
    """Find files and functions that are too long to be read at once."""
    lines = source.count("\n")
    findings = [f"{path}: {lines} lines, {FILE_LINES_MAX} at most"] if lines > FILE_LINES_MAX else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES_MAX:
                findings.append(
                    f"{path}:{node.lineno}: {node.name} has {length} lines, {FUNCTION_LINES_MAX} at most"
                )
    return findings


def text_findings(path: str, text: str) -> list[str]:
    """Find what ties a file to one package index or to one machine."""
    return [
        f"{path}:{number}: names {found.group()!r}"
        for number, line in enumerate(text.splitlines(), 1)
        for pattern in (PACKAGE_INDEX, MACHINE_PATH)
        if (found := pattern.search(line))
    ]


def lock_findings(text: str) -> list[str]:
    """Find entries of the lock that have no hash, and lines that name an address."""
    entries = re.split(r"\n(?=\S)", text.strip())
    return [
        entry.splitlines()[0] for entry in entries if "==" not in entry or "--hash=sha256:" not in entry
    ] + [line for line in text.splitlines() if "://" in line or "--index" in line or "--find-links" in line]


def sources_below(folders: Sequence[str]) -> dict[str, str]:
    """Return the Python sources below these folders of the project, by their path from its root."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


def project_files() -> Iterator[Path]:
    """Give every file of the project, without what tools made."""
    pending = [ROOT]
    while pending:
        for path in sorted(pending.pop().iterdir()):
            if path.name in NOT_OURS or path.name.endswith("_cache"):
                continue
            if path.is_dir():
                pending.append(path)
            else:
                yield path


SOURCES: Final = sources_below(PACKAGES)


def test_imports_point_from_the_command_line_towards_the_core() -> None:
    assert [finding for path, text in SOURCES.items() for finding in direction_findings(path, text)] == []


def test_the_core_reads_no_clock_draws_no_luck_and_touches_no_world() -> None:
    core = {path: text for path, text in SOURCES.items() if path.startswith("twins/")}
    assert core, "no sources found"
    assert [finding for path, text in core.items() for finding in core_findings(path, text)] == []


def test_only_the_bridge_and_the_load_generator_use_the_mqtt_client() -> None:
    assert [finding for path, text in SOURCES.items() for finding in mqtt_findings(path, text)] == []


def test_only_the_settings_read_the_environment() -> None:
    assert [finding for path, text in SOURCES.items() for finding in environment_findings(path, text)] == []


# `twinfleet` has one module per command family beside each other, and so no order.
@pytest.mark.parametrize("package", ["twins", "actors", "scenarios"])
def test_a_module_imports_only_what_stands_before_it_in_the_reading_order(package: str) -> None:
    assert order_findings(package, SOURCES) == []


def test_a_sub_package_that_gives_an_order_keeps_it() -> None:
    packages = [
        module_name(path)
        for path, text in SOURCES.items()
        if path.count("/") > 1 and path.endswith("/__init__.py") and "Reading order" in text
    ]
    assert [finding for package in packages for finding in order_findings(package, SOURCES)] == []


def test_files_and_functions_can_be_read_at_once() -> None:
    assert [finding for path, text in SOURCES.items() for finding in length_findings(path, text)] == []


def test_no_file_names_a_package_index_or_a_path_of_one_machine() -> None:
    findings = []
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        findings += text_findings(path.relative_to(ROOT).as_posix(), text)
    assert findings == []


def test_every_entry_of_the_lock_has_a_hash_and_no_address() -> None:
    assert lock_findings((ROOT / "requirements.lock").read_text(encoding="utf-8")) == []
    assert not (ROOT / "uv.lock").exists()


# The rules themselves: each must find what breaks it.


@pytest.mark.parametrize(
    ("path", "source", "is_found"),
    [
        ("twins/shard.py", "from actors.fleet import Fleet", True),
        ("twins/shard.py", "def f():\n    import actors", True),
        ("twins/shard.py", "import broker_config", True),
        ("actors/fleet.py", "import scenarios.spec", True),
        ("actors/fleet.py", "import importlib\nimportlib.import_module('twinfleet.cli')", True),
        ("scenarios/engine.py", "from tests import anything", True),
        ("broker_config/__init__.py", "import actors", True),
        ("actors/broker.py", "import broker_config\nfrom twins.shard import Shard", False),
        ("twinfleet/cli.py", "import actors, scenarios, twins", False),
    ],
)
def test_the_direction_rule_finds_imports_to_the_left(path: str, source: str, is_found: bool) -> None:
    assert bool(direction_findings(path, source)) is is_found


@pytest.mark.parametrize(
    ("path", "source", "is_found"),
    [
        ("twins/shard.py", "import time", True),
        ("twins/shard.py", "from time import monotonic", True),
        ("twins/shard.py", "import os.path as p", True),
        ("twins/shard.py", "if True:\n    import random", True),
        ("twins/shard.py", "import asyncio, json", True),
        ("twins/shard.py", "import socket", True),
        ("twins/shard.py", "import orjson", True),
        ("twins/shard.py", "import pyarrow as pa", True),
        ("twins/shard.py", "import numba", True),
        ("twins/model_reading.py", "import yaml", True),
        ("twins/shipped.py", "import yaml\nfrom importlib import resources", False),
        ("twins/shard.py", "from numpy.random import default_rng", True),
        ("twins/shard.py", "import numpy as np\nnp.random.rand()", True),
        ("twins/shard.py", "open('x')", True),
        ("twins/snapshot.py", "import pyarrow as pa", False),
        ("twins/kernel_loops.py", "import numba", False),
        (
            "twins/shard.py",
            "import json, zlib\nimport numpy as np\nimport msgspec\nfrom twins.model import x",
            False,
        ),
    ],
)
def test_the_core_rule_finds_what_is_not_pure(path: str, source: str, is_found: bool) -> None:
    assert bool(core_findings(path, source)) is is_found


@pytest.mark.parametrize(
    ("path", "is_found"),
    [("actors/cluster.py", True), ("actors/mqtt_link.py", False), ("scenarios/device_link.py", False)],
)
def test_the_mqtt_rule_finds_another_user_of_the_client(path: str, is_found: bool) -> None:
    assert bool(mqtt_findings(path, "from gmqtt.mqtt.handler import MQTTError")) is is_found


@pytest.mark.parametrize(
    ("path", "source", "is_found"),
    [
        ("actors/broker.py", "import os\nos.environ['HOME']", True),
        ("actors/broker.py", "import os\nos.getenv('HOME')", True),
        ("actors/broker.py", "from os import environ", True),
        ("actors/broker.py", "import os\nos.getpid()", False),
        ("actors/settings.py", "import os\nos.environ['HOME']", False),
    ],
)
def test_the_environment_rule_finds_readers_outside_the_settings(
    path: str, source: str, is_found: bool
) -> None:
    assert bool(environment_findings(path, source)) is is_found


ORDERED: Final = '"""A package.\n\nReading order (why):\n`first` · `sub` ·\n`last`\n\nNot `this`.\n"""\n'


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        ({}, None),
        ({"p/first.py": "from p import last"}, "p/first.py:1: imports p.last"),
        ({"p/first.py": "import p.sub.deep"}, "p/first.py:1: imports p.sub.deep"),
        ({"p/sub/deep.py": "def f():\n    from p.last import x"}, "p/sub/deep.py:2: imports p.last"),
        ({"p/first.py": "from p import something"}, "p/first.py:1: imports p,"),
        ({"p/extra.py": ""}, "misses `extra`"),
        ({"p/__init__.py": ORDERED.replace("`last`", "`last` · `gone`")}, "names `gone`, which is not there"),
        ({"p/__init__.py": '"""No order."""'}, "misses `first`"),
    ],
)
def test_the_order_rule_finds_what_stands_in_the_wrong_place(
    changed: dict[str, str], finding: str | None
) -> None:
    right = {
        "p/__init__.py": ORDERED,
        "p/first.py": "import json",
        "p/sub/__init__.py": "from p.first import x",
        "p/sub/deep.py": "from p.sub import other",
        "p/last.py": "from p import first\nfrom p.sub.deep import y\nimport q",
    }
    findings = order_findings("p", {**right, **changed})
    assert (findings == []) if finding is None else any(finding in text for text in findings)


def test_the_length_rule_finds_long_files_and_functions() -> None:
    assert length_findings("a.py", "x = 1\n" * (FILE_LINES_MAX + 1))
    assert length_findings("a.py", "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX)
    assert not length_findings("a.py", "def f():\n" + "    x = 1\n" * (FUNCTION_LINES_MAX - 1))


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("https://py" + "pi.org/simple", True),
        ("files.python" + "hosted.org", True),
        ("see /" + "home/somebody/notes", True),
        ("'/" + "work/here'", True),
        ("a homework/plan and https://example.com/home/page", False),
    ],
)
def test_the_text_rule_finds_index_hosts_and_machine_paths(text: str, is_found: bool) -> None:
    assert bool(text_findings("README.md", text)) is is_found


def test_the_lock_rule_finds_missing_hashes_and_addresses() -> None:
    entry = "a==1 \\\n    --hash=sha256:00\n"
    assert lock_findings(entry) == []
    assert lock_findings(entry + "b==2\n") == ["b==2"]
    assert lock_findings("--index-url https://example.com\n" + entry)
