"""Sealing writes a whole new file or none, and nothing that a site could not open."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pericard.errors import BadGrant, NotWritten, PericardError, UnsupportedModel
from pericard.keys import PublisherKey
from pericard.sealed import Description, SealedModel, Term, Tolerance, layout
from pericard.sealed import seal as seal_model
from pericard.tensors import TensorSpec

PLAIN = b"plaintext" * 1000
Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, tiny_description: Description, publisher_key: PublisherKey, terms: tuple[Term, ...]) -> Write:
    """Seal to ``tmp_path / "it"``."""

    def run(*, parts: Any = (PLAIN,), size: int = len(PLAIN), terms: Any = terms, **changes: Any) -> None:
        about = replace(tiny_description, **changes)
        seal_model(tmp_path / "it", about, (size, iter(parts)), signer=publisher_key, terms=tuple(terms))

    return run


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """As on a full disk: no file may grow beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_written_verifies(write: Write, tmp_path: Path, publisher_key: PublisherKey) -> None:
    write()

    model = SealedModel(tmp_path / "it").verify([publisher_key.publisher])
    assert model.manifest.payload.size == len(PLAIN)
    assert stat.S_IMODE((tmp_path / "it").stat().st_mode) == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_the_manifest_names_what_was_sealed(
    tmp_path: Path, tiny_description: Description, publisher_key: PublisherKey, terms: tuple[Term, ...]
) -> None:
    made = seal_model(tmp_path / "it", tiny_description, (len(PLAIN), iter([PLAIN])), signer=publisher_key, terms=terms)

    model = SealedModel(tmp_path / "it").verify([publisher_key.publisher])
    assert (model.manifest, model.manifest_hash) == (made.manifest, made.manifest_hash)


def test_no_plaintext_stands_in_the_file(write: Write, tmp_path: Path) -> None:
    write()

    assert b"plaintext" not in (tmp_path / "it").read_bytes()


def test_an_old_file_is_refused_before_anything_is_encrypted(write: Write, tmp_path: Path) -> None:
    def parts() -> Iterator[bytes]:
        pytest.fail("the artifact was read")
        yield b""

    (tmp_path / "it").write_bytes(b"old")
    with pytest.raises(NotWritten, match=r"it: exists already$") as caught:
        write(parts=parts())
    assert caught.value.hint == "give the new file a name of its own"
    (tmp_path / "it").unlink()
    (tmp_path / "it").symlink_to(tmp_path / "nowhere")
    with pytest.raises(NotWritten, match="exists already"):
        write(parts=parts())

    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_a_name_that_is_taken_meanwhile_stays_the_others(write: Write, tmp_path: Path) -> None:
    def parts() -> Iterator[bytes]:
        (tmp_path / "it").write_bytes(b"another's")
        yield PLAIN

    with pytest.raises(NotWritten, match="exists already"):
        write(parts=parts())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"it": b"another's"}


@pytest.mark.parametrize("size", [0, 100, 5000, 15_000])
def test_a_full_disk_leaves_nothing(size: int, write: Write, tmp_path: Path) -> None:
    with largest_file(size), pytest.raises(NotWritten, match="it: cannot be written: file too large"):
        write()

    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write()

    assert list(tmp_path.iterdir()) == []


def test_a_source_that_fails_leaves_nothing(write: Write, tmp_path: Path) -> None:
    def parts() -> Iterator[bytes]:
        yield PLAIN[:100]
        raise OSError(5, "Input/output error")

    with pytest.raises(NotWritten, match="input/output error"):
        write(parts=parts())
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_an_error_that_names_the_file(
    tmp_path: Path, tiny_description: Description, publisher_key: PublisherKey, terms: tuple[Term, ...]
) -> None:
    with pytest.raises(NotWritten, match=r"missing/it: cannot be written: no such file"):
        seal_model(tmp_path / "missing" / "it", tiny_description, (1, iter([b"x"])), signer=publisher_key, terms=terms)


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"terms": ()}, BadGrant, "needs 1 to 4096 recipients, got 0"),
        ({"parts": (PLAIN, b"x")}, UnsupportedModel, "holds more than 9000 bytes"),
        ({"size": 9001}, UnsupportedModel, "ended 1 bytes before the end"),
        ({"parts": (), "size": 0}, UnsupportedModel, r"the manifest has a bad payload.size"),
        ({"name": "../it"}, UnsupportedModel, "the manifest has a bad model.name"),
        ({"sequence": 1 << 70}, UnsupportedModel, "the manifest holds a number beyond 64 bits"),
        ({"floor": 4}, UnsupportedModel, "withdraws its own version"),
        ({"tolerance": {"cpu": Tolerance(float("inf"), 0)}}, UnsupportedModel, "the manifest cannot convert"),
        ({"inputs": (TensorSpec("b", "float32", (-1, 9)),)}, UnsupportedModel, "describes a signal"),
        ({"intended_use": "x" * 2001}, UnsupportedModel, "bad model.intended_use"),
    ],
)
def test_what_no_site_could_open_is_not_written(
    changes: dict[str, Any], error: type[PericardError], reason: str, write: Write, tmp_path: Path
) -> None:
    with pytest.raises(error, match=reason):
        write(**changes)

    assert list(tmp_path.iterdir()) == []


def test_bad_dates_are_not_written(write: Write, tmp_path: Path, terms: tuple[Term, ...]) -> None:
    with pytest.raises(BadGrant, match="the dates are not in order"):
        write(terms=(terms[0], replace(terms[1], not_after=0)))

    assert list(tmp_path.iterdir()) == []


def test_more_grants_than_the_reader_takes_are_not_written(
    write: Write, tmp_path: Path, terms: tuple[Term, ...]
) -> None:
    with pytest.raises(BadGrant, match="needs 1 to 4096 recipients, got 4097"):
        write(terms=[terms[0]] * (layout.MAX_EMBEDDED + 1))

    longest_grant = 4 + 2500 + 1 + 2 * 35 + 64 + 3309
    assert layout.MAX_EMBEDDED * longest_grant < layout.MAX_GRANTS
    assert list(tmp_path.iterdir()) == []
