"""The lock's one form, what it refuses, and its signature."""

import os
from pathlib import Path

import pytest

from pericard.environment import lock
from pericard.errors import BadSignature, LockInvalid, UntrustedPublisher
from pericard.keys import PublisherKey

FORGE = "https://conda.anaconda.org/conda-forge"
ZLIB = (f"{FORGE}/linux-64/zlib-1.3.1-h4ab18f5_2.conda", "ab" * 32)
IDNA = (f"{FORGE}/noarch/idna-3.10-pyhd8ed1ab_1.tar.bz2", "cd" * 32)
TEXT = f"""\
# pericard environment lock 1
# platform: linux-64
# virtual: __glibc=2.36
# virtual: __linux=6.1
@EXPLICIT
{IDNA[0]}#sha256:{IDNA[1]}
{ZLIB[0]}#sha256:{ZLIB[1]}
"""


def made() -> lock.Lock:
    virtual = [lock.Virtual("__linux", "6.1"), lock.Virtual("__glibc", "2.36")]
    return lock.make("linux-64", virtual, [ZLIB, IDNA], subject="test")


def test_a_lock_has_one_form_whatever_order_it_was_made_in() -> None:
    assert made().data.decode() == TEXT
    assert lock.parse(TEXT.encode(), subject="test") == made()


def test_an_address_says_what_the_package_is() -> None:
    idna, zlib = made().packages

    assert (zlib.name, zlib.version, zlib.build, zlib.subdir, zlib.channel) == (
        "zlib", "1.3.1", "h4ab18f5_2", "linux-64", FORGE,
    )  # fmt: skip
    assert idna.record == "conda-meta/idna-3.10-pyhd8ed1ab_1.json"


def test_the_digest_is_of_the_packages_wherever_they_came_from() -> None:
    mirror = [(url.replace(FORGE, "file:///srv/channel"), sha256) for url, sha256 in (ZLIB, IDNA)]
    elsewhere = lock.make("linux-64", [], mirror, subject="test")

    assert elsewhere.digest == made().digest
    assert elsewhere.sha256 != made().sha256


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("# pericard environment lock 1", "# pericard environment lock 2", "is not a pericard environment lock"),
        ("@EXPLICIT\n", "", "is not a pericard environment lock"),
        ("# platform: linux-64\n", "", "does not say its platform"),
        ("# virtual: __glibc=2.36", "# virtual: glibc=2.36", "line 3 is not a virtual package"),
        (
            "# virtual: __glibc=2.36\n# virtual: __linux=6.1",
            "# virtual: __linux=6.1\n# virtual: __glibc=2.36",
            "sorted",
        ),
        ("#sha256:", "#md5:", "line 6 is not an address and its sha256"),
        (IDNA[1], "CD" * 32, "line 6 is not an address and its sha256"),
        ("idna-3.10", "zzz-3.10", "not sorted by name"),
        ("noarch/idna", "osx-arm64/idna", "is for linux-64, and idna"),
        ("/noarch/", "/noarch/../noarch/", "is not the address of an archive"),
        (".tar.bz2#", ".zip#", "is not the address of an archive"),
        ("https://conda.anaconda.org/conda-forge/noarch", "https://me:secret@host.example/c/noarch", "holds a secret"),
        ("https://conda.anaconda.org/", "https://conda.anaconda.org/t/tk-1234/", "holds a secret"),
        ("https://conda.anaconda.org/conda-forge/noarch", "ftp://host.example/c/noarch", "line 6 is not an address"),
        (TEXT[TEXT.index("@EXPLICIT\n") + 10 :], "", "names 0 packages"),
        ("idna", "ìdna", "is not ascii"),
    ],
)
def test_what_is_not_in_that_form_is_refused(old: str, new: str, said: str) -> None:
    assert old in TEXT

    with pytest.raises(LockInvalid, match=said):
        lock.parse(TEXT.replace(old, new, 1).encode(), subject="test")


@pytest.mark.parametrize("tail", ["\n", "\r\n", f"{ZLIB[0]}#sha256:{ZLIB[1]}"])
def test_nothing_may_follow(tail: str) -> None:
    with pytest.raises(LockInvalid):
        lock.parse((TEXT + tail).encode(), subject="test")


def test_a_lock_is_written_with_its_signature_and_read_only_if_that_one_signed_it(tmp_path: Path) -> None:
    ours, theirs = (PublisherKey(os.urandom(64)) for _ in range(2))
    path = tmp_path / "environment.lock"
    lock.write(path, made(), ours)

    assert lock.read(path, ours.publisher) == made()
    assert lock.read(path, None) == made()
    with pytest.raises(UntrustedPublisher):
        lock.read(path, theirs.publisher)


def test_one_bit_of_either_file_is_refused(tmp_path: Path) -> None:
    key = PublisherKey(os.urandom(64))
    path = tmp_path / "environment.lock"
    lock.write(path, made(), key)
    for name in (path, lock.signature_path(path)):
        data = name.read_bytes()
        for place in range(0, len(data), 97):
            name.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            with pytest.raises((LockInvalid, UntrustedPublisher, BadSignature)):
                lock.read(path, key.publisher)
        name.write_bytes(data)
    lock.read(path, key.publisher)


def test_a_lock_without_its_signature_is_refused_and_told_where_it_belongs(tmp_path: Path) -> None:
    path = tmp_path / "environment.lock"
    path.write_bytes(made().data)

    with pytest.raises(LockInvalid, match=r"environment\.lock\.sig: is not there") as caught:
        lock.read(path, PublisherKey(os.urandom(64)).publisher)
    assert "beside its signature" in str(caught.value.hint)
