"""Certificate, key and token from files that may rotate while the server runs (as mounted Secrets do)."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from gpuscale.errors import ConfigurationError

if TYPE_CHECKING:
    import ssl

log = logging.getLogger("gpuscale.endpoint")

Stamp = tuple[tuple[int, int, int], ...]


def _stamp(*paths: str) -> Stamp | None:
    """What changes when one of the files is replaced or written; None while one is missing.

    A Secret's update moves a symbolic link: stat follows it, so that the inode changes.
    """
    try:
        stats = [os.stat(path) for path in paths]
    except OSError:
        return None
    return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats)


class TlsFiles:
    """A server's TLS context that follows its files. A half-written pair leaves the old one in use.

    Raises ConfigurationError at construction when the files are not a certificate and its key.
    """

    def __init__(self, cert: str, key: str) -> None:
        self._cert, self._key = cert, key
        self._stamp = _stamp(cert, key)
        try:
            self._context = self._load()
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ConfigurationError(
                f"tls_cert {cert!r} and tls_key {key!r} must be a PEM certificate chain and its key: {error}"
            ) from None

    def _load(self) -> ssl.SSLContext:
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # An encrypted key would ask for its password on the terminal: refuse it instead.
        context.load_cert_chain(self._cert, self._key, password=_no_password)
        return context

    def context(self) -> ssl.SSLContext:
        """The context for the next connection, from the files as they are now."""
        stamp = _stamp(self._cert, self._key)
        if stamp is not None and stamp != self._stamp:
            self._stamp = stamp
            try:
                self._context = self._load()
                log.info("the TLS certificate was read again")
            except (OSError, ValueError) as error:
                log.warning("the rotated TLS files cannot be used, the old ones stay: %s", error)
        return self._context


def _no_password() -> str:
    raise ValueError("the key is encrypted; give one without a password")


class Guard(Protocol):
    """Who may ask."""

    def allows(self, headers: Mapping[str, str]) -> bool: ...


class TokenFile:
    """A bearer token (RFC 6750) that follows its file. Raises ConfigurationError at construction."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._stamp = _stamp(path)
        try:
            self._token = self._load()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"token_file {path!r} must be a file with a token in it: {error}") from None

    def _load(self) -> bytes:
        with open(self._path, "rb") as file:
            token = file.read(65536).strip()
        if not token:
            raise ValueError("it is empty")
        return token

    def allows(self, headers: Mapping[str, str]) -> bool:
        """Whether ``Authorization: Bearer TOKEN`` holds the file's present token, in constant time."""
        from hmac import compare_digest  # loads OpenSSL's hashes: only for those who use a token

        stamp = _stamp(self._path)
        if stamp is not None and stamp != self._stamp:
            self._stamp = stamp
            try:
                self._token = self._load()
                log.info("the token was read again")
            except (OSError, ValueError) as error:
                log.warning("the rotated token file cannot be used, the old token stays: %s", error)
        scheme, _, given = headers.get("authorization", "").partition(" ")
        right = compare_digest(given.strip().encode("latin-1", "replace"), self._token)
        return right and scheme.lower() == "bearer"


class Everybody:
    """The guard where no token was asked for."""

    def allows(self, headers: Mapping[str, str]) -> bool:
        """Always."""
        return True
