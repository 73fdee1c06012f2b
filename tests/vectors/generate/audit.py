"""Make the audit log's test vectors: ``python tests/vectors/generate/audit.py [directory]``.

One small function per log, one failure per log. Everything is fixed (key, times), so a second run makes the same bytes.
What the files mean stands in ``tests/vectors/audit/README.md``.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from pericard.audit import AuditLog, checkpoint, default_origin, note, pruned, record, segment
from pericard.audit.proof import CompactRange, consistency_proof, inclusion_proof, leaf_hash
from pericard.audit.receipt import receipt
from pericard.keys import LogKey

SECRET = bytes(range(64))
KEY = LogKey(SECRET)
STRANGER = LogKey(bytes(64))
ORIGIN = default_origin(KEY.verifier)
START = 1_790_000_000_000_000_000  # 2026-09-21T14:13:20Z
HEAD_ROOM = 9

Group = tuple[list[bytes], bytes]
LOGS: dict[str, tuple[Callable[[Path], None], dict[str, object]]] = {}


def log(
    code: str | None, *, size: int = 0, writer: str | None = None
) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Register a vector.

    Args:
        code: the error's code; None if it verifies.
        size: the number of records that verify.
        writer: "goes on" where the log's own writer, when it opens the log, notices nothing.
    """

    def register(make: Callable[[Path], None]) -> Callable[[Path], None]:
        expected = {"why": (make.__doc__ or "").strip(), "code": code} | ({} if code else {"size": size})
        LOGS[make.__name__.replace("_", "-")] = (make, expected | ({"writer": writer} if writer else {}))
        return make

    return register


def predict(index: int) -> dict[str, object]:
    """A record as the engine might make it."""
    opening = record.opening_key(KEY.commitment_key, index)
    return {
        "event": "predict",
        "model": "ecg-anomaly",
        "input": record.commit(opening, "input", b"input %d" % index),
        "answer": record.commit(opening, "answer", b"answer %d" % index),
    }


def write_whole(directory: Path) -> None:
    """Two sessions: records 0 | 1 2 3 in one segment, 4 5 in the next."""
    ticks = itertools.count(START, 1_000_000)
    for groups in ([[{"event": "start"}], [predict(1), predict(2), predict(3)]], [[{"event": "start"}, predict(5)]]):
        with AuditLog.open(directory, key=KEY, clock=lambda: next(ticks)) as opened:
            for group in groups:
                opened.commit(group)
    first_signature_only(directory)


def first_signature_only(directory: Path) -> None:
    """Take the second signature off the published head: ML-DSA draws random numbers, and these files are fixed."""
    published = directory / note.FILE
    text, _, lines = published.read_bytes().partition(b"\n\n")
    published.write_bytes(text + b"\n\n" + lines.splitlines(keepends=True)[0])


def path(directory: Path, first: int = 0) -> Path:
    return directory / segment.file_name(first)


def read(directory: Path, first: int = 0) -> list[Group]:
    data = path(directory, first).read_bytes()
    return [(group.records, group.head) for group in segment.groups(data, first, newest=True)]


def write(directory: Path, groups: Sequence[Group], first: int = 0) -> None:
    data = b""
    for records, head in groups:
        data += b"".join(segment.frame(segment.RECORD, part) for part in records) + segment.frame(segment.HEAD, head)
    path(directory, first).write_bytes(data)


def sign(records: Sequence[bytes], *, key: LogKey = KEY, origin: str = ORIGIN) -> bytes:
    tree = CompactRange()
    for part in records:
        tree.append(leaf_hash(part))
    return checkpoint.sign(origin, tree.size, tree.root(), key)


def edit_second_group(directory: Path, edit: Callable[[list[bytes]], list[bytes]]) -> None:
    """Change the records of the group 1 2 3 and leave its head as it was signed."""
    write_whole(directory)
    (first, first_head), (second, second_head) = read(directory)
    write(directory, [(first, first_head), (edit(second), second_head)])


def know(directory: Path, head: bytes) -> None:
    """Add a head that is known from elsewhere."""
    (directory / "known-head").write_bytes(head)


@log(None, size=6)
def whole(directory: Path) -> None:
    """Nothing is wrong."""
    write_whole(directory)


def write_pruned(directory: Path) -> None:
    """The whole log and a third session, pruned up to record 4."""
    write_whole(directory)
    with AuditLog.open(directory, key=KEY, clock=lambda: START + 10_000_000) as opened:
        opened.commit([{"event": "start"}])
    first_signature_only(directory)
    pruned.prune(directory, segment.listing(directory)[0])


