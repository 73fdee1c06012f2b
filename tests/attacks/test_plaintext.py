"""P1: plaintext and keys are in process memory only, and not even there once they are no longer needed.

The kernel is the witness: ``strace`` sees every file that is opened for writing and every byte that is written, by any
library; ``/proc/PID/mem``, read from outside, shows what is left in memory. The needles are 32 bytes of the weights,
the file key, the payload key and the identity's seed; the processes that are watched get them in no other way.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pericard.keys import Identity, PublisherKey
from pericard.keys.files import write_private_file
from pericard.sealed import Description, SealedModel, Term, seal
from pericard.sealed.payload import _derive

SECONDS = 60
SEED = b"a hospital's own seed, 32 bytes."
WRITES = "write,writev,pwrite64,pwritev,pwritev2,sendto,sendmsg,sendmmsg,process_vm_writev"
OPENS = "open,openat,openat2,creat,memfd_create,memfd_secret,mknod,mknodat,shm_open"
BLIND = "sendfile,splice,vmsplice,tee,copy_file_range,io_uring_setup,io_submit"  # would move bytes unseen
TRACED = ",".join(f"?{name}" for name in f"{WRITES},{OPENS},{BLIND}".split(","))  # "?": not every kernel has each

LOAD = """
import sys
from pathlib import Path
from pericard import hardening
hardening.forbid_temporary_files()  # as the daemon does before torch is imported
import numpy as np
from pericard.keys import Identity, Publisher
from pericard.runtime import loader
from pericard.sealed import SealedModel
from pericard.trust import Pins, Policy, TrustState

folder, now = Path(sys.argv[1]), int(sys.argv[2])
policy = Policy(Pins.of(Publisher.read(folder / "vendor.pub")), TrustState(folder / "trust.json"), runtime="ab" * 32)
with SealedModel(folder / "model.sealed") as source:
    identity = Identity.read(folder / "identity.key")
    model = loader.load(source.verify(policy.publishers), identity, policy, device="cpu", now=now)
del identity, source
for count in (1, 4, 3):
    model(np.ones((count, 1, 64), np.float32))
print("loaded", flush=True)
sys.stdin.readline()
model.close()
print("closed", flush=True)
sys.stdin.readline()
"""
SEAL = """
import sys
from pathlib import Path
from pericard.keys import Identity, PublisherKey
from pericard.runtime import export
from pericard.sealed import Description, Output, SealedModel, Signal, Term, Tolerance, seal
from pericard.tensors import TensorSpec

folder, now = Path(sys.argv[1]), int(sys.argv[2])
about = Description(
    "tiny", "1", 1, 0, "exported", "Vendor", "tests", (TensorSpec("ecg", "float32", (-1, 1, 64)),),
    (Output(TensorSpec("score", "float32", (-1,))), Output(TensorSpec("timeline", "float32", (-1, 15)))),
    None, 4, (1, 4), {"cpu": Tolerance(1e-6, 1e-5)}, "ab" * 32, None,
)
recipient = Identity.read(folder / "identity.key").recipient
seal(
    folder / "new.sealed", about, export.pack(Path(sys.argv[3]), about),
    signer=PublisherKey.read(folder / "vendor.key"), terms=(Term(recipient, now, now + 9, 0),),
)
"""


@pytest.fixture(scope="module")
def needles(site: Path, tiny_pt2: Path, archive: Identity, publisher_key: PublisherKey) -> dict[str, bytes]:
    """What must not be found, and where it comes from in this process."""
    from pericard.runtime import pt2

    with SealedModel(site / "model.sealed") as source:
        model = source.verify([publisher_key.publisher])
    (grant,) = model.grants_for(archive.recipient.id)
    file_key = grant.unwrap(archive)
    weight = pt2.read(tiny_pt2).state_dict["conv.weight"].detach().numpy().tobytes()
    return {
        "weights": weight[:32],
        "file key": bytes(file_key),
        "payload key": bytes(_derive(file_key, model.manifest.file_id, b"payload", 32)),
        "seed": SEED,
        "seed, as in its file": base64.b64encode(SEED)[:40],
    }


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_pt2: Path,
    tiny_description: Description,
    publisher_key: PublisherKey,
    archive: Identity,
    now: int,
) -> Path:
    """A folder with a sealed model, the hospital's identity and the vendor's keys."""
    from pericard.runtime import export

    folder = tmp_path_factory.mktemp("site")
    hospital = Identity(SEED).recipient
    terms = (Term(archive.recipient, 0, now + 9999, 0), Term(hospital, 0, now + 9999, 0))
    packed = export.pack(tiny_pt2, tiny_description)
    seal(folder / "model.sealed", tiny_description, packed, signer=publisher_key, terms=terms)
    publisher_key.publisher.write(folder / "vendor.pub")
    write_private_file(folder / "vendor.key", "pericard-publisher-key-v1", bytes(range(64)), comment="private")
    write_private_file(folder / "identity.key", "pericard-identity-v1", SEED, comment="private")
    return folder


def environment() -> dict[str, str]:
    """Without what would write on its own: byte code, coverage data."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTEST"))}
    return kept | {"PYTHONDONTWRITEBYTECODE": "1"}


# --- files


ALWAYS = re.compile(r"/dev/(?:null|tty)|/proc/self/(?:task/\d+/)?comm")


