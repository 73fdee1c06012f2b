"""``publishers.json``: changed by command, read strictly, several keys to a name, and never half-written."""

from __future__ import annotations

import base64
import errno
import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from pericard import canonical
from pericard.errors import ConfigError
from pericard.keys import Publisher, PublisherKey
from pericard.trust import Pin, Pins, TrustStore
from pericard.trust.store import MAX_KEYS

NOW = 1_790_000_000


def key(number: int) -> Publisher:
    return PublisherKey(number.to_bytes(1) * 64).publisher


@pytest.fixture
def store(tmp_path: Path) -> TrustStore:
    return TrustStore(tmp_path / "publishers.json")


def names(store: TrustStore) -> list[tuple[str, str, int | None]]:
    return [(pin.name, pin.publisher.id, pin.until) for pin in store.read()]


def test_what_is_pinned_is_read_again(store: TrustStore, tmp_path: Path) -> None:
    assert list(store.read()) == []
    store.add("vendor", key(1), now=NOW)
    store.add("another", key(2), now=NOW, until=NOW + 5)

    assert names(store) == [("another", key(2).id, NOW + 5), ("vendor", key(1).id, None)]
    pins = store.load()
    assert [publisher.public for publisher in pins.publishers] == [key(2).public, key(1).public]
    found = pins.get(key(1).id)
    assert found is not None
    assert (found.since, found.publisher.public) == (NOW, key(1).public)
    assert pins.get("00" * 32) is None
    assert stat.S_IMODE((tmp_path / "publishers.json").stat().st_mode) == 0o644
    assert sorted(path.name for path in tmp_path.iterdir()) == [".publishers.json.lock", "publishers.json"]


def test_a_pin_lasts_through_its_last_second() -> None:
    pin = Pin("vendor", key(1), NOW, NOW + 5)
    assert [pin.trusted(NOW + seconds) for seconds in (0, 5, 6)] == [True, True, False]
    assert Pin("vendor", key(1), NOW, None).trusted(1 << 40)


def test_a_vendor_may_have_several_keys_at_once(store: TrustStore) -> None:
    for number in range(1, MAX_KEYS + 1):
        store.add("vendor", key(number), now=NOW)
    with pytest.raises(ConfigError, match="vendor: has 4 keys already"):
        store.add("vendor", key(9), now=NOW)
    store.add("other", key(9), now=NOW)
    assert len(store.read().named("vendor")) == MAX_KEYS

    store.add("vendor", key(1), now=NOW, until=NOW - 1)  # what ended takes no place
    store.add("vendor", key(8), now=NOW)
    assert len(store.read().named("vendor")) == MAX_KEYS + 1


def test_a_key_that_is_pinned_gets_a_new_end_and_keeps_its_age(store: TrustStore) -> None:
    store.add("vendor", key(1), now=NOW)
    pin = store.add("vendor", key(1), now=NOW + 9, until=NOW + 99)

    assert (pin.since, pin.until) == (NOW, NOW + 99)
    assert store.add("vendor", key(1), now=NOW + 9).until is None
    assert len(store.read()) == 1


def test_a_key_has_one_name(store: TrustStore) -> None:
    store.add("vendor", key(1), now=NOW)
    with pytest.raises(ConfigError, match="is pinned as vendor"):
        store.add("other", key(1), now=NOW)
    with pytest.raises(ValueError, match="one key twice"):
        Pins([Pin("a", key(1), 0, None), Pin("b", key(1), 0, None)])


def test_keys_are_removed_by_name_or_by_id(store: TrustStore) -> None:
    for number, name in ((1, "vendor"), (2, "vendor"), (3, "other")):
        store.add(name, key(number), now=NOW)

    assert [pin.publisher.id for pin in store.remove(key(3).id[:16])] == [key(3).id]
    assert {pin.publisher.id for pin in store.remove("vendor")} == {key(1).id, key(2).id}
    assert names(store) == []
    for which in ("vendor", key(1).id, key(1).id[:8], ""):
        with pytest.raises(ConfigError, match="is not pinned"):
            store.remove(which)


def test_a_few_digits_of_an_id_remove_nothing(store: TrustStore) -> None:
    store.add("vendor", key(1), now=NOW)
    with pytest.raises(ConfigError, match="is not pinned"):
        store.remove(key(1).id[:15])
    assert len(store.read()) == 1


@pytest.mark.parametrize("name", ["", "Vendor", "a b", "../x", "-x", "a" * 65, "é", "a\n"])
def test_a_bad_name_is_refused(name: str, store: TrustStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="publisher name"):
        store.add(name, key(1), now=NOW)
    assert list(tmp_path.iterdir()) == []


def test_an_end_beyond_every_calendar_is_refused(store: TrustStore) -> None:
    with pytest.raises(ConfigError, match="beyond every calendar"):
        store.add("vendor", key(1), now=NOW, until=1 << 40)