@log(None, size=7)
def pruned_log(directory: Path) -> None:
    """Records 0 to 3 were pruned; their leaf hashes lead to the heads behind them."""
    write_pruned(directory)


@log("audit-record-altered")
def pruned_leaf_altered(directory: Path) -> None:
    """One leaf hash of a pruned record is another."""
    write_pruned(directory)
    leaves = directory / f"{0:020d}.leaves"
    data = bytearray(leaves.read_bytes())
    data[40] ^= 1
    leaves.write_bytes(data)


@log("audit-log-truncated")
def pruned_leaves_missing(directory: Path) -> None:
    """Not even the leaf hashes of the pruned records are there."""
    write_pruned(directory)
    (directory / f"{0:020d}.leaves").unlink()


@log("audit-log-invalid")
def pruned_leaves_cut(directory: Path) -> None:
    """The leaf hashes end in half of one."""
    write_pruned(directory)
    leaves = directory / f"{0:020d}.leaves"
    leaves.write_bytes(leaves.read_bytes()[:-16])


@log(None, size=6)
def torn_tail(directory: Path) -> None:
    """A crash cut a group short."""
    write_whole(directory)
    with path(directory, 4).open("ab") as file:
        file.write(segment.frame(segment.RECORD, b'{"event":"predict"}')[:-5])


@log(None, size=6)
def torn_tail_without_a_header(directory: Path) -> None:
    """A crash cut a group within its first frame's header."""
    write_whole(directory)
    with path(directory, 4).open("ab") as file:
        file.write(segment.frame(segment.RECORD, b"{}")[:5])


@log(None, size=6)
def torn_tail_of_zeros(directory: Path) -> None:
    """A power failure left sectors of zeros."""
    write_whole(directory)
    with path(directory, 4).open("ab") as file:
        file.truncate(2048)


@log(None, size=6)
def empty_newest_segment(directory: Path) -> None:
    """A new session has not written yet."""
    write_whole(directory)
    path(directory, 6).touch()


@log("audit-record-altered")
def record_edited(directory: Path) -> None:
    """A record was edited and its frame's checksum made right."""
    edit_second_group(directory, lambda group: [group[0], group[1].replace(b"ecg-anomaly", b"ecg-another"), group[2]])


@log("audit-record-altered")
def record_removed(directory: Path) -> None:
    """A record was removed."""
    edit_second_group(directory, lambda group: group[1:])


@log("audit-record-altered")
def records_swapped(directory: Path) -> None:
    """Two records were exchanged."""
    edit_second_group(directory, lambda group: [group[1], group[0], group[2]])


@log("audit-record-altered")
def record_repeated(directory: Path) -> None:
    """A record was repeated."""
    edit_second_group(directory, lambda group: [*group, group[2]])


@log("audit-record-altered")
def record_inserted(directory: Path) -> None:
    """A made-up record, with the right index, was put behind the others of its group."""
    made_up = record.encode({"event": "predict", "index": 4, "time": record.stamp(START), "v": 1})
    edit_second_group(directory, lambda group: [*group, made_up])


@log("audit-record-altered")
def group_removed(directory: Path) -> None:
    """A whole group was removed together with its head."""
    write_whole(directory)
    write(directory, read(directory)[1:])


@log("audit-record-altered")
def checksum_wrong(directory: Path) -> None:
    """A frame's checksum does not match."""
    write_whole(directory)
    data = bytearray(path(directory).read_bytes())
    data[4] ^= 1
    path(directory).write_bytes(data)


@log("audit-record-altered")
def type_unknown(directory: Path) -> None:
    """A frame is of a type that this version does not have."""
    write_whole(directory)
    data = bytearray(path(directory, 4).read_bytes())
    data[8] = 3
    path(directory, 4).write_bytes(data)


@log("audit-record-altered")
def length_over_the_limit(directory: Path) -> None:
    """A record's frame declares more than 64 KiB."""
    write_whole(directory)
    with path(directory, 4).open("ab") as file:
        file.write((65537).to_bytes(4, "little") + bytes(4) + b"\1")


@log("audit-record-altered")
def head_longer_than_written(directory: Path) -> None:
    """The last head's frame declares one byte more than there is: no torn write leaves that."""
    write_whole(directory)
    data = bytearray(path(directory, 4).read_bytes())
    at = len(data) - len(read(directory, 4)[-1][1]) - HEAD_ROOM
    data[at] += 1
    path(directory, 4).write_bytes(data)


