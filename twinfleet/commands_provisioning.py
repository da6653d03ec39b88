"""`twinfleet provisioning`: how devices that share a claim certificate become things of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from twinfleet.client import OperatorClient
from twinfleet.errors import CommandError
from twinfleet.issuing import issue_into, print_issued
from twinfleet.options import DEFAULT_DATA_DIR, DataDir, Output, OutputFormat, example
from twinfleet.printing import print_document, print_line, print_table, time_text

app = typer.Typer(help="Provisioning templates and claim certificates.", rich_markup_mode=None)
template_app = typer.Typer(
    help="Create, list, describe and delete provisioning templates.", rich_markup_mode=None
)
claim_app = typer.Typer(help="Create, list and revoke claim certificates.", rich_markup_mode=None)
app.add_typer(template_app, name="template")
app.add_typer(claim_app, name="claim")

TemplateName = Annotated[str, typer.Argument(metavar="NAME", help="The template's name.")]
ClaimName = Annotated[str, typer.Argument(metavar="NAME", help="The claim's name.")]


@template_app.command(
    "create", epilog=example("twinfleet provisioning template create lamps --file template.json")
)
def create_template(
    name: TemplateName,
    *,
    file: Annotated[Path, typer.Option("--file", metavar="FILE", help="The template, in JSON.")],
    hook: Annotated[
        str,
        typer.Option(
            metavar="HOOK",
            help="Who is asked before a device is provisioned: a Python function `module:function`, or an address.",
        ),
    ] = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Create a provisioning template from a file in AWS IoT's language."""
    try:
        body = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{file} cannot be read: {error}") from None
    document = OperatorClient.of(data_dir).create_template(name, body, hook=hook)
    if output is OutputFormat.JSON:
        print_document(document)
        return
    print_line(f"{name} is created; `twinfleet provisioning claim create` makes a claim certificate for it")
    for note in document.content["notes"]:
        print_line(f"note: {note}")


@template_app.command("list", epilog=example("twinfleet provisioning template list -o json"))
def list_templates(data_dir: DataDir = DEFAULT_DATA_DIR, output: Output = OutputFormat.TABLE) -> None:
    """List the provisioning templates in name order."""
    document = OperatorClient.of(data_dir).templates()
    if output is OutputFormat.JSON:
        print_document(document)
        return
    templates: list[dict[str, Any]] = document.content["templates"]
    rows = [(one["name"], one.get("hook", ""), time_text(one["created_at"])) for one in templates]
    print_table(("NAME", "HOOK", "CREATED"), rows)


@template_app.command("describe", epilog=example("twinfleet provisioning template describe lamps"))
def describe_template(
    name: TemplateName, data_dir: DataDir = DEFAULT_DATA_DIR, output: Output = OutputFormat.TABLE
) -> None:
    """Show a provisioning template: its parameters, its hook and its text."""
    document = OperatorClient.of(data_dir).template(name)
    if output is OutputFormat.JSON:
        print_document(document)
        return
    template = document.content
    hook = f"  hook {template['hook']}" if "hook" in template else ""
    print_line(f"{template['name']}  created {time_text(template['created_at'])}{hook}")
    if template["parameters"]:
        rows = [(one["name"], one.get("default", "(required)")) for one in template["parameters"]]
        print_table(("PARAMETER", "DEFAULT"), rows)
    for note in template["notes"]:
        print_line(f"note: {note}")
    for line in template["body"].splitlines():
        print_line(line)


@template_app.command("delete", epilog=example("twinfleet provisioning template delete lamps"))
def delete_template(
    name: TemplateName, data_dir: DataDir = DEFAULT_DATA_DIR, output: Output = OutputFormat.TABLE
) -> None:
    """Delete a provisioning template; revoke the claims that name it first."""
    document = OperatorClient.of(data_dir).delete_template(name)
    if output is OutputFormat.JSON:
        print_document(document)
    else:
        print_line(f"{name} is deleted")


@claim_app.command(
    "create", epilog=example("twinfleet provisioning claim create line-1 --template lamps --out ./line-1")
)
def create_claim(
    name: ClaimName,
    *,
    template: Annotated[str, typer.Option(metavar="TEMPLATE", help="What becomes of its devices.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where its files are written.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Have a claim certificate signed and write NAME.pem, NAME.key and ca.pem into DIR.

    Any number of devices may share it. The private key is made here and never sent; no file is replaced.
    """
    document, written = issue_into(
        out,
        name,
        data_dir=data_dir,
        sign=lambda client, csr_pem: client.create_claim(name, template, csr_pem=csr_pem),
        regret=f"the claim is signed: `twinfleet provisioning claim revoke {name}` before you try again",
    )
    print_issued(document, written, output=output, who=f"a device with claim {name}")


@claim_app.command("list", epilog=example("twinfleet provisioning claim list -o json"))
def list_claims(data_dir: DataDir = DEFAULT_DATA_DIR, output: Output = OutputFormat.TABLE) -> None:
    """List the claim certificates in name order, revoked ones too."""
    document = OperatorClient.of(data_dir).claims()
    if output is OutputFormat.JSON:
        print_document(document)
        return
    claims: list[dict[str, Any]] = document.content["certificates"]
    rows = [
        (
            one["name"],
            one["template"],
            one["status"],
            time_text(one["created_at"]),
            time_text(one["not_after"]),
            one["certificate_id"],
        )
        for one in claims
    ]
    print_table(("NAME", "TEMPLATE", "STATUS", "CREATED", "GOOD UNTIL", "CERTIFICATE"), rows)


@claim_app.command("revoke", epilog=example("twinfleet provisioning claim revoke line-1"))
def revoke_claim(
    name: ClaimName, data_dir: DataDir = DEFAULT_DATA_DIR, output: Output = OutputFormat.TABLE
) -> None:
    """Revoke a claim certificate; what was provisioned with it stays."""
    document = OperatorClient.of(data_dir).revoke_claim(name)
    if output is OutputFormat.JSON:
        print_document(document)
    else:
        print_line(f"claim {name} is revoked and its session ended")
