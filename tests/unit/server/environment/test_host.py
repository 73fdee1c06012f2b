"""The host's class: the same for two that compute the same bits, another where something that computes differs."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from pericard import environment
from pericard.environment import host


def test_a_host_is_of_one_class() -> None:
    found = environment.host_class("torch avx512")

    assert found == environment.host_class("torch avx512")
    assert found.record() == {"class": found.digest, **dict(found.lines)}
    assert len(found.digest) == 64
    assert dict(found.lines)["machine"] == platform.machine()
    assert all(text.isascii() and text.isprintable() for _, text in found.lines)


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("Xeon", "Epyc", True),
        ("model\t\t: 85", "model\t\t: 106", True),
        ("avx512f", "", True),
        ("smep", "", False),  # what a kernel protects with computes nothing
        ("2500.0", "1200.0", False),
        ("processor\t: 0", "processor\t: 7", False),
    ],
)
def test_what_computes_counts_and_what_does_not_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, *, counts: bool
) -> None:
    text = (
        "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 85\nmodel name\t: Xeon\n"
        "cpu MHz\t\t: 2500.0\nflags\t\t: fpu sse2 avx2 avx512f smep\n\nprocessor\t: 1\n"
    )
    assert old in text
    digests = set()
    for number, shown in enumerate((text, text.replace(old, new))):
        path = tmp_path / str(number)
        path.write_text(shown)
        monkeypatch.setattr(host, "_CPUINFO", path)
        digests.add(environment.host_class("").digest)

    assert len(digests) == 1 + counts


def test_arithmetic_and_variables_count(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {environment.host_class("a").digest, environment.host_class("b").digest}
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2\n" * 1000)
    found = environment.host_class("a")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2\n" * 1001)
    digests |= {found.digest, environment.host_class("a").digest}

    assert len(digests) == 4
    assert all(len(text) < 600 and text.isprintable() for _, text in found.lines)


def test_a_host_that_says_nothing_is_described_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_CPUINFO", tmp_path / "none")
    monkeypatch.setattr(host, "_CACHES", tmp_path / "none")

    assert dict(environment.host_class("").lines)["vendor"] == ""


# --- what a publisher may ask of it


def test_what_this_host_has_is_what_its_kernel_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = tmp_path / "cpuinfo"
    said.write_text("processor\t: 0\nflags\t\t: fpu sse2 avx2 fma smep\n\nprocessor\t: 1\n")
    monkeypatch.setattr(host, "_CPUINFO", said)
    found = environment.this_host()

    assert found == environment.Host(frozenset({"fpu", "sse2", "avx2", "fma", "smep"}), None)
    assert found.record() == {"cpu": "avx2 fma sse2", "driver": None, "cuda": None, "cudnn": None}
    with_cuda = environment.this_host(environment.Cuda("550.54", "", "9.1"))
    assert with_cuda.record() == {"cpu": "avx2 fma sse2", "driver": "550.54", "cuda": None, "cudnn": "9.1"}


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n", "535.183.01"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release Build\n", "570.124.06"),
        ("GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n", ""),
        (None, ""),
    ],
)
def test_the_driver_is_what_the_kernel_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, version: str
) -> None:
    said = tmp_path / "version"
    if text is not None:
        said.write_text(text)
    monkeypatch.setattr(host, "_DRIVER", said)

    assert environment.driver() == version
