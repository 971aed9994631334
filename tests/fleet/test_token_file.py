"""The token file: written once, read by workers, refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokka.errors import ConfigurationError, StartupError
from tokka.fleet.address import Address, address_of
from tokka.fleet.token_file import KEY_NAME, TOKEN_NAME, JoinToken, ensure_token_file, read_token_file, server_context


def test_token_is_made_once(tmp_path: Path) -> None:
    made = ensure_token_file(tmp_path / "state", tls=False)
    assert made == ensure_token_file(tmp_path / "state", tls=False) == read_token_file(tmp_path / "state" / TOKEN_NAME)
    assert made.certificate is None
    assert server_context(tmp_path / "state", made) is None


def test_certificate_is_added_to_the_token(tmp_path: Path) -> None:
    plain, secure = ensure_token_file(tmp_path, tls=False), ensure_token_file(tmp_path, tls=True)
    assert secure.token == plain.token
    assert secure.client_context() is not None
    assert secure == ensure_token_file(tmp_path, tls=True) == ensure_token_file(tmp_path, tls=False)
    assert server_context(tmp_path, secure) is not None


def test_certificate_is_made_again_without_its_key(tmp_path: Path) -> None:
    first = ensure_token_file(tmp_path, tls=True)
    (tmp_path / KEY_NAME).unlink()
    second = ensure_token_file(tmp_path, tls=True)
    assert (second.token, second.certificate != first.certificate) == (first.token, True)
    assert server_context(tmp_path, second) is not None


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    ensure_token_file(tmp_path, tls=True)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        TOKEN_NAME: 0o600,
        KEY_NAME: 0o600,
    }


def test_token_is_not_shown_by_its_holder() -> None:
    assert "secret" not in repr(JoinToken("secret", None))


@pytest.mark.parametrize(
    "content",
    [b"", b"\n\n", b"two words\n", b"token\nmore\n", b"-----BEGIN CERTIFICATE-----\n", b"\xff", bytes(70_000)],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="--join-token-file"):
        read_token_file(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"--join-token-file: cannot read .*missing"):
        read_token_file(tmp_path / "missing")


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="cannot write join-token"):
        ensure_token_file(tmp_path / "file" / "folder", tls=False)


def test_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    ensure_token_file(tmp_path / "a", tls=True)
    token = ensure_token_file(tmp_path / "b", tls=True)
    (tmp_path / "a" / KEY_NAME).replace(tmp_path / "b" / KEY_NAME)
    with pytest.raises(ConfigurationError, match="does not fit the certificate"):
        server_context(tmp_path / "b", token)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:7400", Address("127.0.0.1", 7400)),
        ("gateway.example.org:1", Address("gateway.example.org", 1)),
        ("[::1]:65535", Address("::1", 65535)),
    ],
)
def test_address_is_read_and_written_alike(text: str, address: Address) -> None:
    assert (address_of(text), str(address)) == (address, text)


@pytest.mark.parametrize("text", ["", "host", "host:", ":7400", "host:x", "host:65536", "::1:7400", "host:-1", "[h:1"])
def test_other_texts_are_no_address(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"it must be HOST:PORT"):
        address_of(text)
