"""`twinfleet device`: real devices come, are looked at, and go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinfleet.client import OperatorClient, read_ca
from twinfleet.credentials import CredentialFiles
from twinfleet.documents import parse_attributes
from twinfleet.errors import FilesInTheWay
from twinfleet.options import DEFAULT_DATA_DIR, DataDir, Output, OutputFormat, example
from twinfleet.printing import print_document, print_line, print_table, time_text

app = typer.Typer(help="Create, list, describe and delete devices.", rich_markup_mode=None)

DeviceName = Annotated[str, typer.Argument(metavar="NAME", help="The device's thing name.")]


@app.command("create", epilog=example("twinfleet device create lamp-1 --attribute room=hall --out ./lamp-1"))
def create(
    name: DeviceName,
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where its files are written.")],
    model: Annotated[str, typer.Option(metavar="M", help="Its device model.")] = "thermostat",
    attribute: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="An attribute; may be given again.")
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Register a device and write NAME.pem, NAME.key and ca.pem into DIR.

    The private key is made here and never sent; no file is replaced.
    """
    attributes = parse_attributes(attribute or [])
    client = OperatorClient.of(data_dir)
    ca_pem = read_ca(data_dir)
    files = CredentialFiles.in_directory(out, name.replace("/", "_"))
    files.check(ca_pem)
    # The library behind it takes a while to import, which the other commands need not wait for.
    from actors.pki import generate_key_and_csr  # noqa: PLC0415

    pair = generate_key_and_csr(name)
    document = client.create_thing(name, model, attributes=attributes, csr_pem=pair.csr_pem)
    certificate_pem = document.content["certificate_pem"]
    try:
        written = files.write(certificate_pem=certificate_pem, key_pem=pair.private_key_pem, ca_pem=ca_pem)
    except FilesInTheWay as error:
        text = f"{error} (the device is registered: `twinfleet device delete {name}` before you try again)"
        raise FilesInTheWay(text) from None
    if output is OutputFormat.JSON:
        print_document(document)
        return
    for path in written:
        print_line(f"wrote {path}")
    mqtts = document.content["mqtts"]
    print_line(f"{name} connects to mqtts://{mqtts['host']}:{mqtts['port']}")


@app.command("list", epilog=example("twinfleet device list --limit 20 -o json"))
def list_devices(
    limit: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="At most N devices.")] = 100,
    cursor: Annotated[str, typer.Option(metavar="NAME", help="Begin after this name.")] = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    output: Output = OutputFormat.TABLE,
) -> None:
    """List registered devices in name order."""
    document = OperatorClient.of(data_dir).things(cursor=cursor, limit=limit)
    if output is OutputFormat.JSON:
        print_document(document)
        return
    page = document.content
    print_table(
        ("NAME", "MODEL", "STATUS", "CREATED", "ATTRIBUTES"),
        [
            (
                thing["thing_name"],
                thing["model"],
                thing["status"],
                time_text(thing["created_at"]),
                _attributes_text(thing["attributes"]),
            )
            for thing in page["things"]
        ],
    )
    if "next_cursor" in page:
        print_line(f"more follow: --cursor {page['next_cursor']}")


@app.command("describe", epilog=example("twinfleet device describe lamp-1"))
def describe(
    name: DeviceName, data_dir: DataDir = DEFAULT_DATA_DIR, output: Output = OutputFormat.TABLE
) -> None:
    """Show what is registered of a device: model, attributes, certificates."""
    document = OperatorClient.of(data_dir).thing(name)
    if output is OutputFormat.JSON:
        print_document(document)
        return
    thing = document.content
    origin = f"simulated in fleet {thing['fleet']}" if thing["origin"] == "simulated" else thing["origin"]
    print_line(f"{thing['thing_name']}  {thing['model']}  {origin}  {thing['status']}")
    print_line(f"created {time_text(thing['created_at'])}  {_attributes_text(thing['attributes'])}")
    if thing["certificates"]:
        print_table(
            ("CERTIFICATE", "STATUS", "GOOD UNTIL"),
            [
                (certificate["certificate_id"], certificate["status"], time_text(certificate["not_after"]))
                for certificate in thing["certificates"]
            ],
        )


@app.command("delete", epilog=example("twinfleet device delete lamp-1"))
def delete(
    name: DeviceName, data_dir: DataDir = DEFAULT_DATA_DIR, output: Output = OutputFormat.TABLE
) -> None:
    """Revoke a device's certificates, remove its twin and forget it."""
    document = OperatorClient.of(data_dir).delete_thing(name)
    if output is OutputFormat.JSON:
        print_document(document)
    else:
        print_line(f"{name} is deleted; its certificates are revoked")


def _attributes_text(attributes: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(attributes.items()))
