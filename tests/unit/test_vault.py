"""Secrets at rest: only the right key opens them, and only for what they were sealed."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from actors.errors import VaultError
from actors.vault import Vault, is_sealed

CONTEXT = b"access key AKIA1"


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault.open(tmp_path / "vault.key")


@pytest.mark.parametrize("plain", [b"", b"s", b"secret" * 1000, bytes(range(256))])
def test_what_was_sealed_opens_again_also_by_a_later_process(vault: Vault, plain: bytes) -> None:
    sealed = vault.seal(plain, CONTEXT)
    assert is_sealed(sealed)
    assert Vault.open(vault.key_file).unseal(sealed, CONTEXT) == plain


def test_the_secret_does_not_show_and_two_seals_of_it_differ(vault: Vault) -> None:
    first, second = (vault.seal(b"a well known secret", CONTEXT) for _ in range(2))
    assert b"secret" not in first
    assert first != second


def test_a_secret_sealed_for_one_does_not_pass_for_anothers(vault: Vault) -> None:
    sealed = vault.seal(b"secret", CONTEXT)
    with pytest.raises(VaultError, match="belongs elsewhere"):
        vault.unseal(sealed, b"access key AKIA2")


def test_another_key_opens_nothing_and_the_error_names_its_file(vault: Vault, tmp_path: Path) -> None:
    other = Vault.open(tmp_path / "other.key")
    with pytest.raises(VaultError, match=r"other\.key: is not the key under which"):
        other.unseal(vault.seal(b"secret", CONTEXT), CONTEXT)


def test_every_damaged_byte_is_noticed(vault: Vault) -> None:
    sealed = vault.seal(b"secret", CONTEXT)
    for position in range(len(sealed)):
        damaged = bytearray(sealed)
        damaged[position] ^= 1
        with pytest.raises(VaultError, match=r"vault\.key"):
            vault.unseal(bytes(damaged), CONTEXT)
    for length in range(len(sealed)):
        with pytest.raises(VaultError, match=r"vault\.key"):
            vault.unseal(sealed[:length], CONTEXT)


def test_the_key_file_is_for_its_owner_only_and_nothing_lies_beside_it(vault: Vault) -> None:
    assert stat.S_IMODE(vault.key_file.stat().st_mode) == 0o600
    assert [path.name for path in vault.key_file.parent.iterdir()] == ["vault.key"]


def test_a_key_that_others_may_read_is_refused(vault: Vault) -> None:
    for mode in (0o640, 0o604, 0o644):
        vault.key_file.chmod(mode)
        with pytest.raises(VaultError, match="chmod 600"):
            Vault.open(vault.key_file)
    # As a mounted secret is: even its owner only reads it.
    vault.key_file.chmod(0o400)
    assert Vault.open(vault.key_file).unseal(vault.seal(b"secret", CONTEXT), CONTEXT) == b"secret"


@pytest.mark.parametrize("content", ["", "too short", "0" * 63, "0" * 65, "G" * 64, "\xff" * 64])
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "vault.key"
    file.write_text(content)
    file.chmod(0o600)
    with pytest.raises(VaultError, match="holds no key"):
        Vault.open(file)


def test_a_key_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(VaultError, match=r"missing/vault\.key: cannot be used as the key file"):
        Vault.open(tmp_path / "missing" / "vault.key")


def test_whoever_makes_the_key_at_once_gets_the_same(tmp_path: Path) -> None:
    file = tmp_path / "vault.key"
    with ThreadPoolExecutor(8) as pool:
        sealed = list(pool.map(lambda _: Vault.open(file).seal(b"secret", CONTEXT), range(32)))
    assert {Vault.open(file).unseal(text, CONTEXT) for text in sealed} == {b"secret"}
