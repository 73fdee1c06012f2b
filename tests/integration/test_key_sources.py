"""Every key source against the real thing: a TPM, a transit engine, a service manager's credential, a daemon."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from integration_site import Daemon, Site, children_of, environment, pericard, running
from key_sources import Bao, Tpm, free_ports, missing, openbao, software_tpm, tool
from process_memory import count
from terminals import at_a_terminal, until

from pericard.daemon import unlocking
from pericard.errors import ConfigError, KeyFileInvalid, KeySourceUnavailable, PericardError, UnlockRefused
from pericard.keys import Identity, Recipient
from pericard.unlock import LockedIdentity, UnlockValues, VaultValues, lock_of, unlock
from pericard.unlock.passphrase import PassphraseLock

pytestmark = pytest.mark.integration
SEED = bytes(range(100, 132))
PASSPHRASE = "correct horse battery staple"


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bao]:
    with openbao(tmp_path_factory.mktemp("bao")) as server:
        yield server


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[Tpm]:
    with software_tpm(tmp_path / "tpm") as found:
        yield found


def sealed(values: UnlockValues, **new: str) -> LockedIdentity:
    with contextlib.closing(lock_of(values, new=new)) as lock:
        return LockedIdentity.seal(bytearray(SEED), values.kind, lock)


def opened(locked: LockedIdentity, values: UnlockValues) -> bytes:
    with contextlib.closing(lock_of(values)) as lock:
        return bytes(locked.open(lock))


def said(error: PericardError) -> str:
    """Everything that an error could show to anybody, its causes included."""
    words, cause = [], error
    while cause is not None:
        words += [str(cause), repr(cause), str(getattr(cause, "hint", ""))]
        cause = cause.__cause__ or cause.__context__
    return " ".join(words)


# --- TPM --------------------------------------------------------------------------------------------------------------


def by(tpm: Tpm) -> UnlockValues:
    return UnlockValues(kind="tpm", tcti=tpm.tcti)


def test_a_tpm_gives_the_key_back_until_a_register_changes(tpm: Tpm) -> None:
    tpm.extend(7)
    locked = sealed(by(tpm), pcrs="sha256:7,16")
    assert opened(locked, by(tpm)) == SEED

    tpm.extend(16)
    with pytest.raises(UnlockRefused, match="registers are not what they were"):
        opened(locked, by(tpm))
    tpm.run("tpm2_pcrreset", "16")
    assert opened(locked, by(tpm)) == SEED
    tpm.extend(1)  # is not in the policy
    assert opened(locked, by(tpm)) == SEED


def test_nothing_is_left_in_a_tpm_without_a_resource_manager(tpm: Tpm) -> None:
    locked = sealed(by(tpm), pcrs="sha256:16")
    for _ in range(4):  # a session or an object that is left would fill it
        assert opened(locked, by(tpm)) == SEED
    tpm.extend(16)
    for _ in range(4):
        with pytest.raises(UnlockRefused):
            opened(locked, by(tpm))
    assert tpm.handles().strip() == ""


def test_another_tpm_is_refused(tpm: Tpm, tmp_path: Path) -> None:
    locked = sealed(by(tpm))
    with software_tpm(tmp_path / "other") as other, pytest.raises(UnlockRefused, match="another TPM"):
        opened(locked, by(other))


def test_a_sealed_key_that_was_altered_is_refused(tpm: Tpm) -> None:
    locked = sealed(by(tpm))
    other = sealed(by(tpm))
    private = other.parameters["private"]
    with pytest.raises(UnlockRefused, match="was altered"):
        opened(replace(locked, parameters={**locked.parameters, "private": private}), by(tpm))
    swapped = {**locked.parameters, "private": private, "public": other.parameters["public"]}
    with pytest.raises(UnlockRefused, match="does not open"):  # the TPM gives a key, and it is another one
        opened(replace(locked, parameters=swapped), by(tpm))


@pytest.mark.parametrize("pcrs", ["", "7", "sha1:7", "sha256:24", "sha256:7;x", "sha256:", "sha256:7,"])
def test_registers_that_are_none_are_refused(pcrs: str) -> None:
    with pytest.raises(ConfigError, match="registers"):
        lock_of(UnlockValues(kind="tpm"), new={"pcrs": pcrs})


def test_a_tpm_that_is_not_there_is_said_within_its_time() -> None:
    tool("tpm2_unseal")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(KeySourceUnavailable, match="tpm2_createprimary failed"):
        sealed(UnlockValues(kind="tpm", tcti=f"swtpm:host=127.0.0.1,port={port}"))
    with pytest.raises(ConfigError, match="tcti"):
        sealed(UnlockValues(kind="tpm", tcti="/usr/lib/evil.so:x"))
    assert time.monotonic() - began < 20


def test_a_tpm_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from pericard.unlock import tpm as module

    tool("tpm2_unseal")
    monkeypatch.setattr(module, "_SECONDS", 1.0)
    with silent(*free_ports()) as port:
        began = time.monotonic()
        with pytest.raises(KeySourceUnavailable, match="no answer in time"):
            sealed(UnlockValues(kind="tpm", tcti=f"swtpm:host=127.0.0.1,port={port}"))
        assert time.monotonic() - began < 10


# --- transit ----------------------------------------------------------------------------------------------------------


def by_token(bao: Bao, *capabilities: str, key: str = "pericard") -> UnlockValues:
    return UnlockValues(kind="vault", vault=bao.values(bao.token(*capabilities, key=key)))


def test_a_token_that_may_decrypt_with_one_key_is_enough(bao: Bao) -> None:
    locked = sealed(by_token(bao, "encrypt", "decrypt"))
    assert opened(locked, by_token(bao, "decrypt")) == SEED

    bao.ask("POST", "transit/keys/pericard/rotate", {})  # the engine's own rotation is nothing to us
    assert opened(locked, by_token(bao, "decrypt")) == SEED


@pytest.mark.parametrize("token", ["wrong", "s.0123456789abcdef", None])
def test_a_token_that_may_not_is_refused_and_not_repeated(bao: Bao, token: str | None) -> None:
    locked = sealed(by_token(bao, "encrypt", "decrypt"))
    values = bao.values(token or bao.token("encrypt"))
    with pytest.raises(UnlockRefused, match="denied") as error:
        opened(locked, UnlockValues(kind="vault", vault=values))
    secret = Path(str(values.token)).read_text().strip()
    assert secret not in said(error.value).replace("token is wrong", "")


def test_another_key_or_another_recipient_is_refused(bao: Bao) -> None:
    bao.ask("POST", "transit/keys/other", {})
    values = by_token(bao, "encrypt", "decrypt")
    locked = sealed(values)
    other = sealed(by_token(bao, "encrypt", "decrypt", key="other"), key="other")

    with pytest.raises(UnlockRefused, match=r"^vault [0-9.]+: refused"):
        opened(replace(locked, parameters={**other.parameters, "key": "pericard"}), values)
    with pytest.raises(UnlockRefused, match=r"^vault [0-9.]+: refused"):  # bound by the engine
        opened(replace(locked, recipient="0" * 64), values)
    fresh = sealed(values)
    with pytest.raises(UnlockRefused, match="does not open"):  # bound by the file: the engine gives a key, another's
        opened(replace(locked, parameters=fresh.parameters), values)


def test_a_mount_that_is_not_there_is_said(bao: Bao) -> None:
    values = UnlockValues(kind="vault", vault=bao.values(bao.root))
    with pytest.raises(KeySourceUnavailable, match="no transit engine"):
        sealed(values, mount="elsewhere")


@pytest.mark.parametrize("place", ["../sys", "a//b", "transit/..", "a?b", "", "a b"])
def test_a_file_cannot_choose_what_else_to_ask(bao: Bao, place: str) -> None:
    values = by_token(bao, "encrypt", "decrypt")
    locked = sealed(values)
    for name in ("mount", "key"):
        with pytest.raises(KeyFileInvalid):
            opened(replace(locked, parameters={**locked.parameters, name: place}), values)


def test_a_server_that_is_sealed_is_said(tmp_path: Path) -> None:
    with openbao(tmp_path / "bao") as server:
        values = by_token(server, "encrypt", "decrypt")
        locked = sealed(values)
        server.ask("PUT", "sys/seal", {})
        with pytest.raises(KeySourceUnavailable, match="sealed"):
            opened(locked, values)


def test_a_server_of_another_authority_is_not_asked(bao: Bao, tmp_path: Path) -> None:
    pericard("keygen", "tls", "--host", "127.0.0.1", "-o", "tls.key", cwd=tmp_path)
    values = bao.values(bao.token("decrypt", "encrypt"))
    for ca in (str(tmp_path / "tls.crt"), None):  # another, and the system's
        foreign = VaultValues(values.address, ca, values.token)
        with pytest.raises(KeySourceUnavailable, match="certificate is not trusted"):
            sealed(UnlockValues(kind="vault", vault=foreign))


@contextlib.contextmanager
def silent(*ports: int) -> Iterator[int]:
    """A port, or several, that take connections and never say a word; the first."""
    with contextlib.ExitStack() as after:
        listeners = [after.enter_context(socket.socket()) for _ in ports or (0,)]
        for listener, port in zip(listeners, ports or (0,), strict=True):
            listener.bind(("127.0.0.1", port))
            listener.listen(16)
        yield listeners[0].getsockname()[1]


@contextlib.contextmanager
def answering(answer: bytes, *, slowly: float = 0.0) -> Iterator[tuple[int, list[bytes]]]:
    """A port that answers everything with the same bytes, perhaps one at a time; and what it was asked."""
    asked: list[bytes] = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        listener.settimeout(0.2)
        over = threading.Event()

        def run() -> None:
            while not over.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    continue
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(2)
                    asked.append(connection.recv(65536))
                    for place in range(0, len(answer), 1 if slowly else len(answer)):
                        connection.sendall(answer[place : place + 1] if slowly else answer)
                        if over.wait(slowly):
                            return

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield listener.getsockname()[1], asked
        finally:
            over.set()
            thread.join()


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text("s.a-token-that-nobody-may-see\n")
    return str(path)


def plain_http(port: int, token: str) -> UnlockValues:
    return UnlockValues(kind="vault", vault=VaultValues(f"http://127.0.0.1:{port}", None, token))


def test_a_closed_port_is_said_at_once(token_file: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(KeySourceUnavailable, match="connection refused"):
        sealed(plain_http(port, token_file))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_never_answers_is_given_up(token_file: str, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    from pericard.unlock import vault

    monkeypatch.setattr(vault, "_SECONDS", 1.0)
    with silent() as port:
        began = time.monotonic()
        values = VaultValues(f"{scheme}://127.0.0.1:{port}", None, token_file)
        with pytest.raises(KeySourceUnavailable, match="cannot be asked"):
            sealed(UnlockValues(kind="vault", vault=values))
        assert time.monotonic() - began < 5


def test_a_server_that_answers_for_ever_is_given_up(token_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pericard.unlock import vault

    monkeypatch.setattr(vault, "_SECONDS", 1.0)
    slow = b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n" + b" " * 60000
    with answering(slow, slowly=0.05) as (port, _):
        began = time.monotonic()
        with pytest.raises(KeySourceUnavailable):
            sealed(plain_http(port, token_file))
        assert time.monotonic() - began < 5


def test_a_redirect_is_not_followed_and_a_proxy_not_asked(token_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as (elsewhere, asked):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{elsewhere}")
        redirect = f"HTTP/1.1 307 There\r\nLocation: http://127.0.0.1:{elsewhere}/x\r\nContent-Length: 0\r\n\r\n"
        with answering(redirect.encode()) as (port, first):
            with pytest.raises(KeySourceUnavailable, match="redirect, which is not followed") as error:
                sealed(plain_http(port, token_file))
            assert len(first) == 1, "nothing is tried twice"
        assert asked == []
    assert "nobody-may-see" not in said(error.value)


ODD = {
    "html": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
    "no data": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "no ciphertext": b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"data":{}}',
    "no http": b"SSH-2.0-OpenSSH\r\n",
    "nothing": b"\r\n",
    "large": b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + b" " * 99999,
    "endless head": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 9999,
    "error": b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
    "throttled": b"HTTP/1.1 429 No\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("name", ODD)
def test_an_answer_that_is_none_is_unavailable(token_file: str, name: str) -> None:
    with answering(ODD[name]) as (port, _), pytest.raises(KeySourceUnavailable) as error:
        sealed(plain_http(port, token_file))
    assert "nobody-may-see" not in said(error.value)


def test_a_key_of_another_size_is_refused(token_file: str) -> None:
    locked = LockedIdentity(
        Identity(SEED).recipient.id, "vault", {"ciphertext": "vault:v1:AAAA", "key": "k", "mount": "m"}, bytes(60)
    )
    for text in (b'{"data":{"plaintext":""}}', b'{"data":{"plaintext":"c2hvcnQ="}}'):
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text)
        with answering(answer) as (port, _), pytest.raises(UnlockRefused, match="bytes of key"):
            opened(locked, plain_http(port, token_file))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://vault.example:8200", "https is needed"),
        ("http://192.0.2.1:8200", "https is needed"),
        ("http://localhost:8200", "https is needed"),  # a name is what a resolver says it is
        ("ftp://127.0.0.1", "not an address"),
        ("https://user:secret-word@127.0.0.1", "not an address"),
        ("https://127.0.0.1/v1/x", "not an address"),
        ("https://127.0.0.1:99999", "port"),
        ("127.0.0.1:8200", "not an address"),
    ],
)
def test_an_address_that_is_not_safe_is_refused(token_file: str, address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        lock_of(UnlockValues(kind="vault", vault=VaultValues(address, None, token_file)))
    assert "secret-word" not in said(error.value)


def test_the_token_file_is_private(bao: Bao, tmp_path: Path) -> None:
    values = bao.values(bao.token("encrypt", "decrypt"))
    Path(str(values.token)).chmod(0o644)
    with pytest.raises(PericardError, match="others may read"):
        sealed(UnlockValues(kind="vault", vault=values))
    (tmp_path / "empty").touch(mode=0o600)
    with pytest.raises(ConfigError, match="token is not one"):
        sealed(UnlockValues(kind="vault", vault=VaultValues(values.address, values.ca, str(tmp_path / "empty"))))
    with pytest.raises(ConfigError, match="needs a token"):
        sealed(UnlockValues(kind="vault", vault=VaultValues(values.address, values.ca)))


def test_the_token_may_come_by_descriptor(bao: Bao) -> None:
    token = bao.token("encrypt", "decrypt")
    read, write = os.pipe()
    os.write(write, token.encode())
    os.close(write)
    sealed(UnlockValues(kind="vault", vault=VaultValues(bao.address, bao.ca, None, read)))
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(read)


def test_tls_writes_no_key_log(bao: Bao, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = by_token(bao, "encrypt", "decrypt")
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys.log"))
    assert ssl.create_default_context().keylog_filename  # what must not be used
    (tmp_path / "keys.log").unlink(missing_ok=True)
    sealed(values)
    assert not (tmp_path / "keys.log").exists()


# --- a service manager's credential -----------------------------------------------------------------------------------


def test_a_credential_of_systemd_with_the_hosts_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tool("systemd-creds")
    pericard("keygen", "identity", "-o", "identity.key", cwd=tmp_path)
    folder = tmp_path / "credentials"
    folder.mkdir(mode=0o700)

    def creds(*words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([program, *words], cwd=tmp_path, capture_output=True, timeout=30, check=False)

    made = creds("--with-key=host", "--name=identity", "encrypt", "identity.key", "identity.cred")
    if made.returncode:
        missing(f"a host key for systemd-creds ({made.stderr.decode().strip()})")
    assert b"pericard-identity-v1" not in (tmp_path / "identity.cred").read_bytes()
    assert creds("--name=other", "decrypt", "identity.cred", "-").returncode != 0
    # what the service manager does before it starts us
    assert creds("--name=identity", "decrypt", "identity.cred", "credentials/identity").returncode == 0
    (folder / "identity").chmod(0o400)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))

    (seed,) = unlock(UnlockValues(kind="systemd"))

    assert Identity(seed).recipient.id == Recipient.read(tmp_path / "identity.pub").id


# --- the daemon -------------------------------------------------------------------------------------------------------


@pytest.fixture
def passphrase_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "passphrase"
    path.touch(mode=0o600)
    path.write_text(PASSPHRASE + "\n")
    return path


def configure(site: Site, **identity: object) -> None:
    path = site.folder / "server.yaml"
    value = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**value, "identity": identity}))


def identity(site: Site, *words: str, passphrase: Path) -> str:
    """A verb of ``pericard identity``; the word FD stands for a descriptor with the passphrase."""
    with passphrase.open("rb") as given:
        fd = given.fileno()
        done = subprocess.run(
            [sys.executable, "-m", "pericard", "identity", *(str(fd) if word == "FD" else word for word in words)],
            pass_fds=(fd,), cwd=site.folder, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
    assert PASSPHRASE not in done.stdout + done.stderr
    return done.stdout.strip()


@contextlib.contextmanager
def served(site: Site, passphrase: Path, *options: str) -> Iterator[Daemon]:
    """A daemon with the passphrase on a descriptor, as ``pericard serve 3<FILE`` would have it."""
    with passphrase.open("rb") as given:
        configure(site, **{**configured(site), "unlock": "passphrase", "passphrase_fd": given.fileno()})
        process = subprocess.Popen(
            [sys.executable, "-m", "pericard", "serve", "--config", str(site.folder / "server.yaml"), *options],
            pass_fds=(given.fileno(),), stderr=subprocess.PIPE, text=True, env=environment(site.folder),
        )  # fmt: skip
    assert process.stderr is not None
    seen = []
    try:
        while line := process.stderr.readline():
            seen.append(line)
            if ": serving " in line:
                yield Daemon(site, process, line.rpartition(" on ")[2].split()[0], process.pid)
                return
        raise Refused("".join(seen))
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(timeout=40)
        process.stderr.close()


class Refused(Exception):
    """What a daemon said that did not start."""


def configured(site: Site) -> dict[str, object]:
    value: dict[str, object] = yaml.safe_load((site.folder / "server.yaml").read_text()).get("identity", {})
    return value


@pytest.fixture
def locked_site(site: Site, passphrase_file: Path) -> Site:
    """A site whose identity has a passphrase."""
    identity(
        site, "relock", "identity.key", "--to", "passphrase", "--new-passphrase-fd", "FD", passphrase=passphrase_file
    )
    return site


@pytest.fixture
def locked_seed(made_site: Site) -> bytes:
    return bytes(Identity.read_seed(made_site.folder / "identity.key"))


@pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("CI"), reason="only root may read another's memory")
def test_the_daemon_serves_with_a_locked_identity(
    locked_site: Site, passphrase_file: Path, locked_seed: bytes, strip: list[float]
) -> None:
    found = {"passphrase": PASSPHRASE.encode(), "seed": locked_seed}
    with served(locked_site, passphrase_file) as daemon:
        assert daemon.predict(strip).status == 200
        assert len(children_of(daemon.pid)) == len(daemon.children()) == 2, "what unlocked it is gone"
        assert count(daemon.pid, found) == {"passphrase": 0, "seed": 1}
        for pid in daemon.children().values():
            assert count(pid, found) == {"passphrase": 0, "seed": 0}
            assert not [link for link in links(pid) if "passphrase" in link], "the descriptor stays with who unlocks"
        assert not [link for link in links(daemon.pid) if "passphrase" in link]


def links(pid: int) -> list[str]:
    return [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]


def test_the_daemon_serves_inline_with_a_locked_identity(
    locked_site: Site, passphrase_file: Path, strip: list[float]
) -> None:
    with served(locked_site, passphrase_file, "--inline") as daemon:
        assert daemon.predict(strip).status == 200


def test_a_wrong_passphrase_is_said_and_nothing_is_served(locked_site: Site, passphrase_file: Path) -> None:
    passphrase_file.write_text("another horse battery staple\n")
    with pytest.raises(Refused) as error, served(locked_site, passphrase_file):
        pass
    text = str(error.value)
    assert "does not open with what the lock passphrase gave" in text
    assert "hint: a wrong passphrase" in text
    assert "another horse" not in text


def test_a_descriptor_that_is_not_open_is_said(locked_site: Site) -> None:
    configure(locked_site, unlock="passphrase", passphrase_fd=77)
    done = pericard("serve", "--config", "server.yaml", cwd=locked_site.folder, check=False)
    assert done.returncode == 1
    assert "descriptor 77 is not open" in done.stderr


def test_a_lock_that_the_configuration_does_not_name_is_said(locked_site: Site) -> None:
    configure(locked_site, unlock="file")
    done = pericard("serve", "--config", "server.yaml", cwd=locked_site.folder, check=False)
    assert done.returncode == 1
    assert "identity.key: is locked" in done.stderr


def test_two_identities_are_live_during_a_rotation(
    locked_site: Site, passphrase_file: Path, strip: list[float], locked_seed: bytes
) -> None:
    folder = locked_site.folder
    before = (folder / "identity.key").read_bytes()
    words = ("rotate", "identity.key", "-o", "next.key", "--passphrase-fd", "FD")
    name = identity(locked_site, *words, passphrase=passphrase_file)
    assert Recipient.read(folder / "next.pub").id == name
    assert (folder / "identity.key").read_bytes() == before

    configure(locked_site, path="next.key", previous="identity.key")
    with served(locked_site, passphrase_file) as daemon:  # the model is granted to the previous one alone
        assert daemon.predict(strip).status == 200
        if os.geteuid() == 0:
            assert count(daemon.children()["engine"], {"seed": locked_seed}) == {"seed": 0}

    configure(locked_site, path="next.key")
    with pytest.raises(Refused, match="no grant for identity " + name[:16]), served(locked_site, passphrase_file):
        pass


def test_a_tpm_starts_the_daemon_until_the_host_changes(site: Site, tpm: Tpm, strip: list[float]) -> None:
    pericard(
        "identity", "relock", "identity.key", "--to", "tpm", "--pcrs", "sha256:16", "--tcti", tpm.tcti, cwd=site.folder
    )
    configure(site, unlock="tpm", tcti=tpm.tcti)
    with running(site) as daemon:
        assert daemon.predict(strip).status == 200
    tpm.extend(16)
    done = pericard("serve", "--config", "server.yaml", cwd=site.folder, check=False)
    assert done.returncode == 1
    assert "registers are not what they were" in done.stderr


def test_a_transit_engine_starts_the_daemon(site: Site, bao: Bao, strip: list[float]) -> None:
    token = bao.file(bao.token("encrypt", "decrypt"))
    pericard(
        "identity", "relock", "identity.key", "--to", "vault", "--vault", bao.address, "--vault-ca", bao.ca,
        "--vault-token", token, cwd=site.folder,
    )  # fmt: skip
    shutil.copy(bao.ca, site.folder / "vault-ca.pem")
    shutil.copy(bao.file(bao.token("decrypt")), site.folder / "vault.token")
    vault = {"address": bao.address, "ca": "vault-ca.pem", "token": "vault.token"}
    configure(site, unlock="vault", vault=vault)
    with running(site) as daemon:
        assert daemon.predict(strip).status == 200


def test_a_server_that_never_answers_ends_the_start_in_time(site: Site, bao: Bao, token_file: str) -> None:
    token = bao.file(bao.token("encrypt", "decrypt"))
    pericard(
        "identity", "relock", "identity.key", "--to", "vault", "--vault", bao.address, "--vault-ca", bao.ca,
        "--vault-token", token, cwd=site.folder,
    )  # fmt: skip
    with silent() as port:
        configure(site, unlock="vault", vault={"address": f"http://127.0.0.1:{port}", "token": token_file})
        began = time.monotonic()
        done = pericard("serve", "--config", "server.yaml", cwd=site.folder, check=False)
        assert time.monotonic() - began < 40
    assert done.returncode == 1
    assert "vault 127.0.0.1: cannot be asked" in done.stderr


def test_what_unlocks_is_ended_when_its_time_is_over(tmp_path: Path) -> None:
    lock = PassphraseLock(lambda: bytearray(PASSPHRASE.encode()))
    LockedIdentity.seal(bytearray(SEED), "passphrase", lock).write(tmp_path / "identity.key")
    read, write = os.pipe()  # a descriptor on which nothing comes
    try:
        began = time.monotonic()
        with pytest.raises(KeySourceUnavailable, match="did not end in time"):
            unlocking.seeds(
                UnlockValues(kind="passphrase", path=str(tmp_path / "identity.key"), passphrase_fd=read), seconds=1.0
            )
        assert time.monotonic() - began < 10
        assert not [pid for pid in children_of(os.getpid()) if b"unlocking" in cmdline(pid)]
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(read)
    finally:
        os.close(write)


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


# --- a daemon that asks -----------------------------------------------------------------------------------------------


def test_the_daemon_asks_on_its_terminal(locked_site: Site) -> None:
    configure(locked_site, unlock="passphrase")
    arguments = ("-m", "pericard", "serve", "--config", str(locked_site.folder / "server.yaml"))
    with at_a_terminal(*arguments) as terminal:
        seen = until(terminal, b"Passphrase for the identity: ")
        os.write(terminal, PASSPHRASE.encode() + b"\n")
        seen += until(terminal, b": serving ")
        assert PASSPHRASE.encode() not in seen
    with at_a_terminal(*arguments) as terminal:
        until(terminal, b"Passphrase for the identity: ")
        os.write(terminal, b"\x03")
        until(terminal, b"interrupted")
        assert termios.tcgetattr(terminal)[3] & termios.ECHO, "the terminal has its echo back"


def test_the_passphrase_may_come_on_standard_input(locked_site: Site, passphrase_file: Path) -> None:
    configure(locked_site, unlock="passphrase", passphrase_fd=0)
    with passphrase_file.open("rb") as given:
        process = subprocess.Popen(
            [sys.executable, "-m", "pericard", "serve", "--config", str(locked_site.folder / "server.yaml")],
            stdin=given, stderr=subprocess.PIPE, text=True, env=environment(locked_site.folder),
        )  # fmt: skip
    assert process.stderr is not None
    with process:
        line = next((line for line in process.stderr if ": serving " in line), "")
        process.terminate()
        process.communicate(timeout=40)
    assert line
