"""The repository agrees with itself: versions, links, commands, the licence, and what no file may say."""

import hashlib
import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

import pericard
import pericard_client

ROOT = Path(__file__).resolve().parents[2]
LONGEST_FILE = 450  # lines; the house rule is 400
LARGEST_TEXT = 4 << 20  # bytes; what is larger is data
APACHE_2_0 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # SHA-256 of the text as published

# Written so that this file does not match itself. The first: folders of a developer's machine, as the start of a path.
PRIVATE = {
    "a path of one machine": r"(?<![\w.~}$)])/(?:wor[k]|roo[t]|far[m])/",
    "a registry's host": r"pyp[i]\.org|python[h]osted|npm[j]s\.(?:org|com)|deb\.deb[i]an\.org",
    "a working paper": r"\bshared/(?:desi[g]n|re[f]erence|prototy[p]es|ho[o]ks)|notes_hel[p]ers",
    "the earlier name": r"[Ss]ealserv[e]",
}


@cache
def _files() -> tuple[Path, ...]:
    """Every file that is, or is about to be, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    paths = (ROOT / name for name in listed.stdout.split("\0") if name)
    return tuple(sorted(path for path in paths if path.is_file()))


def _text(path: Path) -> str | None:
    """The file's text, or None where it is data."""
    if path.stat().st_size > LARGEST_TEXT:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


# --- versions


def test_one_version_everywhere() -> None:
    versions = {
        name: tomllib.loads((ROOT / name / "pyproject.toml").read_text())["project"]["version"]
        for name in ("server", "client")
    }
    versions["pericard"] = pericard.__version__
    versions["pericard_client"] = pericard_client.__version__
    versions["recipe"] = yaml.safe_load((ROOT / "conda-recipe" / "recipe.yaml").read_text())["context"]["version"]
    newest = re.search(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    versions["changelog"] = newest[1]

    assert set(versions.values()) == {pericard.__version__}, versions


# --- links


def _anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    found: set[str] = set()
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ +(.+?) *$", prose, re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        count = 0
        while (unique := slug if not count else f"{slug}-{count}") in found:
            count += 1
        found.add(unique)
    return found


def _links(text: str) -> list[str]:
    """Where a page's inline links, images and reference definitions point, code left out."""
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\]\(\s*<?([^)\s>]+)", prose) + re.findall(r"^\[[^]]+\]:\s+(\S+)", prose, re.MULTILINE)


def _broken(page: Path, link: str) -> bool:
    if re.match(r"[a-z][a-z0-9+.-]*:", link):
        return False
    path, _, anchor = unquote(link).partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.is_relative_to(ROOT) or not target.exists():
        return True
    return bool(anchor) and target.suffix == ".md" and anchor not in _anchors(target.read_text())


def test_every_relative_link_resolves() -> None:
    pages = [path for path in _files() if path.suffix == ".md"]
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in pages
        for link in _links(page.read_text())
        if _broken(page, link)
    ]

    assert pages
    assert broken == []


@pytest.mark.parametrize(
    "link", ["no-such-page.md", "CHANGELOG.md#no-such-heading", "../outside.md", "#no-such-heading"]
)
def test_a_broken_link_is_seen(link: str) -> None:
    assert _broken(ROOT / "CONTRIBUTING.md", link)
    assert _links(f"see [this]({link}) and `[not](this)`") == [link]


# --- words


def test_no_file_speaks_of_one_machine_or_of_how_it_was_made() -> None:
    said = [
        f"{path.relative_to(ROOT)}: {found[0]!r} is {what}"
        for path in _files()
        if (text := _text(path)) is not None
        for what, pattern in PRIVATE.items()
        if (found := re.search(pattern, text))
    ]

    assert said == []


@pytest.mark.parametrize(
    ("text", "caught"),
    [
        ("see /wor" + "k/main", True),
        ("'/roo" + "t/.cache'", True),
        ("GET /tree/roo" + "t/1", False),
        ("${HOME}/wor" + "k/here", False),
        ("https://pyp" + "i.org/simple", True),
        ("shared/de" + "sign.md", True),
    ],
)
def test_the_words_are_recognised(text: str, *, caught: bool) -> None:
    assert any(re.search(pattern, text) for pattern in PRIVATE.values()) == caught


# --- commands


def _targets() -> set[str]:
    return set(re.findall(r"^\.PHONY: ([a-z-]+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_make_alone_prints_every_command_with_one_line_each() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    listed = dict(re.findall(r"^make ([a-z-]+) +(\S.+)$", done.stdout, re.MULTILINE))

    assert set(listed) == _targets()
    assert len(done.stdout.splitlines()) == len(listed)
    assert {"env", "check", "test", "demo", "format", "vectors", "openapi", "clean", "system"} <= set(listed)


def test_every_command_in_the_documentation_exists() -> None:
    # commands stand in backticks or in indented blocks
    named = {
        target
        for path in _files()
        if path.suffix == ".md"
        for target in re.findall(r"(?:`|^ {4})make ([a-z][a-z-]*)", path.read_text(), re.MULTILINE)
    }

    assert named
    assert named - _targets() == set()


def test_continuous_integration_runs_the_same_commands() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()

    assert [line for line in lines if line.startswith("make ")] == [
        "make system",
        "make env",
        "make check",
        "make test",
    ]
    assert "set -euo pipefail" in lines


# --- files


def test_the_licence_is_apache_2_0() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2_0
    for name in ("server", "client"):
        project = tomllib.loads((ROOT / name / "pyproject.toml").read_text())["project"]
        assert project["license"] == "Apache-2.0"


def test_no_product_file_is_too_long_to_read() -> None:
    sources = [
        path for path in _files() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in {"server", "client"}
    ]
    long = {
        str(path.relative_to(ROOT)): lines
        for path in sources
        if (lines := len(path.read_text().splitlines())) > LONGEST_FILE
    }

    assert sources
    assert long == {}


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "adr"
    pages = sorted(path.name for path in folder.glob("[0-9]*.md"))
    index = (folder / "README.md").read_text()

    assert [name[:4] for name in pages] == [f"{number:04}" for number in range(1, len(pages) + 1)]
    for name in pages:
        page = (folder / name).read_text()
        assert f"({name})" in index
        missing = [
            part for part in ("\nStatus: ", "\n## Context", "\n## Decision", "\n## Consequences") if part not in page
        ]
        assert (name, missing) == (name, [])
