"""A TPM 2.0, through tpm2-tools: the key-encryption key is sealed under a policy over platform registers (PCRs).

The sealed blobs stand in the identity file; only this TPM, in this state of its registers, gives the key back. The key
crosses the bus encrypted: each session is salted with the storage key, whose name was recorded when the identity was
locked and is compared first, so a device in between cannot put its own in the place. The tools' context files are
nameless memory; their words go to nobody; every call ends. What they load is flushed, since there may be no resource
manager that would.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Annotated, Any, Self

import msgspec

from pericard.errors import ConfigError, KeyFileInvalid, KeySourceUnavailable, UnlockRefused
from pericard.keys import take, wipe
from pericard.unlock.locked import KEY_SIZE, decode_base64
from pericard.unlock.source import Parameters

_PCRS = r"^sha(256|384):([0-9]|1[0-9]|2[0-3])(,([0-9]|1[0-9]|2[0-3])){0,23}$"
_TCTI = re.compile(r"(device|tabrmd|swtpm|mssim)(:[A-Za-z0-9/._=,:-]{0,255})?")
_SECONDS = 10.0  # of one call; a hardware TPM needs most of a second for an elliptic key
_TOTAL_SECONDS = 40.0
_MAX_BLOB = 1024
_MAX_WORDS = 8192
#: Where the tools are looked for; the environment's PATH does not choose what is handed the key.
_FOLDERS = os.pathsep.join((f"{sys.prefix}/bin", "/usr/local/bin", "/usr/bin", "/bin"))
_CODE = re.compile(rb"\(0x([0-9A-Fa-f]{1,8})\)")
_POLICY_FAILED, _PCR_CHANGED, _INTEGRITY = 0x99D, 0x128, 0x1DF


class _Blobs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The lock's parameters: the storage key's name, the registers, and both halves of the sealed object."""

    parent: str
    pcrs: Annotated[str, msgspec.Meta(pattern=_PCRS)]
    private: str
    public: str


class TpmLock:
    """A key that this host's TPM gives back while the registers are what they were."""

    def __init__(self, tcti: str | None = None, *, pcrs: str = "sha256:7") -> None:
        """Take how the TPM is reached, and the registers for a new lock.

        Raises:
            ConfigError: one of them is not what the tools understand.
        """
        self._tcti = tcti or os.environ.get("TPM2TOOLS_TCTI") or None
        if self._tcti is not None and not _TCTI.fullmatch(self._tcti):
            raise ConfigError(f"identity.tcti: {self._tcti[:64]!r} is not one", hint="such as device:/dev/tpmrm0")
        if not re.fullmatch(_PCRS, pcrs):
            raise ConfigError(f"pcrs: {pcrs[:64]!r} are not registers", hint="such as sha256:7 or sha256:0,2,7")
        self._pcrs = pcrs

    def make(self, recipient: str) -> tuple[bytearray, dict[str, Any]]:  # noqa: ARG002  (the file binds it)
        """Seal a fresh key to the registers as they are now; see ``Lock.make``."""
        key = take(os.urandom(KEY_SIZE))
        try:
            with _Tools(self._tcti) as tools:
                parent = tools.storage_key()
                with tools.session() as session:
                    tools.run("tpm2_policypcr", "-Q", "-S", session, "-l", self._pcrs, "-L", tools.file("policy"))
                with tools.session("--hmac-session", "--tpmkey-context", tools.file("parent")) as session:
                    tools.run("tpm2_sessionconfig", "--enable-decrypt", session)
                    tools.run(
                        "tpm2_create", "-Q", "-C", tools.file("parent"), "-L", tools.file("policy"), "-S", session,
                        "-a", "fixedtpm|fixedparent|noda", "-i", "-", "-u", tools.file("public"), "-r",
                        tools.file("private"), given=key,
                    )  # fmt: skip
                public, private = tools.read("public"), tools.read("private")
        except BaseException:
            wipe(key)
            raise
        blobs = {"parent": parent, "private": private, "public": public}
        text = {name: base64.b64encode(blob).decode("ascii") for name, blob in blobs.items()}
        return key, {**text, "pcrs": self._pcrs}

    def open(self, parameters: Parameters, recipient: str) -> bytearray:
        """What the TPM unseals; see ``Lock.open``."""
        blobs = _blobs(parameters, recipient)
        with _Tools(self._tcti) as tools:
            if tools.storage_key() != blobs["parent"]:
                raise UnlockRefused(
                    f"identity {recipient[:16]}: was locked to another TPM, or this one was cleared since",
                    hint="restore a backup, or make a new identity and ask the vendor for a grant",
                )
            for name in ("public", "private"):
                tools.write(name, blobs[name])
            sealed, parent, pcrs = tools.file("sealed"), tools.file("parent"), str(parameters["pcrs"])
            tools.run(
                "tpm2_load", "-Q", "-C", parent, "-u", tools.file("public"), "-r", tools.file("private"), "-c", sealed
            )
            with tools.session("--policy-session", "--tpmkey-context", parent) as session:
                tools.run("tpm2_sessionconfig", "--enable-encrypt", session)
                tools.run("tpm2_policypcr", "-Q", "-S", session, "-l", pcrs)
                return tools.run("tpm2_unseal", "-Q", "-c", sealed, "-p", f"session:{session}", taken=KEY_SIZE)

    def close(self) -> None:
        """Nothing is kept."""


