"""The broker lives on when a device that was away during reloads comes back to the session that was kept for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.broker import end_session, reload_broker
from actors.pki import generate_key_and_csr
from actors.processes import wait_until
from tests.integration.raw_mqtt import DISCONNECT, Connect, RawClient
from tests.integration.running_broker import Site


@pytest.mark.parametrize("comes_back", [True, False], ids=["comes back", "is deleted"])
def test_a_reload_while_a_device_with_a_kept_session_is_away_does_not_end_the_broker(
    own_site: Site, tmp_path: Path, comes_back: bool
) -> None:
    clients = {}
    for name in ("one", "two", "three"):
        pair = generate_key_and_csr(name)
        issued = own_site.authority.issue_from_csr(pair.csr_pem, name)
        certificate, key = tmp_path / f"{name}.pem", tmp_path / f"{name}.key"
        certificate.write_text(issued.certificate_pem)
        key.write_text(pair.private_key_pem)
        port, authority = own_site.broker.port, own_site.authority.ca_file
        clients[name] = RawClient.of(port, authority, certificate=certificate, key=key)
    # With sessions on the broker's list of those that expire, it died within the first five rounds.
    for _ in range(8):
        for name, client in clients.items():
            with client.session(Connect(name, is_clean=False)) as session:
                session.subscribe(f"$aws/things/{name}/shadow/update/accepted")
                session.send(DISCONNECT)
                assert session.is_closed()
            for _ in range(2):
                reload_broker(own_site.settings.data_dir)
            if not comes_back:
                end_session(own_site.settings.data_dir, name)
            assert own_site.broker.is_alive()
    # It looks through its list once a second, and says when it saves.
    before = own_site.log().count("Saving in-memory database")
    assert wait_until(lambda: own_site.log().count("Saving in-memory database") > before + 1, timeout_s=20)
    assert own_site.broker.is_alive()
