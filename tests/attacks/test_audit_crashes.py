"""Crashes and failing disks (P10): every way a write can fail or a process can die, with nothing acknowledged lost."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import NoReturn

import pytest

from pericard.audit import AuditLog, pruned, records, segment
from pericard.audit.reading import raw_records
from pericard.audit.verify import verify
from pericard.keys import LogKey

KEY = LogKey(bytes(range(64)))


def make(directory: Path, *groups: int) -> None:
    """Append groups of so many records and close."""
    with AuditLog.open(directory, key=KEY) as log:
        for count in groups:
            log.commit([{"event": "predict"}] * count)


def newest(directory: Path) -> Path:
    return segment.listing(directory)[-1].path


def test_a_group_torn_at_any_byte_is_cut_and_nothing_acknowledged_is_lost(quick: Path) -> None:
    directory = quick / "log"
    make(directory, 1, 2)
    (directory / "checkpoint").unlink()
    path = newest(directory)
    whole = path.read_bytes()
    start = next(segment.groups(whole, 0, newest=True)).end
    kept = list(raw_records(directory))[:1]
    for cut in range(start, len(whole)):
        copy = quick / "copy"
        shutil.copytree(directory, copy)
        newest(copy).write_bytes(whole[:cut])
        assert verify(copy, verifier=KEY.verifier).torn == cut - start
        assert list(raw_records(copy)) == kept
        with AuditLog.open(copy, key=KEY) as log:
            assert (log.next_index, log.recovered_bytes) == (1, cut - start)
            log.commit([{"event": "recovered", "bytes": log.recovered_bytes}])
        assert list(raw_records(copy))[:1] == kept
        assert verify(copy, verifier=KEY.verifier).size == 2
        shutil.rmtree(copy)


WRITER = textwrap.dedent(
    """
    import os
    import sys
    from pathlib import Path
    from pericard.audit import AuditLog
    from pericard.errors import AuditUnavailable
    from pericard.keys import LogKey

    def say(word, index):
        # unbuffered: what was said was said before whatever comes next
        os.write(1, b"%s %d\\n" % (word, index))

    log = AuditLog.open(Path(sys.argv[1]), key=LogKey(bytes(range(64))), segment_bytes=20_000, checkpoint_every=5)
    say(b"open", log.next_index)
    for turn in range(int(sys.argv[2])):
        group = [{"turn": turn, "item": item} for item in range(turn % 4 + 1)]
        try:
            entries = log.commit(group)
        except AuditUnavailable:
            say(b"refused", turn)
            for attempt in range(5):
                try:
                    log.reopen()
                    break
                except AuditUnavailable:
                    say(b"still", attempt)
        else:
            for entry in entries:
                say(b"ack", entry.index)
    log.close()
    say(b"closed", log.next_index)
    """
)


def words(output: bytes, word: bytes) -> list[int]:
    """Numbers of the whole lines that begin with a word."""
    return [int(line.split()[1]) for line in output.split(b"\n")[:-1] if line.startswith(word + b" ")]


def run_writer(directory: Path, turns: int, *prefix: str) -> bytes:
    command = [*prefix, sys.executable, "-c", WRITER, str(directory), str(turns)]
    ran = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert not ran.stderr, ran.stderr.decode()
    return ran.stdout


def check_after(directory: Path, output: bytes, earlier: list[bytes]) -> list[bytes]:
    """Everything acknowledged is there, in order, and the log verifies; returns all records."""
    found = [data for _, data in raw_records(directory)]
    acknowledged = words(output, b"ack")
    assert found[: len(earlier)] == earlier
    assert max(acknowledged, default=-1) < len(found)
    if found:
        assert verify(directory, verifier=KEY.verifier).size == len(found)
    return found


def test_kill_9_at_any_time_loses_nothing_acknowledged(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    rng = random.Random(9)
    kept: list[bytes] = []
    acknowledged = 0
    for _ in range(10):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(directory), "1000000"], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            seen = writer.stdout.readline()
            assert seen.startswith(b"open")
            time.sleep(rng.random() * 0.2)
            writer.kill()
            seen += writer.stdout.read()
        kept = check_after(directory, seen, kept)
        acknowledged += len(words(seen, b"ack"))
    with AuditLog.open(directory, key=KEY) as log:
        assert log.next_index == len(kept) >= acknowledged > 0


def test_a_log_verifies_while_it_is_written(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(directory), "1000000"], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(3)]
        sizes = []
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            lines += [writer.stdout.readline() for _ in range(5)]
            acknowledged = max(words(b"".join(lines), b"ack"))
            sizes.append(verify(directory, verifier=KEY.verifier).size)
            assert sizes[-1] > acknowledged
            assert len(list(records(directory, max(0, sizes[-1] - 5)))) >= 5 or sizes[-1] < 5
        writer.kill()
        writer.stdout.read()
    assert len(sizes) > 3
    assert sizes == sorted(sizes)


def component(name: str) -> str:
    """The path of a program that these tests need; in CI its absence is a failure."""
    found = shutil.which(name)
    if found is None:
        lacking(f"{name} is not installed")
    return found


def lacking(reason: str) -> NoReturn:
    """In CI, what a test needs and cannot have is a failure."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def strace(injection: str) -> list[str]:
    """A command prefix under which system calls fail or kill: ``<calls>:<what>:when=<which>``."""
    calls = injection.partition(":")[0]
    options = ["-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={injection}"]
    prefix = [component("strace"), *options]
    if subprocess.run([*prefix, "true"], capture_output=True, timeout=30, check=False).returncode:
        lacking("strace may not trace here")
    return prefix


