"""`twinfleet certificate`: what applications connect with, beside the devices."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from twinfleet.client import OperatorClient
from twinfleet.issuing import issue_into, print_issued
from twinfleet.options import DEFAULT_DATA_DIR, DataDir, Output, OutputFormat, example
from twinfleet.printing import print_document, print_line, print_table, time_text

app = typer.Typer(help="Create, list and revoke certificates of applications.", rich_markup_mode=None)

ApplicationName = Annotated[str, typer.Argument(metavar="NAME", help="The application's name.")]


class Role(StrEnum):
    """What an application may do over MQTT."""

    OBSERVER = "observer"
    OPERATOR = "operator"


@app.command(
    "create", epilog=example("twinfleet certificate create wall-display --role observer --out ./wall-display")
)
def create(
    name: ApplicationName,
    *,
    role: Annotated[
        Role,
        typer.Option(
            help="observer: hears events and every shadow's documents; operator: also sets desired."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where its files are written.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Have an application's certificate signed and write NAME.pem, NAME.key and ca.pem into DIR.

    The private key is made here and never sent; no file is replaced.
    """
    document, written = issue_into(
        out,
        name,
        data_dir=data_dir,
        sign=lambda client, csr_pem: client.create_application_certificate(name, role.value, csr_pem=csr_pem),
        regret=f"its certificate is signed: `twinfleet certificate revoke {name}` before you try again",
    )
    print_issued(document, written, output=output, who=f"{name} ({role.value})")


@app.command("list", epilog=example("twinfleet certificate list -o json"))
def list_certificates(data_dir: DataDir = DEFAULT_DATA_DIR, output: Output = OutputFormat.TABLE) -> None:
    """List the certificates of applications in name order, revoked ones too."""
    document = OperatorClient.of(data_dir).application_certificates()
    if output is OutputFormat.JSON:
        print_document(document)
        return
    certificates: list[dict[str, Any]] = document.content["certificates"]
    print_table(
        ("NAME", "ROLE", "STATUS", "CREATED", "GOOD UNTIL", "CERTIFICATE"),
        [
            (
                one["name"],
                one["role"],
                one["status"],
                time_text(one["created_at"]),
                time_text(one["not_after"]),
                one["certificate_id"],
            )
            for one in certificates
        ],
    )


@app.command("revoke", epilog=example("twinfleet certificate revoke wall-display"))
def revoke(
    name: ApplicationName, data_dir: DataDir = DEFAULT_DATA_DIR, output: Output = OutputFormat.TABLE
) -> None:
    """Revoke an application's certificate and end its open session."""
    document = OperatorClient.of(data_dir).revoke_application_certificate(name)
    if output is OutputFormat.JSON:
        print_document(document)
    else:
        print_line(f"the certificate of {name} is revoked and its session ended")
