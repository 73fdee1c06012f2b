"""P1, step by step: which secret stands how often in the memory of a process that loads a model, as root sees it.

The file key is there from its unwrapping until the payload key is derived; the HPKE plaintext that it came in is never
there beside it; the payload key ends with the cipher; of the weights there is one copy until the model is closed.
"""

from __future__ import annotations

import os

import pytest
from vault import Vault
from watched import LOAD, child, masked, root_only

#: Stops inside the load, by way of what the loader calls anyway. Every buffer that holds a secret is kept from being
#: freed, so that what is not wiped stays to be found: memory that is freed may be overwritten by luck.
WATCHED = f"""{LOAD}
from pericard.keys import identity as identities

kept = []

def keeping(call):
    def run(*words, **named):
        kept.append(call(*words, **named))
        return kept[-1]
    return run

class Suite:
    decrypt = staticmethod(keeping(identities._SUITE.decrypt))

identities._SUITE = Suite
payload._derive = keeping(payload._derive)
Identity.read_seed = staticmethod(keeping(Identity.read_seed))
made = payload.ChunkCipher.__init__

def stopping(self, file_key, file_id):
    kept.append(file_key)
    step("unwrapped")
    made(self, file_key, file_id)
    step("derived")

payload.ChunkCipher.__init__ = stopping
held = Identity.read(folder / "identity.key")
step("identity")
del held
step("begin")
model = load(progress=lambda done, size: step("decrypted") if done == size else None)
for number in (1, 4, 3):
    model(np.ones((number, 1, 64), np.float32))
step("loaded")
model.close()
step("closed")
"""


def test_each_secret_is_there_while_it_is_needed_and_no_longer(vault: Vault, now: int) -> None:
    root_only()
    nothing = dict.fromkeys(vault.needles, 0)
    with child(WATCHED, vault.folder, now) as process:
        process.wait_for("identity")
        assert sum(process.count(vault.expanded).values()) >= 1, "the witness sees an identity"
        assert process.count(vault.keys) == dict.fromkeys(vault.keys, 0), "the seed is wiped once it was expanded"

        process.proceed("begin")
        assert process.count(vault.needles) == nothing

        process.proceed("unwrapped")
        found = process.count(vault.needles)
        assert found["file key"] == 1, "the one that is about to be used; what HPKE returned is wiped"
        assert found["payload key"] == 0

        process.proceed("derived")
        found = process.count(vault.needles)
        assert found["file key"] <= 1, "it is wiped when its owner comes back"
        assert found["payload key"] >= 1, "the witness sees a key that a cipher holds"

        process.proceed("decrypted")
        found = process.count(vault.needles)
        assert found["file key"] == 0
        assert found["payload key"] >= 1
        assert {name: found[name] for name in vault.weights} == dict.fromkeys(vault.weights, 1)

        process.proceed("loaded")
        found = process.count(vault.needles)
        assert found == nothing | dict.fromkeys(vault.weights, 1)

        process.proceed("closed")
        assert process.count(vault.needles) == nothing


def test_a_load_that_is_refused_at_the_end_leaves_nothing(vault: Vault, now: int) -> None:
    """The last check of all fails, after everything was decrypted."""
    root_only()
    code = f"""{LOAD}
from pericard.errors import KnownAnswerMismatch

def mismatch(self):
    step("attached")
    raise KnownAnswerMismatch("it answers otherwise")

loader.LoadedModel.check_known_answers = mismatch
try:
    load()
except KnownAnswerMismatch:
    pass
step("refused")
"""
    with child(code, vault.folder, now) as process:
        process.wait_for("attached")
        assert process.count(vault.weights) == dict.fromkeys(vault.weights, 1)
        process.proceed("refused")
        assert process.count(vault.needles) == dict.fromkeys(vault.needles, 0)


@pytest.mark.parametrize("release", ["kept", "wiped"])
def test_the_witness_can_speak(release: str) -> None:
    """A secret that came masked is found while it is kept, and not after it was wiped."""
    root_only()
    secret = os.urandom(32)
    code = """
import sys
from pericard.keys import wipe
secret = bytearray(len(sys.argv[1]) // 2)
for place in range(len(secret)):
    secret[place] = 255 - int(sys.argv[1][2 * place : 2 * place + 2], 16)
if sys.argv[2] == "wiped":
    wipe(secret)
print("ready", flush=True)
sys.stdin.readline()
"""
    with child(code, masked(secret), release) as process:
        process.wait_for("ready")
        assert process.count({"secret": secret}) == {"secret": 1 if release == "kept" else 0}
