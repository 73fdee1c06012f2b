"""Loads a sealed model onto the fake device, rightly or with a planted fault, and tells what happened.

Run as ``python load_on_fake_device.py LIBRARY SEALED FAULT``. Says ``during`` while the first chunk is being copied,
``after`` once the model answers, and waits for a line after each, so that another process can look at this one's
memory; then one line of JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import fake_device
import numpy as np

from pericard import hardening
from pericard.errors import PericardError
from pericard.keys import Identity, PublisherKey
from pericard.runtime import loader, plaintext
from pericard.runtime.plaintext import DevicePlaintext, Staging
from pericard.sealed import SealedModel
from pericard.sealed.payload import ChunkCipher
from pericard.trust import Pins, Policy, TrustState

NOW, RUNTIME = 1_790_000_000, "ab" * 32
kept: list[Any] = []


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def pause(word: str) -> None:
    say(word)
    sys.stdin.readline()


class LookOnce:
    """Pauses at the first copy, before it is synchronized."""

    def __init__(self) -> None:
        self._looked, self._lock = False, threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            if not self._looked:
                self._looked = True
                pause("during")


def bytes_left_behind() -> None:
    """Plaintext goes through an object that nobody can wipe."""

    def decrypt_into(
        self: ChunkCipher, index: int, *, last: bool, stored: memoryview, target: memoryview, **_: Any
    ) -> None:
        plain = self._aead.decrypt(self._nonce(index, last), bytes(stored), self._associated(index, last))
        target[:] = plain

    ChunkCipher.decrypt_into = decrypt_into  # type: ignore[method-assign,assignment]


class _Unwiped(Staging):
    def done(self, offset: int, length: int) -> None:
        self._flat[offset : offset + length].copy_(self._tensor[:length], non_blocking=True)
        plaintext.synchronize(self._flat.device)

    def close(self) -> None:
        kept.append(self)


class _WipedEarly(Staging):
    def done(self, offset: int, length: int) -> None:
        self._flat[offset : offset + length].copy_(self._tensor[:length], non_blocking=True)
        self._memory.wipe()
        plaintext.synchronize(self._flat.device)


class _HiddenCopy(DevicePlaintext):
    def index(self, *, subject: str) -> Any:
        kept.append(self._flat.cpu())
        return super().index(subject=subject)


class _WholeOnHost(DevicePlaintext):
    def decrypt(self, model: Any, cipher: Any, progress: Any) -> None:
        import torch

        memory = hardening.PrivateMemory(len(self._flat))
        model.decrypt_into(cipher, memory.view, progress=progress)
        self._flat.copy_(torch.frombuffer(memory.view, dtype=torch.uint8))
        plaintext.synchronize(self._flat.device)
        memory.wipe()


def plant(fault: str) -> None:
    if fault == "bytes-left-behind":
        bytes_left_behind()
    elif fault == "staging-not-wiped":
        plaintext.Staging = _Unwiped  # type: ignore[misc]
    elif fault == "wiped-before-the-copy-ended":
        plaintext.Staging = _WipedEarly  # type: ignore[misc]
    elif fault == "hidden-full-copy":
        plaintext.DevicePlaintext = _HiddenCopy  # type: ignore[misc]
    elif fault == "whole-model-on-the-host":
        plaintext.DevicePlaintext = _WholeOnHost  # type: ignore[misc]
    elif fault != "none":
        raise SystemExit(f"no such fault: {fault}")


def main(library: str, sealed: str, fault: str) -> None:
    counters = fake_device.register(Path(library), before_synchronize=LookOnce())
    plant(fault)
    identity, publisher = Identity(b"hospital".ljust(32)), PublisherKey(bytes(range(64))).publisher
    told: dict[str, Any] = {"refused": None}
    with tempfile.TemporaryDirectory() as folder, SealedModel(Path(sealed)) as source:
        policy = Policy(Pins.of(publisher), TrustState(Path(folder) / "trust.json"), runtime=RUNTIME)
        verified = source.verify((publisher,))
        try:
            model = loader.load(verified, identity, policy, device="fake:0", now=NOW)
        except PericardError as error:
            pause("after")
            told["refused"] = error.code
        else:
            ramp = np.linspace(-1, 1, 2 * 64, dtype=np.float32).reshape(2, 1, 64)
            told["answer"] = model(ramp)["score"].tolist()
            pause("after")
            told |= {name: getattr(counters, name) for name, _ in counters._fields_}
            flat = model._plaintext._flat
            model.close()
            told["left_on_device"] = int(flat.cpu().count_nonzero())
    say(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