def _blobs(parameters: Parameters, recipient: str) -> dict[str, bytes]:
    try:
        found = msgspec.convert(dict(parameters), type=_Blobs, strict=True)
        blobs = {name: decode_base64(getattr(found, name)) for name in ("parent", "private", "public")}
        if not all(0 < len(blob) <= _MAX_BLOB for blob in blobs.values()):
            raise ValueError(f"holds a part that is empty or larger than {_MAX_BLOB} bytes")
    except ValueError as error:  # the validator's error is one
        raise KeyFileInvalid(f"identity {recipient[:16]}: tpm lock: {str(error).lower()}") from error
    return blobs


class _Tools:
    """The tools, and the nameless files between them; what they loaded is flushed when the block ends."""

    def __init__(self, tcti: str | None) -> None:
        self._files: dict[str, int] = {}
        self._deadline = time.monotonic() + _TOTAL_SECONDS
        self._environment = {"PATH": _FOLDERS, "TSS2_LOG": "all+none", "LC_ALL": "C"}
        if tcti:
            self._environment["TPM2TOOLS_TCTI"] = tcti

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)

    def file(self, name: str) -> str:
        """A nameless file's path, as the tools see it."""
        if name not in self._files:
            self._files[name] = os.memfd_create(name, os.MFD_CLOEXEC)
        return f"/proc/self/fd/{self._files[name]}"

    def read(self, name: str) -> bytes:
        """What a tool wrote."""
        return os.pread(self._files[name], _MAX_BLOB, 0)

    def write(self, name: str, data: bytes) -> None:
        """What a tool shall read."""
        self.file(name)
        os.pwrite(self._files[name], data, 0)

    def storage_key(self) -> bytes:
        """Make the storage key, which the TPM derives anew each time; its name."""
        parent = self.file("parent")
        self.run("tpm2_createprimary", "-Q", "-C", "o", "-g", "sha256", "-G", "ecc256:aes128cfb", "-c", parent)
        self.run("tpm2_readpublic", "-Q", "-c", parent, "-n", self.file("name"))
        return self.read("name")

    @contextlib.contextmanager
    def session(self, *options: str) -> Iterator[str]:
        """A session of the TPM, without options one that only computes a policy; flushed at the end."""
        name = f"session{len(self._files)}"
        self.run("tpm2_startauthsession", "-Q", *options, "-S", self.file(name))
        try:
            yield self.file(name)
        finally:
            with contextlib.suppress(KeySourceUnavailable, UnlockRefused):
                self._call("tpm2_flushcontext", self.file(name))

    def run(self, tool: str, *arguments: str, given: bytearray | None = None, taken: int = 0) -> bytearray:
        """Run one tool, then flush what it left in the TPM.

        Args:
            tool: its name.
            arguments: of it; none of them secret.
            given: what it reads on its standard input.
            taken: how many bytes it must write on its standard output.

        Returns:
            Exactly ``taken`` bytes; the caller wipes them.
        """
        try:
            return self._call(tool, *arguments, given=given, taken=taken)
        finally:
            with contextlib.suppress(KeySourceUnavailable, UnlockRefused):
                self._call("tpm2_flushcontext", "-t")

    def _call(self, tool: str, *arguments: str, given: bytearray | None = None, taken: int = 0) -> bytearray:
        path = shutil.which(tool, path=_FOLDERS)
        if path is None:
            raise KeySourceUnavailable(f"tpm: {tool} is not installed", hint="install tpm2-tools")
        try:
            process = subprocess.Popen(
                [path, *arguments],
                stdin=subprocess.PIPE if given is not None else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=tuple(self._files.values()),
                env=self._environment,
                bufsize=0,
            )
        except OSError as error:
            raise KeySourceUnavailable(f"tpm: {tool} cannot be started") from error
        answer, words = bytearray(taken + 1), bytearray(_MAX_WORDS)
        try:
            sizes = self._talk(process, given, (answer, words), tool)
            if process.returncode:
                raise _refusal(tool, bytes(memoryview(words)[: sizes[1]]))
            if taken and sizes[0] != taken:
                raise UnlockRefused(f"tpm: gave {sizes[0]} bytes, wanted {taken}")
            return bytearray(memoryview(answer)[:taken])
        finally:
            wipe(answer)
            _end(process)

    def _talk(
        self, process: subprocess.Popen[bytes], given: bytearray | None, buffers: tuple[bytearray, bytearray], tool: str
    ) -> tuple[int, int]:
        """Hand over the input, which fits a pipe, and read both outputs to their end; how much each was."""
        deadline = min(self._deadline, time.monotonic() + _SECONDS)
        if given is not None and process.stdin is not None:
            with process.stdin as out, contextlib.suppress(BrokenPipeError):
                os.write(out.fileno(), given)
        streams = [stream.fileno() for stream in (process.stdout, process.stderr) if stream is not None]
        sizes, waiting = [0, 0], select.poll()
        for stream in streams:
            waiting.register(stream, select.POLLIN)
        left = set(streams)
        while left:
            ready = waiting.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready:
                raise KeySourceUnavailable(f"tpm: {tool} gave no answer in time", hint="is the TPM in use elsewhere?")
            for stream, _ in ready:
                place = streams.index(stream)
                read = os.readv(stream, [memoryview(buffers[place])[sizes[place] :] or bytearray(_MAX_WORDS)])
                if not read:
                    waiting.unregister(stream)
                    left.remove(stream)
                sizes[place] = min(sizes[place] + read, len(buffers[place]))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, deadline - time.monotonic()))
        return sizes[0], sizes[1]


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_SECONDS)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _refusal(tool: str, words: bytes) -> KeySourceUnavailable | UnlockRefused:
    """What a failed tool's response code means; its words are not repeated."""
    codes = {int(code, 16) for code in _CODE.findall(words)}
    if codes & {_POLICY_FAILED, _PCR_CHANGED}:
        return UnlockRefused(
            "tpm: refused: the registers are not what they were when the identity was locked",
            hint="after a firmware or boot change that you made: restore a backup, then lock again",
        )
    if _INTEGRITY in codes:
        return UnlockRefused("tpm: the sealed key was altered, or belongs to another TPM")
    shown = ", ".join(f"0x{code:x}" for code in sorted(codes)) or "without a code"
    return KeySourceUnavailable(
        f"tpm: {tool} failed ({shown})", hint="is the TPM there, may this user reach it, and is identity.tcti right?"
    )