@log("audit-record-altered")
def head_without_records(directory: Path) -> None:
    """A head was repeated."""
    write_whole(directory)
    (first, first_head), rest = read(directory)
    write(directory, [(first, first_head), ([], first_head), rest])


@log("audit-record-altered")
def head_altered(directory: Path) -> None:
    """The second head's size was changed after it was signed."""
    write_whole(directory)
    first, (records, head) = read(directory)
    write(directory, [first, (records, head.replace(b"\n4\n", b"\n5\n"))])


@log("audit-record-altered")
def head_by_a_stranger(directory: Path) -> None:
    """The last head is signed by another key."""
    write_whole(directory)
    before = [part for records, _ in read(directory) for part in records]
    [(records, _)] = read(directory, 4)
    write(directory, [(records, sign([*before, *records], key=STRANGER))], 4)


@log("audit-record-altered", writer="goes on")
def signature_of_an_inner_head_altered(directory: Path) -> None:
    """The second head of three has the third one's signature; the third still proves every record."""
    write_whole(directory)
    first, (records, head) = read(directory)
    [(_, last)] = read(directory, 4)
    write(directory, [first, (records, head.split(b"\n\n")[0] + b"\n\n" + last.split(b"\n\n")[1])])


@log("audit-record-altered")
def torn_in_the_middle(directory: Path) -> None:
    """A segment that is not the newest ends in a torn group."""
    write_whole(directory)
    with path(directory).open("ab") as file:
        file.write(b"\1\2\3")


@log("audit-record-altered", writer="goes on")
def record_not_canonical(directory: Path) -> None:
    """The log key's holder signed a record with a space in it."""
    spaced = b'{"index": 0,"time":"2026-09-21T14:13:20.000000Z","v":1}'
    write(directory, [([spaced], sign([spaced]))])


@log("audit-record-altered", writer="goes on")
def record_with_another_index(directory: Path) -> None:
    """The log key's holder signed a record that carries another record's index."""
    wrong = record.encode({"index": 1, "time": record.stamp(START), "v": 1})
    write(directory, [([wrong], sign([wrong]))])


@log("audit-record-altered", writer="goes on")
def record_of_another_version(directory: Path) -> None:
    """The log key's holder signed a record of version 2."""
    wrong = record.encode({"index": 0, "time": record.stamp(START), "v": 2})
    write(directory, [([wrong], sign([wrong]))])


@log("audit-record-altered", writer="goes on")
def record_without_a_time(directory: Path) -> None:
    """The log key's holder signed a record whose time has no microseconds."""
    wrong = record.encode({"index": 0, "time": "2026-09-21T14:13:20Z", "v": 1})
    write(directory, [([wrong], sign([wrong]))])


@log("audit-log-invalid")
def another_key(directory: Path) -> None:
    """The whole log is another key's, under this log's name."""
    with AuditLog.open(directory, origin=ORIGIN, key=STRANGER, clock=lambda: START) as opened:
        opened.commit([{"event": "start"}])
    (directory / "checkpoint").unlink()


@log("audit-log-invalid")
def another_origin(directory: Path) -> None:
    """The whole log is another one of the same key."""
    with AuditLog.open(directory, origin="log.example/other", key=KEY, clock=lambda: START) as opened:
        opened.commit([{"event": "start"}])
    (directory / "checkpoint").unlink()


@log("audit-log-invalid", writer="goes on")
def nothing_signed(directory: Path) -> None:
    """There are records and no head."""
    path(directory).write_bytes(segment.frame(segment.RECORD, b'{"event":"start"}'))


@log("audit-log-invalid")
def segments_overlap(directory: Path) -> None:
    """A segment begins before the one in front of it ends."""
    write_whole(directory)
    path(directory, 3).write_bytes(path(directory, 4).read_bytes())


@log("audit-log-invalid")
def foreign_segment(directory: Path) -> None:
    """A file that ends like a segment is not named like one."""
    write_whole(directory)
    (directory / "old.log").touch()


@log("audit-log-invalid")
def checkpoint_malformed(directory: Path) -> None:
    """The published head has an extension line."""
    write_whole(directory)
    note = (directory / "checkpoint").read_bytes()
    (directory / "checkpoint").write_bytes(note.replace(b"\n\n", b"\nextension\n\n"))


@log("audit-log-truncated")
def tail_removed(directory: Path) -> None:
    """The last group is gone; the published head still counts it."""
    write_whole(directory)
    path(directory, 4).unlink()