@pytest.mark.parametrize(
    "injection",
    [
        "fdatasync:error=EIO:when=3",
        "fdatasync:error=EIO:when=1",
        "fdatasync:error=ENOSPC:when=2+4",
        "fdatasync:error=EIO:when=2..4",
        "fsync:error=EIO:when=4..7",
        "rename,renameat,renameat2:error=ENOSPC:when=1..3",
    ],
)
def test_a_failing_sync_refuses_then_recovers(tmp_path: Path, injection: str) -> None:
    directory = tmp_path / "log"
    output = run_writer(directory, 12, *strace(injection))
    refused = words(output, b"refused")
    assert refused
    assert words(output, b"closed")
    assert words(output, b"ack") == list(range(words(output, b"closed")[0]))
    turns = [fields["turn"] for _, fields in records(directory)]
    assert not set(refused) & set(turns)  # what was refused is not part of the log
    check_after(directory, output, [])


def test_a_failed_group_does_not_come_back_after_a_crash(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    # the third sync fails although everything was written, and the process dies before it can reopen
    script = WRITER.replace('say(b"refused", turn)', "os._exit(9)")
    prefix = strace("fdatasync:error=EIO:when=3")
    subprocess.run(
        [*prefix, sys.executable, "-c", script, directory, "12"], capture_output=True, timeout=60, check=False
    )
    assert [fields["turn"] for _, fields in records(directory)] == [0, 1, 1]
    with AuditLog.open(directory, key=KEY) as log:
        assert log.next_index == 3


CALLS = [
    *(f"write:signal=KILL:when={n}" for n in (1, 2, 3, 5, 8, 13)),
    *(f"fdatasync:signal=KILL:when={n}" for n in (1, 2, 4, 7)),
    *(f"fsync:signal=KILL:when={n}" for n in (1, 2, 3, 4, 5)),
    *(f"rename,renameat,renameat2:signal=KILL:when={n}" for n in (1, 2)),
    "unlink,unlinkat:signal=KILL:when=1",
    "ftruncate:signal=KILL:when=1",
    "flock:signal=KILL:when=1",
]


@pytest.mark.parametrize("injection", CALLS)
def test_death_at_any_system_call_loses_nothing_acknowledged(tmp_path: Path, injection: str) -> None:
    directory = tmp_path / "log"
    make(directory, 2)
    kept = [data for _, data in raw_records(directory)]
    with newest(directory).open("ab") as file:
        file.write(b"\5\0\0")  # something to recover, so that recovery dies too
    output = run_writer(directory, 9, *strace(injection))
    assert not words(output, b"closed")  # it did die
    kept = check_after(directory, output, kept)
    output = run_writer(directory, 3)
    assert words(output, b"closed") == [len(kept) + 6]
    check_after(directory, output, kept)


def test_nothing_is_acknowledged_before_it_was_synced(tmp_path: Path) -> None:
    """The order of system calls, since no killed process can show a sync that is missing."""
    trace = tmp_path / "trace"
    calls = "openat,write,fdatasync,fsync,rename,renameat,renameat2"
    prefix = [component("strace"), "-f", "-qq", "-y", "-o", str(trace), "-e", f"trace={calls}"]
    run_writer(tmp_path / "log", 80, *prefix)
    written = named = published = True  # on disk: the newest group, the newest segment's name, the checkpoint's data
    seen = []
    for line in trace.read_text("utf-8", "replace").splitlines():
        call = line.split(maxsplit=1)[1]
        if call.startswith("openat") and "O_CREAT" in call and ".log" in call:
            named = False
        elif call.startswith("fsync") and call.partition(">")[0].endswith("/log"):
            named = True
        elif call.startswith("write") and ".log>" in call:
            assert named
            written = False
            seen.append("group")
        elif call.startswith("fdatasync") and ".log>" in call:
            written = True
        elif call.startswith("write") and ".checkpoint.tmp>" in call:
            assert written
            published = False
        elif call.startswith("fsync") and ".checkpoint.tmp>" in call:
            published = True
        elif call.startswith("rename") and ".checkpoint.tmp" in call:
            assert published
            seen.append("checkpoint")
        elif call.startswith("write") and '"ack' in call:
            assert written
            seen.append("ack")
    assert (seen.count("group"), seen.count("ack"), seen.count("checkpoint")) == (80, 200, 16)
    assert len(segment.listing(tmp_path / "log")) > 1


def test_recovery_syncs_what_it_reads_and_what_it_cuts(tmp_path: Path) -> None:
    """The old process may have died between a write and its sync, and a cut must not come undone."""
    directory = tmp_path / "log"
    make(directory, 2)
    torn = newest(directory)
    with torn.open("ab") as file:
        file.write(b"\5\0\0")
    trace = tmp_path / "trace"
    calls = "openat,read,fsync,fadvise64,ftruncate"
    run_writer(directory, 1, component("strace"), "-f", "-qq", "-y", "-o", str(trace), "-e", f"trace={calls}")
    done = [line.split(maxsplit=1)[1] for line in trace.read_text("utf-8", "replace").splitlines() if ".log" in line]
    on_torn = [call.partition("(")[0] for call in done if f"{torn.name}>" in call.partition(")")[0]]
    made = [call for call in done if call.startswith("openat") and "O_CREAT" in call]
    steps = [name for name in on_torn if name != "openat"]
    assert steps[:3] == ["fsync", "fadvise64", "read"]
    assert steps[-2:] == ["ftruncate", "fsync"]
    assert len(made) == 1
    assert done.index(made[0]) > max(place for place, call in enumerate(done) if call.startswith("ftruncate"))


def test_a_really_full_file_system_refuses_then_recovers_without_restart(tmp_path: Path) -> None:
    """On a small tmpfs in a namespace of its own: fill it, be refused, make room, go on."""
    directory = tmp_path / "mount"
    directory.mkdir()
    script = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path
        from pericard.audit import AuditLog, records
        from pericard.audit.verify import verify
        from pericard.errors import AuditUnavailable
        from pericard.keys import LogKey

        root, key = Path(sys.argv[1]), LogKey(bytes(range(64)))
        (root / "ballast").write_bytes(bytes(64 * 1024))
        log = AuditLog.open(root / "log", key=key)
        done = []
        try:
            for turn in range(100_000):
                log.commit([{"turn": turn, "text": "x" * 500}] * 3)
                done += [turn] * 3
        except AuditUnavailable as error:
            assert "no space left on device" in error.message, error.message
        assert done and not log.available
        for _ in range(3):
            try:
                log.reopen()
                log.commit([{"turn": -1, "text": "x" * 9000}])
                raise SystemExit("there should be no space")
            except AuditUnavailable:
                pass
        (root / "ballast").unlink()
        log.reopen()
        log.commit([{"turn": turn + 1}])
        log.close()
        assert [fields["turn"] for _, fields in records(root / "log")] == [*done, turn + 1]
        print(verify(root / "log", verifier=key.verifier).size)
        """
    )
    mount = 'mount -t tmpfs -o size=512k none "$1" && exec "$2" -c "$3" "$1"'
    namespace = [component("unshare"), "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run(
        [*namespace, 'mount -t tmpfs none "$1"', "sh", directory], capture_output=True, timeout=30, check=False
    ).returncode:
        lacking("no mount namespace may be made here")
    ran = subprocess.run(
        [*namespace, mount, "sh", directory, sys.executable, script], capture_output=True, timeout=90, check=False
    )
    assert ran.returncode == 0, ran.stderr.decode()
    assert int(ran.stdout) > 100


def test_two_processes_never_write_one_log(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    command = [sys.executable, "-c", WRITER, str(directory), "40"]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    results = [(*writer.communicate(timeout=60), writer.returncode) for writer in writers]
    winners = [output for output, _, code in results if code == 0]
    assert winners
    for _, error, code in results:
        assert code == 0 or b"another process writes it" in error
    assert verify(directory, verifier=KEY.verifier).size == 100 * len(winners)


PRUNER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from pericard.audit import pruned
    directory = Path(sys.argv[1])
    for part in pruned.prunable(directory, before="2999", below=10**9):
        pruned.prune(directory, part)
    print("done")
    """
)


