"""The lightest possible load: devices that publish prepared QoS 1 packets as fast as they are acknowledged.

Run as a process: `python -m tests.bench.blaster HOST PORT CA COUNT CERTIFICATE...` (a key beside each certificate).
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading
from pathlib import Path

PAYLOAD = (
    b'{"temperature":21.37,"humidity":40.12,"battery":99.10,"sequence":1234567890,"text":"abcdefghijklm"}'
)
# Unacknowledged messages of a connection, and how many are sent in one piece.
WINDOW = 800
PIECE = 100
# Packet ids run from 1 to 65535 and then again; a multiple of PIECE keeps the pieces whole.
ID_COUNT = 60_000
PUBACK_BYTES = 4


def string_field(text: bytes) -> bytes:
    """Return a text as MQTT has it: its length, then itself."""
    return len(text).to_bytes(2, "big") + text


def connect_packet(client_id: str) -> bytes:
    """Return an MQTT 3.1.1 CONNECT with a clean session."""
    body = string_field(b"MQTT") + b"\x04\x02\x00\x3c" + string_field(client_id.encode())
    return bytes((0x10, len(body))) + body


def publish_packet(topic: str, packet_id: int) -> bytes:
    """Return an MQTT 3.1.1 PUBLISH at QoS 1; the whole has less than 16 KB."""
    body = string_field(topic.encode()) + packet_id.to_bytes(2, "big") + PAYLOAD
    return bytes((0x32, len(body) % 128 | 128, len(body) // 128)) + body


def blast(address: tuple[str, int], ca: str, certificate: Path, count: int) -> None:
    """Publish `count` messages as the device of a certificate and return when all are acknowledged."""
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    name = certificate.stem
    pieces = [
        b"".join(publish_packet(f"telemetry/{name}/bench", first + i + 1) for i in range(PIECE))
        for first in range(0, ID_COUNT, PIECE)
    ]
    with (
        socket.create_connection(address) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as link,
    ):
        link.sendall(connect_packet(name))
        if link.recv(4)[3] != 0:
            raise RuntimeError(f"{name} was refused")
        sent = received_bytes = 0
        while received_bytes < count * PUBACK_BYTES:
            while sent < count and sent - received_bytes // PUBACK_BYTES <= WINDOW - PIECE:
                link.sendall(pieces[sent // PIECE % len(pieces)])
                sent += PIECE
            chunk = link.recv(65536)
            if not chunk:
                raise RuntimeError(f"{name} was disconnected")
            received_bytes += len(chunk)


def main() -> None:
    """Publish from all devices at once, a thread each."""
    host, port, ca, count, *certificates = sys.argv[1:]
    each = int(count) // len(certificates) // PIECE * PIECE
    threads = [
        threading.Thread(target=blast, args=((host, int(port)), ca, Path(certificate), each))
        for certificate in certificates
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
