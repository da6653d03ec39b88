"""Files of things: which columns mean what, and what is refused with its line before anything is sent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from twinfleet.errors import UsageFault
from twinfleet.things_file import ThingsFile


def things_file(tmp_path: Path, text: str, model: str | None = None) -> ThingsFile:
    path = tmp_path / "things.csv"
    path.write_text(text, encoding="utf-8")
    return ThingsFile(path, model)


def test_columns_are_names_models_types_groups_and_attributes(tmp_path: Path) -> None:
    text = (
        "\ufeffname, model ,thing_type,groups,attributes.site,floor,attributes.model\n"
        'a,untyped,lamp,"x; y;x",ber,2,M-7\n'
        "\n"
        "b,,lamp,,,,\n"
        "c\n"
    )
    file = things_file(tmp_path, text)
    summary = file.check()
    assert (list(summary.things), summary.types, summary.groups) == (
        ["a", "b", "c"],
        {"lamp": 2},
        {"x": 2, "y": 2},
    )
    first, second, third = file.rows()
    assert first.request() == {
        "name": "a",
        "model": "untyped",
        "thing_type": "lamp",
        "attributes": {"site": "ber", "floor": "2", "model": "M-7"},
        "groups": ("x", "y"),
    }
    assert first.line == 2
    # A type says which model; without one, it is that of `device create`.
    assert (second.line, second.description.model, second.description.attributes) == (4, "", {})
    assert (third.line, third.description.model) == (5, "thermostat")


def test_the_model_of_the_command_is_for_rows_without_one(tmp_path: Path) -> None:
    file = things_file(tmp_path, "name,model\na,\nb,thermostat\n", model="untyped")
    assert [row.description.model for row in file.rows()] == ["untyped", "thermostat"]


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("", 1, "column `name`"),
        ("nome,model\na,\n", 1, "column `name`"),
        ("name,site,attributes.site\na,b,c\n", 1, "'attributes.site' is there twice"),
        ("name,attributes\na,site=ber\n", 1, "such as `attributes.site`"),
        ("name,\na,b\n", 1, "has no name"),
        ("name\na.b\n", 2, "thing name"),
        ("name\n" + "x" * 129 + "\n", 2, "thing name"),
        ("name,site\n,ber\n", 2, "thing name"),
        ("name,model\na,toaster\n", 2, "toaster"),
        ("name,site\na,no space\n", 2, "attribute 'site'"),
        ("name,a b\nx,1\n", 2, "attribute 'a b'"),
        ("name,thing_type\na,no/type\n", 2, "thing type name"),
        ("name,groups\na,x;no/group\n", 2, "thing group name"),
        ("name\na\nb\na\n", 4, "line 2 already"),
        ("name\na,b\n", 2, "2 cells for 1 columns"),
        ('name\n"a\n', 2, "quotes"),
    ],
)
def test_a_bad_line_is_told_with_its_number(tmp_path: Path, text: str, line: int, told: str) -> None:
    file = things_file(tmp_path, text)
    with pytest.raises(UsageFault) as fault:
        file.check()
    assert f"things.csv:{line}: " in str(fault.value)
    assert told in str(fault.value)


@pytest.mark.parametrize("text", ["name\n" + "x" * 100_000 + "\n", "x" * 100_000 + "\na\n"])
def test_a_cell_like_a_book_is_not_told_in_full(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageFault) as fault:
        things_file(tmp_path, text).check()
    assert len(str(fault.value)) < 1000
    assert "x ..." in str(fault.value)


def test_a_cell_beyond_what_any_cell_holds_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match=r"things.csv:2: .*field limit"):
        things_file(tmp_path, "name,site\na," + "x" * 200_000 + "\n").check()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_as_on_any_system(tmp_path: Path, end: str) -> None:
    path = tmp_path / "things.csv"
    path.write_bytes(f'"name","site"{end}a,"ber"{end}b,muc'.encode("utf-8-sig"))
    assert ThingsFile(path).check().things == {"a": 2, "b": 3}
    assert [(row.line, row.description.name) for row in ThingsFile(path).rows()] == [(2, "a"), (3, "b")]


def test_a_pipe_is_refused_before_it_is_read(tmp_path: Path) -> None:
    # It is read twice: the second time a pipe is empty, or blocks.
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(UsageFault, match="can not be read twice"):
        ThingsFile(path).check()


def test_many_bad_lines_are_told_together_and_not_without_end(tmp_path: Path) -> None:
    rows = "".join(f"a.{number}\n" for number in range(100))
    with pytest.raises(UsageFault) as fault:
        things_file(tmp_path, f"name\n{rows}").check()
    lines = str(fault.value).splitlines()
    assert len(lines) == 22
    assert lines[0].startswith(str(tmp_path / "things.csv:2: "))
    assert lines[-1] == "nothing was sent"


@pytest.mark.parametrize(("content", "told"), [(None, "cannot be read"), (b"name\n\xff\n", "UTF-8")])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, content: bytes | None, told: str) -> None:
    path = tmp_path / "things.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageFault, match=told):
        ThingsFile(path).check()


def test_a_file_without_things_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match="names no things"):
        things_file(tmp_path, "name\n").check()
