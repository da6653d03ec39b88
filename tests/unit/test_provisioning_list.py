"""The revocation list as the gate of claims uses it: entries come and go, several times a second."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from actors.pki import CertificateAuthority
from twins.clock import VirtualClock

START_S = 1_767_225_600.0


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(START_S)


@pytest.fixture
def authority(tmp_path: Path, clock: VirtualClock) -> CertificateAuthority:
    return CertificateAuthority.open_or_create(tmp_path / "pki", clock=clock)


def test_each_list_is_dated_later_than_the_one_before_and_never_ahead(
    authority: CertificateAuthority, clock: VirtualClock
) -> None:
    dates = []
    for number in range(1, 6):
        authority.renew_list({number: START_S}, clock=clock)
        dates.append(x509.load_pem_x509_crl(authority.crl_file.read_bytes()).last_update_utc.timestamp())
    # To the second, which is all that a list can say and all that OpenSSL compares.
    assert dates == sorted(set(dates))
    assert dates[-1] < START_S
    clock.advance_to(START_S + 400 * 86_400)
    authority.renew_list({}, clock=clock)
    later = x509.load_pem_x509_crl(authority.crl_file.read_bytes()).last_update_utc.timestamp()
    assert dates[-1] < later < clock.now_s()


def test_what_was_held_back_is_taken_off_and_what_is_revoked_stays(
    authority: CertificateAuthority, clock: VirtualClock
) -> None:
    authority.renew_list({1: START_S, 2: START_S, 3: START_S}, clock=clock)
    assert authority.is_list_whole({1, 2, 3})
    assert not authority.is_list_whole({1}, without={2})
    # Revoked and held back: it is revoked.
    authority.renew_list({1: START_S}, admitted={1, 2}, clock=clock)
    assert authority.revoked_serials() == {1, 3}
    assert authority.is_list_whole({1}, without={2})