@log("audit-log-truncated", writer="goes on")
def tail_removed_with_the_checkpoint(directory: Path) -> None:
    """The last group and the published head are gone; a head known from elsewhere still counts it."""
    write_whole(directory)
    know(directory, (directory / "checkpoint").read_bytes())
    (directory / "checkpoint").unlink()
    path(directory, 4).unlink()


@log(None, size=4)
def tail_removed_and_nobody_knows(directory: Path) -> None:
    """The same, and no head left the machine: this cannot be noticed, which is why heads must leave."""
    tail_removed_with_the_checkpoint(directory)
    (directory / "known-head").unlink()


@log("audit-log-truncated")
def segment_missing(directory: Path) -> None:
    """The first segment is gone."""
    write_whole(directory)
    path(directory).unlink()


@log("audit-split-view", writer="goes on")
def rewritten(directory: Path) -> None:
    """The log key's holder rewrote the log; a head of the history before is known from elsewhere."""
    write_whole(directory)
    know(directory, read(directory)[1][1])
    shutil.copy(directory / "known-head", directory.parent / "kept")
    shutil.rmtree(directory)
    with AuditLog.open(directory, key=KEY, clock=lambda: START) as opened:
        opened.commit([{"event": "start"}] * 6)
    first_signature_only(directory)
    shutil.move(directory.parent / "kept", directory / "known-head")


NOT_RECORDS = [
    '{"a": 1}',
    '{"b":1,"a":1}',
    '{"a":1,"a":1}',
    '{"a":1.0}',
    '{"a":1e3}',
    '{"a":-0}',
    '{"a":NaN}',
    '{"a":9007199254740992}',
    '{"a":"\\u0061"}',
    '{"a":"\\/"}',
    '{"a":"\\u00E9"}',
    '{"a":"é"}',
    '{"a":"\\ud800"}',
    '{"":1}',
    '{"é":1}',
    '{"a":[[[[[[[[1]]]]]]]]}',
    '{"a":1}\n',
    "[]",
    "null",
    "",
]


def examples() -> dict[str, object]:
    """Values of every function that the specification defines, in one file."""
    leaves = [leaf_hash(bytes([index])) for index in range(11)]
    roots = [CompactRange()]
    for leaf in leaves:
        roots.append(roots[-1].copy())
        roots[-1].append(leaf)
    return {
        "log_public_key": KEY.verifier.public.hex(),
        "commitment_key": bytes(KEY.commitment_key).hex(),
        "origin": ORIGIN,
        "key_id": checkpoint.key_id(ORIGIN, KEY.verifier).hex(),
        "opening_keys": {str(at): record.opening_key(KEY.commitment_key, at).hex() for at in (0, 1, 2**40)},
        "commitments": [
            {"index": at, "label": label, "data": data.hex(), "commitment": record.commit(opened, label, data)}
            for at, data in ((0, b""), (7, b"input 7"))
            for opened in [record.opening_key(KEY.commitment_key, at)]
            for label in ("input", "answer")
        ],
        "leaves": [leaf.hex() for leaf in leaves],
        "roots": [tree.root().hex() for tree in roots],
        "inclusion": [
            {"index": at, "size": size, "proof": [part.hex() for part in inclusion_proof(leaves, at, size)]}
            for at, size in ((0, 1), (0, 2), (1, 3), (2, 3), (4, 7), (10, 11), (5, 11))
        ],
        "consistency": [
            {"old": old, "new": new, "proof": [part.hex() for part in consistency_proof(leaves, old, new)]}
            for old, new in ((1, 1), (1, 2), (2, 3), (3, 7), (4, 8), (6, 11), (8, 11))
        ],
        "canonical_records": [
            record.encode(fields).decode("ascii")
            for fields in (
                {"b": 1, "a": [True, False, None, -1, 2**53 - 1], "c": {"z": "", "y": {}}},
                {"text": '"\\/\b\f\n\r\t\0\x1f\x7f~'},
                {"text": "é\u2028\U0001f493"},
            )
        ],
        "not_records": NOT_RECORDS,
    }


def receipts(directory: Path) -> list[dict[str, object]]:
    """The receipt of every record of the whole log, with what opens its commitments."""
    found = []
    for index in range(6):
        made = receipt(directory, index)
        found.append(
            {
                "index": index,
                "record": made.record.decode("ascii"),
                "proof": [part.hex() for part in made.proof],
                "head": made.head.decode("utf-8"),
                "opening_key": record.opening_key(KEY.commitment_key, index).hex(),
                "input": f"input {index}" if b"input" in made.record else None,
                "answer": f"answer {index}" if b"answer" in made.record else None,
            }
        )
    return found


