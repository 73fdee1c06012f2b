"""OpenBao's or Vault's transit engine: the key-encryption key lies in the identity file, encrypted by the engine.

One POST over the standard library's HTTP client, on purpose: it follows no redirect and no proxy of the environment,
so the token goes to the configured address and nowhere else; where the file says what to ask for, it can only choose a
mount and a key. The recipient's id is bound as associated data. Nothing is tried twice: whoever starts the daemon
again asks again.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import ipaddress
import os
import re
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from pericard.errors import ConfigError, KeyFileInvalid, KeySourceUnavailable, UnlockRefused
from pericard.keys import read_private_line, take, wipe
from pericard.unlock.locked import KEY_SIZE
from pericard.unlock.passphrase import from_descriptor
from pericard.unlock.source import Parameters
from pericard.unlock.values import VaultValues

_CONNECT_SECONDS = 5.0
_SECONDS = 15.0  # for the whole exchange, connecting included
_MAX_ANSWER = 64 * 1024
_PLACE = r"^[A-Za-z0-9_-]{1,64}(/[A-Za-z0-9_-]{1,64}){0,7}$"
_NAME = r"^[A-Za-z0-9_-]{1,64}$"
_TOKEN = re.compile(rb"[\x21-\x7e]{1,8192}")
T = TypeVar("T")


class _Wrapped(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The lock's parameters."""

    ciphertext: Annotated[str, msgspec.Meta(pattern=r"^[a-z]{1,16}:v[0-9]{1,9}:[A-Za-z0-9+/=]{1,2048}$")]
    key: Annotated[str, msgspec.Meta(pattern=_NAME)]
    mount: Annotated[str, msgspec.Meta(pattern=_PLACE)]


class _Encrypted(msgspec.Struct):
    ciphertext: str


class _Decrypted(msgspec.Struct):
    plaintext: bytearray  # the decoder takes it out of base64


class _Answer(msgspec.Struct):
    data: msgspec.Raw


class VaultLock:
    """A key of a transit engine."""

    def __init__(self, values: VaultValues, *, mount: str = "transit", key: str = "pericard") -> None:
        """Take where the engine is; ``mount`` and ``key`` are for a new lock, an old one names its own.

        Raises:
            ConfigError: the address, or what proves who we are, cannot be used.
        """
        self._server = _Server(values)
        if not re.fullmatch(_PLACE, mount) or not re.fullmatch(_NAME, key):
            raise ConfigError("vault: the names of mount and key are letters, digits, - and _")
        self._mount, self._key = mount, key

    def make(self, recipient: str) -> tuple[bytearray, dict[str, Any]]:
        """A fresh key and what the engine made of it; see ``Lock.make``."""
        key = take(os.urandom(KEY_SIZE))
        question: dict[str, str | bytearray] = {"plaintext": key, "associated_data": _bound(recipient)}
        try:
            answer = self._server.ask(f"{self._mount}/encrypt/{self._key}", question, _Encrypted)
        except BaseException:
            wipe(key)
            raise
        return key, {"ciphertext": answer.ciphertext, "key": self._key, "mount": self._mount}

    def open(self, parameters: Parameters, recipient: str) -> bytearray:
        """What the engine decrypts; see ``Lock.open``."""
        try:
            wrapped = msgspec.convert(dict(parameters), type=_Wrapped, strict=True)
        except msgspec.ValidationError as error:
            raise KeyFileInvalid(f"identity {recipient[:16]}: vault lock: {str(error).lower()}") from error
        question = {"ciphertext": wrapped.ciphertext, "associated_data": _bound(recipient)}
        return self._server.ask(f"{wrapped.mount}/decrypt/{wrapped.key}", question, _Decrypted).plaintext

    def close(self) -> None:
        """Wipe the token."""
        self._server.close()


def _bound(recipient: str) -> str:
    return base64.b64encode(f"pericard/identity/{recipient}".encode("ascii")).decode("ascii")


