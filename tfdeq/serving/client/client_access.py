"""How a client reaches a server: TLS, certificates, headers and a token."""

import ipaddress
import os
import pathlib
import re
import ssl
from collections.abc import Callable, Mapping
from typing import Any

import grpc

# RFC 9110, without capital letters, which gRPC refuses.
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_SCHEMES = {"https": True, "http": False}
REFUSED = (
    "The server did not accept who you are: see that the token (token=, --token_file), headers or client "
    "certificate are those that it expects, and have not expired."
)
NOT_TRUSTED = (
    "Its certificate is not trusted. Name the authority that signed it "
    "(certificate_authority=, --certificate_authority), and address the server by a name in its certificate."
)
NO_TLS = (
    "No TLS connection to that port. See whether the server there encrypts its connections; if not, address "
    "it without https:// and without certificates. It may also require a client certificate "
    "(client_certificate=, --client_certificate)."
)


class Access:
    """The address of a server, and what a client sends to be let in.

    Args:
        address: host:port, or with https:// or http:// in front.
        headers: name -> value, sent with every request.
        token: sent as `Authorization: Bearer TOKEN`; or a function without arguments that returns it.
        certificate_authority: PEM file of the authorities to trust; None: those of the system.
        client_certificate: PEM file of the client's certificate and key, or a pair of files.

    Raises:
        ValueError: for certificates with http://, headers that cannot be sent, or a token that would
            leave the machine without TLS.
        OSError: for a file that cannot be read. ssl.SSLError: if it is no certificate or key.
    """

    def __init__(
        self,
        address: str,
        *,
        headers: Mapping[str, str] | None = None,
        token: str | Callable[[], str] | None = None,
        certificate_authority: str | os.PathLike | None = None,
        client_certificate: str | os.PathLike | tuple[Any, Any] | None = None,
    ):
        scheme, separator, rest = address.partition("://")
        known = scheme.lower() if separator and scheme.lower() in _SCHEMES else None
        self.address = rest if known else address
        certified = certificate_authority is not None or client_certificate is not None
        if known == "http" and certified:
            raise ValueError(
                f"{address!r} is a server without TLS, which takes no certificates. Write https://, or "
                "leave the certificates out."
            )
        self.tls = certified or _SCHEMES.get(known, False)
        self._authority, self._client = certificate_authority, client_certificate
        self._token = token
        self._headers = {name.lower(): value for name, value in (headers or {}).items()}
        _check(self._headers)
        if token is not None and not self.tls and not _is_local(self.address):
            raise ValueError(
                f"A token for {address!r} could be read on the way, because the connection is not "
                "encrypted. Write https:// in front of the address. If the network is trusted, send it "
                "as headers={'authorization': 'Bearer …'}."
            )
        if self.tls:
            self.context()  # so that files that cannot be read are reported now

    def headers(self) -> dict[str, str]:
        """Returns the headers of a request by names in small letters, with the token of this moment."""
        if self._token is None:
            return dict(self._headers)
        token = self._token() if callable(self._token) else self._token
        found = {**self._headers, "authorization": f"Bearer {token}"}
        _check(found)
        return found

    def context(self) -> ssl.SSLContext:
        """Returns the settings of a TLS connection."""
        found = ssl.create_default_context(
            cafile=None if self._authority is None else os.fspath(self._authority)
        )
        if self._client is not None:
            found.load_cert_chain(*self._client_files())
        return found

    def credentials(self) -> grpc.ChannelCredentials:
        """Returns the same for gRPC."""
        authority = None if self._authority is None else pathlib.Path(self._authority).read_bytes()
        if self._client is None:
            return grpc.ssl_channel_credentials(authority)
        files = self._client_files()
        certificate, key = files[0], files[-1]
        return grpc.ssl_channel_credentials(
            authority, pathlib.Path(key).read_bytes(), pathlib.Path(certificate).read_bytes()
        )

    def _client_files(self) -> tuple[str, ...]:
        pair = self._client if isinstance(self._client, tuple | list) else (self._client,)
        if len(pair) > 2:
            raise ValueError(
                "client_certificate must be a file, or the pair of files (certificate, key); received "
                f"{len(pair)} of them."
            )
        return tuple(os.fspath(each) for each in pair)


def _check(headers: Mapping[str, Any]) -> None:
    for name, value in headers.items():
        valid = isinstance(value, str) and value.isascii() and value.isprintable()
        if not _NAME.fullmatch(name) or not valid:
            # The value may be a secret.
            raise ValueError(
                f"The header {name!r} cannot be sent. A name has letters, digits and '-' only, a value "
                "is a text of printable ASCII characters in one line."
            )


def _is_local(address: str) -> bool:
    host = address.split("/")[0].rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