def refused_receipts(directory: Path) -> list[dict[str, object]]:
    """A receipt with one thing wrong each, and which part of it does not hold."""
    good, other = receipts(directory)[3], receipts(directory)[4]
    head, nodes = str(good["head"]), list(cast("list[str]", good["proof"]))
    foreign = checkpoint.sign(ORIGIN, 6, bytes(32), STRANGER).decode()
    altered = head.replace("\n6\n", "\n7\n")
    grown = checkpoint.sign(ORIGIN, 8, bytes(range(32)), KEY).decode()
    cases: list[tuple[str, str, dict[str, object]]] = [
        ("another member", "record", {"record": str(good["record"]).replace("ecg-anomaly", "ecg-anomalx")}),
        ("another record", "record", {"record": other["record"]}),
        ("another index", "record", {"record": str(good["record"]).replace('"index":3', '"index":2')}),
        ("a hash is missing", "record", {"proof": nodes[1:]}),
        ("a hash is too many", "record", {"proof": [*nodes, "00" * 32]}),
        ("hashes in another order", "record", {"proof": nodes[::-1]}),
        ("another record's proof", "record", {"proof": other["proof"]}),
        ("no proof", "record", {"proof": []}),
        ("a head of another tree", "record", {"head": grown}),
        ("a head altered after it was signed", "head", {"head": altered}),
        ("a head by another key", "head", {"head": foreign}),
        ("a head of another log", "head", {"head": checkpoint.sign("another", 6, bytes(32), KEY).decode()}),
        ("no head", "form", {"head": ""}),
        ("a head without a signature", "form", {"head": head.partition("\u2014")[0]}),
        ("a hash that is none", "form", {"proof": [*nodes[1:], "zz" * 32]}),
        ("spaces in the record", "form", {"record": str(good["record"]).replace(",", ", ")}),
        ("a record without an index", "form", {"record": '{"event":"predict","v":1}'}),
        ("another input", "input", {"input": "input 4"}),
        ("another answer", "answer", {"answer": "answer 4"}),
        ("another opening key", "input", {"opening_key": other["opening_key"]}),
    ]
    return [{"why": why, "part": part, **good, **change} for why, part, change in cases]


def heads() -> dict[str, object]:
    """Published heads, with both signatures; each run makes others, so what is kept is not made again."""
    second = KEY.verifier.second
    if second is None:
        raise AssertionError("a private key has both halves")
    tree = CompactRange()
    for at in range(6):
        tree.append(leaf_hash(b"%d" % at))
    plain = checkpoint.sign(ORIGIN, 6, tree.root(), KEY)
    good = checkpoint.attest(plain, KEY)
    other = checkpoint.attest(checkpoint.sign(ORIGIN, 5, tree.root(), KEY), KEY)
    line, strange = (signed[len(plain) :] for signed in (good, other))
    stranger = checkpoint.attest(checkpoint.sign(ORIGIN, 6, tree.root(), STRANGER), STRANGER)
    cases = {
        "both signatures": (True, good),
        "the second one alone": (False, plain.partition("\u2014".encode())[0] + line),
        "the first one alone": (False, plain),
        "the second one of another size": (False, plain + strange),
        "the second one twice, one of another size": (False, good + strange),
        "the second one by another key": (False, plain + stranger.splitlines(keepends=True)[-1]),
        "both, and a witness": (
            True,
            good + checkpoint.sign("w", 6, tree.root(), STRANGER).splitlines(keepends=True)[-1],
        ),
    }
    return {
        "second_public_key": second.hex(),
        "heads": [{"why": why, "opens": opens, "head": head.decode()} for why, (opens, head) in cases.items()],
    }


def write_json(target: Path, value: object) -> None:
    target.write_text(json.dumps(value, indent=1, ensure_ascii=True) + "\n", "ascii")


def generate(target: Path) -> None:
    """Write every vector below ``target``, replacing what an earlier run wrote."""
    logs = target / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    for name, (make, expected) in LOGS.items():
        directory = logs / name
        directory.mkdir(parents=True)
        make(directory)
        write_json(directory / "expected.json", expected)
    write_json(target / "examples.json", examples())
    write_json(target / "receipts.json", receipts(logs / "whole"))
    write_json(target / "refused-receipts.json", refused_receipts(logs / "whole"))
    if not (target / "published-heads.json").exists():
        write_json(target / "published-heads.json", heads())


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "audit")
