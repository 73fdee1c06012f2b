"""Notices: made and signed by the publisher, read in the order of the page, and nothing else is one."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pericard import canonical
from pericard.errors import BadNotice, BadSignature, PericardError, UntrustedPublisher
from pericard.keys import PublisherKey
from pericard.sealed import layout, notice, notices_in
from pericard.sealed.notice import Notice

ISSUED = 1_790_000_000


@pytest.fixture
def made(publisher_key: PublisherKey) -> bytes:
    return notice.make(publisher_key, "ecg", floor=7, issued=ISSUED)


@pytest.fixture
def packed(publisher_key: PublisherKey) -> Callable[..., bytes]:
    """A notice with other fields, signed all the same; ``domain`` and ``key`` too may be others."""

    def run(changes: dict[str, Any], *, domain: str = layout.NOTICE_DOMAIN, key: PublisherKey = publisher_key) -> bytes:
        fields = {
            "format": notice.FORMAT, "publisher": publisher_key.publisher.id, "model": "ecg", "floor": 7,
            "issued": ISSUED,
        }  # fmt: skip
        body = canonical.encode({name: value for name, value in {**fields, **changes}.items() if value is not ...})
        return struct.pack("<I", len(body)) + body + layout.pack_signatures(key.sign(domain, body))

    return run


def test_a_notice_says_what_its_publisher_withdrew(made: bytes, publisher_key: PublisherKey, tmp_path: Path) -> None:
    (tmp_path / "ecg.notice").write_bytes(made)
    found = notice.read(tmp_path / "ecg.notice", [publisher_key.publisher])

    assert found == Notice(publisher_key.publisher.id, "ecg", 7, ISSUED)
    assert len(made) < 4000


def test_its_bytes_are_those_of_the_page(made: bytes, packed: Callable[..., bytes]) -> None:
    length = int.from_bytes(made[:4], "little")
    assert canonical.decode(made[4 : 4 + length], limit=layout.MAX_NOTICE)["format"] == "pericard/notice/v1"
    assert packed({})[: 4 + length] == made[: 4 + length]


def test_only_a_pinned_publisher_withdraws(
    made: bytes, packed: Callable[..., bytes], publisher_key: PublisherKey, foreign_key: PublisherKey
) -> None:
    with pytest.raises(UntrustedPublisher, match="it: was not signed by a publisher that this site pinned"):
        notice.verify(made, [foreign_key.publisher], subject="it")
    with pytest.raises(UntrustedPublisher):
        notice.verify(made, [], subject="it")
    with pytest.raises(BadNotice, match="names another publisher"):  # also among pinned ones
        notice.verify(packed({}, key=foreign_key), [foreign_key.publisher, publisher_key.publisher], subject="it")


def test_both_signatures_over_these_very_bytes_for_this_purpose(
    made: bytes, packed: Callable[..., bytes], publisher_key: PublisherKey
) -> None:
    length = 4 + int.from_bytes(made[:4], "little")
    signatures, _ = layout.unpack_signatures(made, length, subject="it")
    for altered in (
        made[:length] + layout.pack_signatures(signatures[:1]),
        made[:length] + layout.pack_signatures((*signatures, signatures[0])),
        made.replace(b'"floor":7', b'"floor":9'),
        packed({}, domain=layout.GRANT_DOMAIN),
        packed({}, domain=layout.MANIFEST_DOMAIN),
    ):
        with pytest.raises(BadSignature, match="it: "):
            notice.verify(altered, [publisher_key.publisher], subject="it")


def test_nothing_is_read_as_json_before_its_signatures_verified(
    made: bytes, publisher_key: PublisherKey, foreign_key: PublisherKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canonical, "decode", None)
    with pytest.raises(BadSignature):
        notice.verify(made.replace(b'"floor":7', b'"floor":x'), [publisher_key.publisher], subject="it")
    with pytest.raises(UntrustedPublisher):
        notice.verify(made, [foreign_key.publisher], subject="it")


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "pericard/notice/v2"}, {"format": ...}, {"extra": 1}, {"model": "ECG"}, {"model": ""}, {"model": 5},
        {"model": "../ecg"}, {"floor": 0}, {"floor": -1}, {"floor": True}, {"floor": "7"}, {"floor": 1 << 53},
        {"issued": -1}, {"issued": 1 << 40}, {"issued": None}, {"publisher": "AB" * 32}, {"publisher": "00" * 32},
    ],
    ids=str,
)  # fmt: skip
def test_what_a_publisher_signed_must_be_a_notice_all_the_same(
    changes: dict[str, Any], packed: Callable[..., bytes], publisher_key: PublisherKey
) -> None:
    with pytest.raises(BadNotice, match="it: "):
        notice.verify(packed(changes), [publisher_key.publisher], subject="it")


def test_the_largest_floor_and_the_last_second_are_taken(
    packed: Callable[..., bytes], publisher_key: PublisherKey
) -> None:
    data = packed({"floor": (1 << 53) - 1, "issued": (1 << 40) - 1})
    assert notice.verify(data, [publisher_key.publisher], subject="it").floor == (1 << 53) - 1


def test_a_notice_cut_short_anywhere_is_none(made: bytes, publisher_key: PublisherKey) -> None:
    for end in [*range(300), *range(300, len(made), 97), len(made) - 1]:
        with pytest.raises(BadNotice):
            notice.verify(made[:end], [publisher_key.publisher], subject="it")


def test_every_flipped_bit_is_seen(made: bytes, publisher_key: PublisherKey) -> None:
    for place in [*range(300), *range(300, len(made), 61)]:
        altered = bytearray(made)
        altered[place] ^= 1 << place % 8
        with pytest.raises((BadNotice, BadSignature, UntrustedPublisher)):
            notice.verify(bytes(altered), [publisher_key.publisher], subject="it")


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"\xff" * 100, b"PERICRD\x01" * 10])
def test_what_is_no_notice_is_refused(data: bytes, publisher_key: PublisherKey) -> None:
    with pytest.raises(BadNotice, match="it: "):
        notice.verify(data, [publisher_key.publisher], subject="it")


def test_nothing_may_follow(made: bytes, publisher_key: PublisherKey) -> None:
    with pytest.raises(BadNotice, match="1 bytes are left over"):
        notice.verify(made + b"\0", [publisher_key.publisher], subject="it")


@pytest.mark.parametrize(
    ("model", "floor", "issued"), [("ECG", 7, 0), ("ecg", 0, 0), ("ecg", 1 << 54, 0), ("ecg", 7, -1)]
)
def test_what_cannot_be_read_is_not_made(model: str, floor: int, issued: int, publisher_key: PublisherKey) -> None:
    with pytest.raises(BadNotice, match="notice: has a bad"):
        notice.make(publisher_key, model, floor=floor, issued=issued)


def test_a_file_that_is_none_is_refused_and_never_waited_for(
    made: bytes, publisher_key: PublisherKey, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.notice")
    (tmp_path / "folder.notice").mkdir()
    (tmp_path / "large.notice").write_bytes(made + bytes(64 << 10))
    for name in ("pipe.notice", "folder.notice", "large.notice", "missing.notice"):
        with pytest.raises(BadNotice, match=name):
            notice.read(tmp_path / name, [publisher_key.publisher])


def test_the_notices_of_a_folder(made: bytes, tmp_path: Path) -> None:
    for name in ("b.notice", "a.notice", "a.notice.bak", "notice", "ecg.sealed"):
        (tmp_path / name).write_bytes(made)
    assert [path.name for path in notices_in(tmp_path)] == ["a.notice", "b.notice"]
    assert notices_in(tmp_path / "missing") == []

    for number in range(64):
        (tmp_path / f"{number}.notice").touch()
    with pytest.raises(PericardError, match="holds 66 notices, at most 64") as caught:
        notices_in(tmp_path)
    assert caught.value.code == "bad-notice"
