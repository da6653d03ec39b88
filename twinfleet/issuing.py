"""How a command gets a certificate: the key is made here, its signing request is sent, the files are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from twinfleet.client import Document, OperatorClient, read_ca
from twinfleet.credentials import CredentialFiles
from twinfleet.errors import FilesInTheWay
from twinfleet.options import OutputFormat
from twinfleet.printing import print_document, print_line


def issue_into(
    directory: Path,
    name: str,
    *,
    data_dir: Path,
    sign: Callable[[OperatorClient, str], Document],
    regret: str,
) -> tuple[Document, list[Path]]:
    """Write NAME.pem, NAME.key and ca.pem into a directory; return what the platform answered, and the files.

    `sign` gets a client and the signing request (PEM), and returns the answer, with `certificate_pem` in it. Nothing is
    asked where a file would be in the way; one that comes in the way meanwhile raises FilesInTheWay with `regret`.
    """
    client = OperatorClient.of(data_dir)
    ca_pem = read_ca(data_dir)
    files = CredentialFiles.in_directory(directory, name.replace("/", "_"))
    files.check(ca_pem)
    # The library behind it takes a while to import, which the other commands need not wait for.
    from actors.pki import generate_key_and_csr  # noqa: PLC0415

    pair = generate_key_and_csr(name)
    document = sign(client, pair.csr_pem)
    certificate_pem = document.content["certificate_pem"]
    try:
        written = files.write(certificate_pem=certificate_pem, key_pem=pair.private_key_pem, ca_pem=ca_pem)
    except FilesInTheWay as error:
        raise FilesInTheWay(f"{error} ({regret})") from None
    return document, written


def print_issued(document: Document, written: list[Path], *, output: OutputFormat, who: str) -> None:
    """Print an answer of `issue_into`: which files there are now, and where `who` connects."""
    if output is OutputFormat.JSON:
        print_document(document)
        return
    for path in written:
        print_line(f"wrote {path}")
    mqtts = document.content["mqtts"]
    print_line(f"{who} connects to mqtts://{mqtts['host']}:{mqtts['port']}")
