"""`twinfleet key`: access keys, with which programs sign their requests as for AWS."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from twinfleet.client import OperatorClient
from twinfleet.options import DEFAULT_DATA_DIR, DataDir, Output, OutputFormat, example
from twinfleet.printing import print_document, print_line, print_table, time_text

app = typer.Typer(help="Create, list and delete access keys.", rich_markup_mode=None)

KeyName = Annotated[str, typer.Argument(metavar="NAME", help="The name of the key, as in the audit log.")]


class Role(StrEnum):
    """What the holder of a key may do."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


@app.command("create", epilog=example("twinfleet key create dashboard --role viewer -o json"))
def create(
    name: KeyName,
    *,
    role: Annotated[Role, typer.Option(help="What its holder may do.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Make an access key and print its secret, which is never shown again."""
    document = OperatorClient.of(data_dir).create_key(name, role.value)
    if output is OutputFormat.JSON:
        print_document(document)
        return
    key = document.content
    print_line(f"aws_access_key_id = {key['access_key_id']}")
    print_line(f"aws_secret_access_key = {key['secret_access_key']}")


@app.command("list", epilog=example("twinfleet key list"))
def list_keys(data_dir: DataDir = DEFAULT_DATA_DIR, output: Output = OutputFormat.TABLE) -> None:
    """List the access keys, without their secrets."""
    document = OperatorClient.of(data_dir).keys()
    if output is OutputFormat.JSON:
        print_document(document)
        return
    keys: list[dict[str, Any]] = document.content["keys"]
    rows = [(key["name"], key["role"], key["access_key_id"], time_text(key["created_at"])) for key in keys]
    print_table(("NAME", "ROLE", "ACCESS KEY ID", "CREATED"), rows)


@app.command("delete", epilog=example("twinfleet key delete dashboard"))
def delete(name: KeyName, data_dir: DataDir = DEFAULT_DATA_DIR, output: Output = OutputFormat.TABLE) -> None:
    """Delete an access key: from now on what it signs is refused."""
    document = OperatorClient.of(data_dir).delete_key(name)
    if output is OutputFormat.JSON:
        print_document(document)
    else:
        print_line(f"{name} is deleted; what it signs is refused from now on")
