"""Each single system call that touches the log fails once, or is the last one: nothing acknowledged is lost (P10)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NoReturn

import pytest

from pericard.audit import AuditLog, records, segment
from pericard.audit.verify import verify
from pericard.keys import LogKey

KEY = LogKey(bytes(range(64)))
MOST_CALLS = 40  # of one kind: if there are more, the test does not see its end

WRITER = textwrap.dedent(
    """
    import os
    import sys
    from pathlib import Path
    from pericard.audit import AuditLog
    from pericard.errors import AuditUnavailable
    from pericard.keys import LogKey

    def again(work):
        for _ in range(5):
            try:
                return work()
            except AuditUnavailable:
                os.write(1, b"refused\\n")

    def group(turn):
        log.reopen()
        for entry in log.commit([{"turn": turn}] * (turn + 1)):
            os.write(1, b"ack %d\\n" % entry.index)

    log = again(lambda: AuditLog.open(Path(sys.argv[1]), key=LogKey(bytes(range(64))), checkpoint_every=2))
    for turn in range(4):
        again(lambda: group(turn))
    log.close()
    os.write(1, b"closed\\n")
    """
)
CALLS = {"write": "write", "fdatasync": "fdatasync", "fsync": "fsync", "rename": "rename,renameat,renameat2",
         "unlink": "unlink,unlinkat", "ftruncate": "ftruncate", "openat": "openat"}  # fmt: skip
HOW = {"EIO": "error=EIO", "ENOSPC": "error=ENOSPC", "death": "signal=KILL", "short": "retval=7"}


def lacking(reason: str) -> NoReturn:
    """In CI, what a test needs and cannot have is a failure."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def run(directory: Path, calls: str, how: str, which: int) -> tuple[list[bytes], bool]:
    """The writer's words with one call to the log's files changed; and whether there was such a call."""
    strace = shutil.which("strace") or lacking("strace is not installed")
    trace = directory.with_name("trace")
    touched = [
        directory,
        *(directory / name for name in (segment.file_name(0), segment.file_name(2), ".checkpoint.tmp")),
    ]
    if how == HOW["short"]:
        touched.pop()  # the kernel would say that it wrote what it did not, and a buffered writer would go on behind it
    paths = [word for path in touched for word in ("-P", str(path))]
    inject = f"inject={calls}:{how}:when={which}"
    command = [strace, "-f", "-qq", "-o", str(trace), *paths, "-e", f"trace={calls}", "-e", inject]
    ran = subprocess.run(
        [*command, sys.executable, "-B", "-c", WRITER, str(directory)], capture_output=True, timeout=60, check=False
    )
    text = trace.read_text("utf-8", "replace") if trace.exists() else ""
    if not text and ran.returncode:
        lacking("strace may not trace here")
    return ran.stdout.split(b"\n")[:-1], "INJECTED" in text or "killed by SIGKILL" in text


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, how) for name in CALLS for how in ("EIO", "death")),
        *((name, "ENOSPC") for name in ("write", "fdatasync", "fsync", "rename")),
        ("write", "short"),
    ],
)
def test_whichever_call_it_is_nothing_acknowledged_is_lost(quick: Path, name: str, how: str) -> None:
    for which in range(1, MOST_CALLS):
        directory = quick / f"{which}" / "log"
        directory.parent.mkdir()
        with AuditLog.open(directory, key=KEY) as log:
            log.commit([{"turn": "before"}] * 2)
        with (directory / segment.file_name(0)).open("ab") as file:
            file.write(b"\5\0\0")  # a torn tail, so that its repair is met too
        said, met = run(directory, CALLS[name], HOW[how], which)
        if not met:
            assert said[-1] == b"closed"
            assert which > 1 or name == "ftruncate", "or nothing was tried"
            return
        acknowledged = [int(line.split()[1]) for line in said if line.startswith(b"ack")]
        assert acknowledged == sorted(set(acknowledged))
        with AuditLog.open(directory, key=KEY) as log:  # after whatever happened
            size = log.next_index
        assert size > max(acknowledged, default=1)
        assert verify(directory, verifier=KEY.verifier).size == size
        turns = [record["turn"] for _, record in records(directory)]
        whole = [turn for turn in range(4) for _ in range(turn + 1)]
        assert turns[:2] == ["before"] * 2
        if how != "death":
            assert said[-1] == b"closed", "it went on by itself"
            assert (b"refused" in said) or turns[2:] == whole
            assert turns[2:] == whole, "each group once, and none that was refused"
        else:
            assert turns[2:] == whole[: len(turns) - 2], "whole groups, from the first on"
        shutil.rmtree(directory.parent)
    raise AssertionError("there are more calls than were tried")