def test_a_server_needs_one(store: TrustStore) -> None:
    with pytest.raises(ConfigError, match="is missing, and with it every pinned publisher") as caught:
        store.load()
    assert caught.value.hint is not None
    assert "pericard trust add" in caught.value.hint


def entry(**changes: Any) -> dict[str, Any]:
    public = base64.b64encode(key(1).public).decode()
    return {"name": "vendor", "id": key(1).id, "key": public, "since": NOW, "until": None} | changes


@pytest.mark.parametrize(
    "item",
    [
        [], None, "vendor", {}, entry(extra=1), entry(name="Vendor"), entry(name=None), entry(id=key(2).id),
        entry(id="00"), entry(id=None), entry(key=""), entry(key=None), entry(key="*"), entry(key="AAAA"),
        entry(key=base64.b64encode(bytes(1984)).decode() + "\n"), entry(key="é"), entry(since="now"),
        entry(since=-1), entry(since=None), entry(since=True), entry(until=-1), entry(until=1 << 40),
        entry(until="2027-01-01"), entry(until=False),
    ],
    ids=lambda item: str(item)[:40],
)  # fmt: skip
def test_an_entry_that_is_none_refuses_the_file(item: Any, store: TrustStore, tmp_path: Path) -> None:
    path = tmp_path / "publishers.json"
    path.write_bytes(canonical.encode({"format": "pericard/publishers/v1", "publishers": [item]}))
    path.chmod(0o644)

    with pytest.raises(ConfigError, match=r"publishers\.json: has a ") as caught:
        store.read()
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"{}", b"\xff", b"\0" * 10,
        canonical.encode({"format": "pericard/publishers/v2", "publishers": []}),
        canonical.encode({"format": "pericard/publishers/v1", "publishers": {}}),
        canonical.encode({"format": "pericard/publishers/v1", "publishers": [], "x": 1}),
        canonical.encode({"format": "pericard/publishers/v1", "publishers": [entry(), entry()]}),
        json.dumps({"format": "pericard/publishers/v1", "publishers": [entry()]}).encode(),
        b" " * ((1 << 20) + 1),
    ],
    ids=lambda data: repr(data[:30]),
)  # fmt: skip
def test_a_damaged_file_is_refused_never_taken_for_an_empty_one(data: bytes, store: TrustStore, tmp_path: Path) -> None:
    (tmp_path / "publishers.json").write_bytes(data)
    (tmp_path / "publishers.json").chmod(0o644)

    for change in (store.read, lambda: store.add("vendor", key(1), now=NOW), lambda: store.remove("vendor")):
        with pytest.raises(ConfigError, match=r"publishers\.json: "):
            change()
    assert (tmp_path / "publishers.json").read_bytes() == data


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_may_write_pins_nobody(mode: int, store: TrustStore, tmp_path: Path) -> None:
    store.add("vendor", key(1), now=NOW)
    (tmp_path / "publishers.json").chmod(mode)

    with pytest.raises(ConfigError, match=f"others may write it \\(mode 0{mode:o}\\)"):
        store.read()


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for name in ("pipe", "folder", "file/x"):
        with pytest.raises(ConfigError):
            TrustStore(tmp_path / name).read()
    for name in ("gone/publishers.json", "file/publishers.json"):
        with pytest.raises(ConfigError, match="cannot be written"):
            TrustStore(tmp_path / name).add("vendor", key(1), now=NOW)


def test_a_full_disk_leaves_the_old_file(store: TrustStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store.add("vendor", key(1), now=NOW)
    before = (tmp_path / "publishers.json").read_bytes()
    monkeypatch.setattr("pericard.durable.os.fsync", full)
    with pytest.raises(ConfigError, match="cannot be written: no space left"):
        store.add("vendor", key(2), now=NOW)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".lock"} == {
        "publishers.json": before
    }


def test_changes_at_the_same_moment_are_all_kept(tmp_path: Path) -> None:
    numbers = range(1, 13)
    workers = [
        threading.Thread(
            target=lambda n=number: TrustStore(tmp_path / "publishers.json").add(f"vendor-{n}", key(n), now=NOW)
        )
        for number in numbers
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
    assert len(TrustStore(tmp_path / "publishers.json").read()) == len(numbers)


def test_the_most_pins_fit_the_file(store: TrustStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every set that may be written may be read again."""
    monkeypatch.setattr("pericard.trust.store._MAX_PINS", 3)
    for number in range(1, 4):
        store.add(f"vendor-{number}", key(number), now=NOW)
    with pytest.raises(ConfigError, match="pins more than 3 keys"):
        store.add("vendor-9", key(9), now=NOW)
    size = (tmp_path / "publishers.json").stat().st_size
    assert size / 3 * 256 < 1 << 20
