"""`twinfleet device`: real devices come, are looked at, and go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinfleet.client import OperatorClient, read_ca
from twinfleet.documents import parse_attributes
from twinfleet.errors import UsageFault
from twinfleet.issuing import issue_into, print_issued
from twinfleet.options import DEFAULT_DATA_DIR, DataDir, Output, OutputFormat, example
from twinfleet.printing import print_document, print_json, print_line, print_table, time_text

app = typer.Typer(help="Create, list, describe and delete devices.", rich_markup_mode=None)

DeviceName = Annotated[str, typer.Argument(metavar="NAME", help="The device's thing name.")]


@app.command(
    "create",
    epilog=example(
        "twinfleet device create lamp-1 --attribute room=hall --out ./lamp-1",
        "twinfleet device create --from things.csv              # no certificates",
        "twinfleet device create --from things.csv --out ./keys",
    ),
)
def create(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="The device's thing name.", show_default=False)
    ] = "",
    *,
    file: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Many devices, from a CSV file: columns name, model, thing_type, groups (a;b); others are attributes.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where keys and certificates are written.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="M", help="The device model (default: thermostat).")
    ] = None,
    attribute: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="An attribute; may be given again.")
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Register a device and write NAME.pem, NAME.key and ca.pem into DIR; or many, from a file.

    Private keys are made here and never sent; no file is replaced. A file is checked as a whole first, and may be
    sent again after an interruption: what is there already stays as it is. Without --out, the devices of a file get
    no certificates.
    """
    if bool(name) == (file is not None):
        raise UsageFault("name one device, or a file of devices with --from FILE")
    if file is not None:
        if attribute:
            raise UsageFault("--attribute goes with one device; a file has columns for attributes")
        _create_many(file, out, model=model, data_dir=data_dir, output=output)
        return
    if out is None:
        raise UsageFault("say with --out DIR where the device's key and certificate are written")
    _create_one(
        name,
        out,
        model=model or "thermostat",
        attributes=parse_attributes(attribute or []),
        data_dir=data_dir,
        output=output,
    )


def _create_one(
    name: str, out: Path, *, model: str, attributes: dict[str, str], data_dir: Path, output: OutputFormat
) -> None:
    document, written = issue_into(
        out,
        name,
        data_dir=data_dir,
        sign=lambda client, csr_pem: client.create_thing(name, model, attributes=attributes, csr_pem=csr_pem),
        regret=f"the device is registered: `twinfleet device delete {name}` before you try again",
    )
    print_issued(document, written, output=output, who=name)


def _create_many(
    path: Path, out: Path | None, *, model: str | None, data_dir: Path, output: OutputFormat
) -> None:
    client = OperatorClient.of(data_dir)
    # The library behind it takes a while to import, which the other commands need not wait for.
    from twinfleet.bulk_creation import Credentials, create_from_file  # noqa: PLC0415
    from twinfleet.bulk_progress import progress_for  # noqa: PLC0415
    from twinfleet.things_file import ThingsFile  # noqa: PLC0415

    credentials = None if out is None else Credentials(out, read_ca(data_dir))
    with progress_for(path.name) as progress:
        tally = create_from_file(client, ThingsFile(path, model), credentials=credentials, progress=progress)
    if output is OutputFormat.JSON:
        print_json(tally.document())
    else:
        counts = f"{tally.created_count:,} created, {tally.present_count:,} there already"
        print_line(
            f"{tally.total:,} things: {counts}, {tally.refused_count:,} refused, in {tally.duration_s:.1f} s"
        )
        for refusal in tally.refused:
            print_line(f"{path}:{refusal['line']}: {refusal['detail']}")
        if tally.refused_count > len(tally.refused):
            print_line(
                f"... and {tally.refused_count - len(tally.refused):,} more; mend these and run it again"
            )
    if tally.refused_count:
        raise typer.Exit(1)


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
    if thing.get("thing_type") or thing.get("groups"):
        print_line(f"type {thing['thing_type'] or '-'}  groups {' '.join(thing['groups']) or '-'}")
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


@app.command("certificates", epilog=example("twinfleet device certificates lamp-1"))
def certificates(
    name: DeviceName, data_dir: DataDir = DEFAULT_DATA_DIR, output: Output = OutputFormat.TABLE
) -> None:
    """List a device's certificates, old before new, revoked ones too."""
    document = OperatorClient.of(data_dir).thing_certificates(name)
    if output is OutputFormat.JSON:
        print_document(document)
        return
    print_table(
        ("CERTIFICATE", "STATUS", "CREATED", "GOOD UNTIL", "REPLACES AT ITS FIRST USE"),
        [
            (
                one["certificate_id"],
                one["status"],
                time_text(one["created_at"]),
                time_text(one["not_after"]),
                one.get("replaces", ""),
            )
            for one in document.content["certificates"]
        ],
    )


@app.command("rotate", epilog=example("twinfleet device rotate lamp-1 --out ./lamp-1-new"))
def rotate(
    name: DeviceName,
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the new files are written.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Have a new certificate signed for a device and write NAME.pem, NAME.key and ca.pem into DIR.

    Both certificates work until the device uses the new one, which retires the old one. The private key is made here
    and never sent; no file is replaced.
    """
    document, written = issue_into(
        out,
        name,
        data_dir=data_dir,
        sign=lambda client, csr_pem: client.rotate_thing_certificate(name, csr_pem=csr_pem),
        regret=f"the certificate is signed and of no use: see `twinfleet device certificates {name}`",
    )
    print_issued(document, written, output=output, who=name)
    if output is OutputFormat.TABLE and "replaces" in document.content:
        print_line("the certificate before works until this one is first used")


@app.command("revoke", epilog=example("twinfleet device revoke lamp-1"))
def revoke(
    name: DeviceName,
    certificate: Annotated[
        str, typer.Option("--certificate", metavar="ID", help="Only this one of its certificates.")
    ] = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Revoke all certificates of a device, or one, and end its sessions; the device and its twin stay."""
    document = OperatorClient.of(data_dir).revoke_thing_certificates(name, certificate)
    if output is OutputFormat.JSON:
        print_document(document)
        return
    revoked = document.content["certificates"]
    for one in revoked:
        print_line(f"{one['certificate_id']} is revoked")
    if not revoked:
        print_line(f"{name} has no certificate")


def _attributes_text(attributes: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(attributes.items()))