@pytest.mark.parametrize("what", ["signal=KILL", "error=EIO"])
@pytest.mark.parametrize("call", ["write:when=2", "fsync:when=1", "fsync:when=4", "rename:when=2", "unlink:when=1"])
def test_death_or_a_failing_disk_while_pruning_leaves_a_whole_log(quick: Path, call: str, what: str) -> None:
    directory = quick / "log"
    with AuditLog.open(directory, key=KEY, segment_bytes=2000) as log:
        for _ in range(30):
            log.commit([{"event": "predict"}] * 2)
    records_before = dict(raw_records(directory))
    names, _, which = call.partition(":")
    every = {"rename": "rename,renameat,renameat2", "unlink": "unlink,unlinkat"}.get(names, names)
    command = [*strace(f"{every}:{what}:{which}"), sys.executable, "-B", "-c", PRUNER, str(directory)]
    ran = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert b"done" not in ran.stdout, "it was meant to fail"
    assert verify(directory, verifier=KEY.verifier).size == 60
    left = dict(raw_records(directory))
    assert left == {index: data for index, data in records_before.items() if index in left}
    assert len(left) + pruned.beginning(directory) == 60
    with AuditLog.open(directory, key=KEY) as log:
        assert log.next_index == 60
        assert log.recovered_bytes == 0
    again = subprocess.run([sys.executable, "-B", "-c", PRUNER, directory], capture_output=True, timeout=60, check=True)
    assert again.stdout == b"done\n"
    assert verify(directory, verifier=KEY.verifier).first > 40
