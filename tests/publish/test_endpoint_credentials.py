"""TLS and the bearer token, and their files when they rotate."""

from __future__ import annotations

import os
import ssl
import time
from pathlib import Path

import pytest
import trustme

from gpuscale.errors import ConfigurationError
from gpuscale.publish import http_loop
from tests.publish.endpoint_clients import GET, PAGE, ask, connect, is_closed, read_answer, serving, until


def write_pair(folder: Path, ca: trustme.CA, name: str = "localhost") -> tuple[str, str]:
    """Replaced as a mounted Secret is: a link that is renamed over the old one."""
    pair = ca.issue_cert(name, "127.0.0.1")
    version = folder / f"..{time.monotonic_ns()}"
    version.mkdir()
    pair.private_key_pem.write_to_path(str(version / "tls.key"))
    (version / "tls.crt").write_bytes(b"".join(pem.bytes() for pem in pair.cert_chain_pems))
    link = folder / "..data_tmp"
    link.symlink_to(version.name)
    os.replace(link, folder / "..data")
    return str(folder / "..data" / "tls.crt"), str(folder / "..data" / "tls.key")


def client_context(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return context


def ask_tls(port: int, ca: trustme.CA, name: str = "localhost") -> bytes:
    with client_context(ca).wrap_socket(connect(port), server_hostname=name) as client:
        client.sendall(GET)
        return read_answer(client)[2]


def test_tls_with_large_answers_and_kept_connections(tmp_path: Path) -> None:
    ca = trustme.CA()
    cert, key = write_pair(tmp_path, ca)
    with serving(tls_cert=cert, tls_key=key) as server:
        assert server.url.startswith("https://")
        with client_context(ca).wrap_socket(connect(server.port), server_hostname="localhost") as client:
            for _ in range(3):
                client.sendall(GET)
                assert read_answer(client)[2] == PAGE
            client.sendall(GET * 4)  # within one TLS record: the selector reports only the first
            data = b""
            while data.count(PAGE) < 4:
                data += client.recv(65536)


def test_tls_certificates_rotate(tmp_path: Path) -> None:
    old, new = trustme.CA(), trustme.CA()
    cert, key = write_pair(tmp_path, old)
    with serving(tls_cert=cert, tls_key=key) as server:
        assert ask_tls(server.port, old) == PAGE
        write_pair(tmp_path, new)
        assert ask_tls(server.port, new) == PAGE
        with pytest.raises(ssl.SSLCertVerificationError):
            ask_tls(server.port, old)
        # Half a rotation, or a broken one: the old pair stays.
        Path(cert).write_text("-----BEGIN CERTIFICATE-----\n")
        assert ask_tls(server.port, new) == PAGE
        os.unlink(key)
        assert ask_tls(server.port, new) == PAGE


def test_tls_beside_those_who_do_not_speak_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_loop, "HANDSHAKE_SECONDS", 0.5)
    ca = trustme.CA()
    cert, key = write_pair(tmp_path, ca)
    with serving(tls_cert=cert, tls_key=key) as server:
        silent = [connect(server.port) for _ in range(50)]
        half = connect(server.port)
        half.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        plain = connect(server.port)
        plain.sendall(GET)
        assert is_closed(plain)
        assert ask_tls(server.port, ca) == PAGE
        assert is_closed(half)
        for client in silent:
            assert is_closed(client)
            client.close()
        until(lambda: server._loop is not None and server._loop.connections == 0)


def test_old_tls_is_refused(tmp_path: Path) -> None:
    ca = trustme.CA()
    cert, key = write_pair(tmp_path, ca)
    with serving(tls_cert=cert, tls_key=key) as server:
        context = client_context(ca)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)), connect(server.port) as client:
            context.wrap_socket(client, server_hostname="localhost")


def test_files_that_are_no_certificate(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("nothing")
    with (
        pytest.raises(ConfigurationError, match=r"tls_cert .*wrong\.pem"),
        serving(tls_cert=str(wrong), tls_key=str(wrong)),
    ):
        pass


def authorized(token: str, scheme: str = "Bearer") -> bytes:
    return GET[:-2] + f"Authorization: {scheme} {token}\r\n\r\n".encode()


def test_the_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    with serving(token_file=str(file)) as server:
        assert ask(server.port, authorized("s3cret"))[0] == 200
        assert ask(server.port, authorized("s3cret", "bearer"))[0] == 200
        for refused in (GET, authorized("s3cre"), authorized("s3cret", "Basic"), authorized(""), authorized("\xe9")):
            status, headers, body = ask(server.port, refused)
            assert (status, headers["www-authenticate"]) == (401, 'Bearer realm="gpuscale"')
            assert b"s3cret" not in body
        # Neither the index nor which paths there are is told without it; probes need none.
        assert ask(server.port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 401
        assert ask(server.port, b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 401
        for probe in (b"/healthz", b"/readyz"):
            assert ask(server.port, b"GET " + probe + b" HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 200


def test_the_token_rotates(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    with serving(token_file=str(file)) as server, connect(server.port) as client:
        client.sendall(authorized("first"))
        assert read_answer(client)[0] == 200
        fresh = tmp_path / "fresh"
        fresh.write_text("second")
        os.replace(fresh, file)
        client.sendall(authorized("first"))
        assert read_answer(client)[0] == 401
        client.sendall(authorized("second"))
        assert read_answer(client)[0] == 200
        file.unlink()  # between two versions, or by mistake: the last one holds
        client.sendall(authorized("second"))
        assert read_answer(client)[0] == 200
        file.write_text("\n")
        client.sendall(authorized("second"))
        assert read_answer(client)[0] == 200


def test_an_empty_or_missing_token_file_is_said_at_once(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    for path in (empty, tmp_path / "missing"):
        with pytest.raises(ConfigurationError, match="token_file"), serving(token_file=str(path)):
            pass


def test_a_token_without_tls_module() -> None:
    """The TLS module costs memory: only those who use it load it."""
    import subprocess
    import sys

    code = "import gpuscale.publish.endpoint, sys; sys.exit('ssl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