class _Server:
    """One server, and the token that it knows us by."""

    def __init__(self, values: VaultValues) -> None:
        try:
            place = urlsplit(values.address)
            (place.hostname or "").encode("idna")  # names that no resolver takes are no names
        except ValueError as error:  # UnicodeError is one
            raise ConfigError("vault.address: is not an address", hint="such as https://vault.example:8200") from error
        self.subject = f"vault {place.hostname}"
        if place.scheme not in {"https", "http"} or not place.hostname or place.username or place.path.strip("/"):
            raise ConfigError("vault.address: is not an address", hint="such as https://vault.example:8200")
        if place.scheme == "http" and not _is_loopback(place.hostname):
            raise ConfigError(f"vault.address: {place.hostname} is not loopback, so https is needed")
        if (values.token is None) == (values.token_fd is None):
            raise ConfigError("vault: needs a token, from a file or from a descriptor, and not from both")
        try:
            self._host, self._port = place.hostname, place.port or 8200
        except ValueError as error:
            raise ConfigError("vault.address: its port is not one") from error
        self._tls = _context(values.ca) if place.scheme == "https" else None
        self._values = values
        self._token: bytearray | None = None

    def ask(self, path: str, question: Mapping[str, str | bytearray], kind: type[T]) -> T:
        """Ask one question, its ``bytearray`` in base64; the answer's ``data`` as a value of ``kind``."""
        if self._token is None:
            self._token = _read_token(self._values)
        asked, body = take(msgspec.json.encode(question)), bytearray()
        try:
            with self._connected() as connection:
                connection.request(
                    "POST",
                    f"/v1/{path}",
                    body=asked,
                    headers={"X-Vault-Token": self._token.decode("ascii"), "Content-Type": "application/json"},
                )
                answer = connection.getresponse()
                body = bytearray(_MAX_ANSWER + 1)
                size = _read_into(answer, body)
            self._check(answer.status)
            if size > _MAX_ANSWER:
                raise KeySourceUnavailable(f"{self.subject}: answered more than {_MAX_ANSWER} bytes")
            data = msgspec.json.decode(memoryview(body)[:size], type=_Answer).data
            return msgspec.json.decode(data, type=kind)
        except (OSError, http.client.HTTPException) as error:
            raise KeySourceUnavailable(
                f"{self.subject}: cannot be asked: {_reason(error)}",
                hint="is it up, unsealed, and reachable from here?",
            ) from error
        except msgspec.DecodeError as error:
            raise KeySourceUnavailable(f"{self.subject}: answered something else than a transit engine does") from error
        finally:
            wipe(asked)
            wipe(body)

    def close(self) -> None:
        if self._token is not None:
            wipe(self._token)
            self._token = None

    @contextlib.contextmanager
    def _connected(self) -> Iterator[http.client.HTTPConnection]:
        """A connection that ends after :data:`_SECONDS`, whatever the other side does."""
        raw = socket.create_connection((self._host, self._port), timeout=_CONNECT_SECONDS)
        guard = raw.dup()
        timer = threading.Timer(_SECONDS, _cut, [guard])
        timer.daemon = True
        connection = http.client.HTTPConnection(self._host, self._port)  # what it would connect itself, it never does
        connection.auto_open = 0
        try:
            timer.start()
            raw.settimeout(_SECONDS)
            connection.sock = self._tls.wrap_socket(raw, server_hostname=self._host) if self._tls else raw
            yield connection
        finally:
            timer.cancel()
            connection.close()
            raw.close()
            guard.close()

    def _check(self, status: int) -> None:
        match status:
            case http.HTTPStatus.OK:
                return
            case http.HTTPStatus.FORBIDDEN:
                raise UnlockRefused(
                    f"{self.subject}: denied", hint="the token is wrong or has expired, or its policy lacks this key"
                )
            case http.HTTPStatus.BAD_REQUEST:
                raise UnlockRefused(
                    f"{self.subject}: refused",
                    hint="the engine has another key, or one without associated data (aes256-gcm96 is right)",
                )
            case http.HTTPStatus.NOT_FOUND:
                raise KeySourceUnavailable(f"{self.subject}: has no transit engine or key of that name")
            case http.HTTPStatus.SERVICE_UNAVAILABLE:
                raise KeySourceUnavailable(f"{self.subject}: is sealed or not ready")
            case _ if http.HTTPStatus.MULTIPLE_CHOICES <= status < http.HTTPStatus.BAD_REQUEST:
                raise KeySourceUnavailable(
                    f"{self.subject}: answered with a redirect, which is not followed",
                    hint="vault.address must be the server's own",
                )
        raise KeySourceUnavailable(f"{self.subject}: answered with status {status}")


def _read_into(answer: http.client.HTTPResponse, body: bytearray) -> int:
    size, view = 0, memoryview(body)
    while size < len(body):
        read = answer.readinto(view[size:])
        if not read:
            break
        size += read
    return size


def _cut(guard: socket.socket) -> None:
    with contextlib.suppress(OSError):
        guard.shutdown(socket.SHUT_RDWR)


def _context(ca: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks names; and takes no key-log file from the environment
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if ca is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"vault.ca: {ca}: holds no certificate that can be used") from error
    return context


def _read_token(values: VaultValues) -> bytearray:
    if values.token is not None:
        found = read_private_line(Path(values.token))
    else:
        found = from_descriptor(int(values.token_fd or 0))
    if not _TOKEN.fullmatch(found):
        wipe(found)
        raise ConfigError("vault: the token is not one: it is empty, or holds spaces or lines")
    return found


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _reason(error: Exception) -> str:
    """Why a question failed, in words of ours: what a peer sent never stands in a message."""
    match error:
        case ssl.SSLCertVerificationError():
            return "its certificate is not trusted, or is another host's"
        case ssl.SSLError():
            return "it does not speak TLS as we do"
        case TimeoutError():
            return "no answer came in time"
        case http.client.HTTPException():
            return "it hung up, or does not speak HTTP"
        case OSError(strerror=str(text)):
            return text.lower()
        case _:
            return "i/o error"