def traced(tmp_path: Path, code: str, *words: object) -> list[str]:
    """Run code under strace; the lines of system calls that write, or open for writing."""
    if shutil.which("strace") is None:
        if "CI" in os.environ:
            pytest.fail("strace is missing; `make system` installs it")
        pytest.skip("strace is missing")
    out = tmp_path / "calls"
    done = subprocess.run(
        [
            "strace", "-f", "-qq", "-y", "-xx", "-s", str(1 << 24), "-o", out, "-e", f"trace={TRACED}",
            sys.executable, "-c", code, *map(str, words),
        ],
        input="\n\n", capture_output=True, text=True, timeout=SECONDS, check=False, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out.read_text().splitlines()


def unescaped(text: str) -> str:
    return re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), text)


def opened_for_writing(calls: list[str]) -> set[str]:
    """Paths that were opened for writing, but for what Python and the system open in every process."""
    found = set()
    for call in calls:
        made = re.search(r"(?:open\w*|creat|mem\w+|mknod\w*)\((.*)", call)
        if made and re.search(r"O_WRONLY|O_RDWR|O_CREAT|creat\(|mem\w+\(|mknod", call) and "ENOENT" not in call:
            found.add(unescaped(next(iter(re.findall(r'"([^"]*)"', made[1])), "nameless")))
    return {path for path in found if not ALWAYS.fullmatch(path) and not is_probe(path, calls)}


def is_probe(path: str, calls: list[str]) -> bool:
    """Whether Python only tried where temporary files could go: it writes "blat" and removes the file."""
    written = [call for call in map(unescaped, calls) if f"<{path}>" in call and re.search(r"\bp?write", call)]
    return path.startswith(tempfile.gettempdir()) and bool(written) and all('"blat"' in call for call in written)


def holds(calls: list[str], needle: bytes) -> bool:
    """Whether a needle was written; a call that is cut into two is seen by its halves."""
    halves = ["".join(f"\\x{byte:02x}" for byte in part) for part in (needle[:16], needle[-16:])]
    return any(half in call for call in calls for half in halves)


def test_loading_opens_no_file_for_writing_and_writes_no_secret(
    site: Path, needles: dict[str, bytes], tmp_path: Path, now: int
) -> None:
    calls = traced(tmp_path, LOAD, site, now)

    assert any(r"\x6c\x6f\x61\x64\x65\x64" in call for call in calls)  # it was really watched
    assert opened_for_writing(calls) == set()
    assert [name for name, needle in needles.items() if holds(calls, needle)] == []
    assert not [call for call in calls if re.search(rf"\b(?:{BLIND.replace(',', '|')})\(", call)]


def test_sealing_writes_ciphertext_only_and_only_beside_its_target(
    site: Path, tiny_pt2: Path, needles: dict[str, bytes], tmp_path: Path, now: int
) -> None:
    calls = traced(tmp_path, SEAL, site, now, tiny_pt2)
    paths = opened_for_writing(calls)

    assert (site / "new.sealed").stat().st_size > 4096
    assert {re.sub(r"\.new\.sealed\.\w+\.tmp$", ".new.sealed.*", path) for path in paths} <= {
        str(site), f"{site}/.new.sealed.*",
    }  # fmt: skip
    assert [name for name, needle in needles.items() if holds(calls, needle)] == []
    assert not [call for call in calls if re.search(rf"\b(?:{BLIND.replace(',', '|')})\(", call)]
    assert [path.name for path in site.iterdir() if path.name.startswith(".")] == []


def test_a_secret_that_is_written_would_be_seen(tmp_path: Path) -> None:
    """The witness can speak."""
    code = "import os, sys; os.write(os.open(sys.argv[1], os.O_CREAT | os.O_RDWR), bytes(range(32)))"
    calls = traced(tmp_path, code, tmp_path / "leak")

    assert holds(calls, bytes(range(32)))
    assert str(tmp_path / "leak") in opened_for_writing(calls)


# --- memory


def copies(process: subprocess.Popen[Any], needles: dict[str, bytes]) -> dict[str, int]:
    """How often each needle stands in another process's memory."""
    found = dict.fromkeys(needles, 0)
    maps = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    with Path(f"/proc/{process.pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            place, flags, *_ = line.split()
            if "r" not in flags or line.endswith(("[vvar]", "[vvar_vclock]", "[vsyscall]")):
                continue
            begin, end = (int(part, 16) for part in place.split("-"))
            memory.seek(begin)
            data = memory.read(end - begin)
            for name, needle in needles.items():
                found[name] += data.count(needle)
    return found


@pytest.fixture
def watched(site: Path, now: int) -> Any:
    """A process that loads, and waits; then closes, and waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOAD, str(site), str(now)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def proceed(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    if word != "loaded":
        process.stdin.write("\n")
        process.stdin.flush()
    assert process.stdout.readline() == word + "\n"


def test_memory_holds_the_weights_once_and_no_key_and_after_closing_nothing(
    watched: subprocess.Popen[str], needles: dict[str, bytes]
) -> None:
    proceed(watched, "loaded")
    loaded = copies(watched, needles)
    assert loaded.pop("weights") == 1
    assert loaded == dict.fromkeys(loaded, 0)

    proceed(watched, "closed")
    assert copies(watched, needles) == dict.fromkeys(needles, 0)


def test_a_secret_in_memory_would_be_found() -> None:
    """The witness can speak: a secret that arrives masked, and is kept."""
    needle = os.urandom(32)
    code = (
        "import sys; secret = bytes(255 - byte for byte in bytes.fromhex(sys.argv[1])); "
        "print('loaded', flush=True); sys.stdin.readline()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, bytes(255 - byte for byte in needle).hex()],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        proceed(process, "loaded")
        assert copies(process, {"secret": needle})["secret"] >= 1
    finally:
        process.kill()
        process.communicate()
