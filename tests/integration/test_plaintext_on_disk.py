"""P1 on disk: from start to answers no process of the real daemon writes a byte of the weights to any file, and a
script that loads a model through the library changes nothing in any file system.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import vault
from integration_site import Site, running
from watched import LOAD, SECONDS, environment

import pericard
from pericard.keys import PublisherKey
from pericard.sealed import Description

pytestmark = pytest.mark.integration

#: What the daemon may open for writing, relative to the site's folder, or a device.
ALLOWED = re.compile(r"(audit/.*|audit|trust\.json|\.trust\..*|\.?tokens\.used(\..*)?|/dev/null|/dev/tty)")
_WRITING = re.compile(r'open(?:at)?\([^"]*"(?P<path>[^"]*)", (?P<flags>[A-Z_|]+)')
_ANONYMOUS = re.compile(r"(memfd_create|shm_open)\(")


@pytest.fixture
def strace() -> str:
    found = shutil.which("strace")
    if found is None:
        assert not os.environ.get("CI"), "strace is missing: make system installs it"
        pytest.skip("strace is not on this machine; make system installs it")
    return found


def whole(lines: list[str]) -> list[str]:
    """The calls of a trace, each on one line, also those that another process's calls interrupted."""
    found, begun = [], {}
    for line in lines:
        pid, _, rest = line.partition(" ")
        if line.endswith("<unfinished ...>"):
            begun[pid] = line.removesuffix("<unfinished ...>")
        elif rest.lstrip().startswith("<... "):
            found.append(begun.pop(pid, "") + rest.partition("resumed>")[2])
        else:
            found.append(line)
    return found


def test_nothing_but_the_log_the_trust_state_and_times_of_use_is_written(
    site: Site, strip: list[float], strace: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    trace = tmp_path_factory.mktemp("trace") / "trace"
    calls = "trace=open,openat,creat,memfd_create,rename,renameat2,link,linkat,mknod,mknodat"
    prefix = (strace, "-f", "-qq", "-e", calls, "-e", "signal=none", "-s", "400", "-o", str(trace))
    with running(site, prefix=prefix) as daemon:
        for _ in range(3):
            assert daemon.predict(strip).status == 200
        assert daemon.stop() == 0
    lines = whole(trace.read_text(errors="replace").splitlines())
    assert len(lines) > 1000, "strace saw too little to mean anything"
    written = [
        match["path"]
        for line in lines
        if (match := _WRITING.search(line)) and re.search(r"O_WR|O_RDWR|O_CREAT", match["flags"])
        and " = -1 " not in line
    ]  # fmt: skip
    assert any("audit" in path for path in written), "the log must have been seen"
    unexpected = {path for path in written if not ALLOWED.fullmatch(path.removeprefix(f"{site.folder}/"))}
    assert not unexpected
    anonymous = [line for line in lines if _ANONYMOUS.search(line)]
    assert len(anonymous) == 1, "weights could hide in an anonymous file"
    assert re.search(rf'^{daemon.pid} .*memfd_create\("pericard-region"', anonymous[0]), "only the pipe has one"


def test_no_file_of_the_site_holds_a_weight_or_a_seed(site: Site, strip: list[float]) -> None:
    import torch

    program = torch.export.load(site.folder / "tiny.pt2")
    patterns = [tensor.detach().numpy().tobytes()[:32] for tensor in program.state_dict.values() if tensor.numel() > 7]
    assert patterns
    (site.folder / "tiny.pt2").unlink()
    with running(site) as daemon:
        assert daemon.predict(strip).status == 200
        assert daemon.stop() == 0
    for path in Path(site.folder).rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [pattern for pattern in patterns if pattern in data], path


# --- the library, in a plain script


#: Every call that makes, changes or removes something that has a name, or memory that is a file; "?": if the kernel
#: has it.
_CHANGING = (
    "creat", "mkdir", "mkdirat", "mknod", "mknodat", "symlink", "symlinkat", "link", "linkat", "rename", "renameat",
    "renameat2", "unlink", "unlinkat", "rmdir", "truncate", "ftruncate", "fallocate", "chmod", "fchmod", "fchmodat",
    "chown", "fchown", "lchown", "fchownat", "utime", "utimes", "utimensat", "setxattr", "fsetxattr", "lsetxattr",
    "memfd_create", "memfd_secret", "mount", "io_uring_setup",
)  # fmt: skip
_OPENING = ("open", "openat", "openat2")
#: What a load may open of the site's folder.
_SITE = {"model.sealed", "identity.key", "vendor.pub", "trust.json"}
#: Says on the system-call trace where the load begins and ends, by asking for a file that is not there.
_LOADING = f"""{LOAD}
secret = {{"secret": True}} if "secret" in options else {{}}
os.access("/window/open", os.F_OK)
try:
    model = load(**secret)
except PericardError as error:
    raise SystemExit(f"refused: {{error}}")
ask(model)
model.close()
os.access("/window/closed", os.F_OK)
"""


@pytest.fixture(scope="module")
def sealed_folder(
    tmp_path_factory: pytest.TempPathFactory,
    export_pt2: Callable[..., Path],
    tiny_description: Description,
    publisher_key: PublisherKey,
    now: int,
) -> Path:
    return vault.make(tmp_path_factory.mktemp("vault"), export_pt2, tiny_description, publisher_key, now).folder


def window(strace: str, trace: Path, code: str, *words: object) -> list[str]:
    """The traced calls between the script's two marks, of all its threads."""
    names = (*_OPENING, *_CHANGING, "access", "faccessat", "faccessat2")
    calls = "trace=" + ",".join(f"?{name}" for name in names)
    done = subprocess.run(
        [
            strace, "-f", "-qq", "-s", "4096", "-o", str(trace), "-e", calls, "-e", "signal=none",
            sys.executable, "-B", "-c", code, *map(str, words),
        ],
        capture_output=True, text=True, timeout=SECONDS, check=False, env=environment(),
    )  # fmt: skip
    if done.stderr.startswith("refused: secret memory") and not os.environ.get("CI"):
        pytest.skip(f"this kernel has no memfd_secret for us: {done.stderr}")
    assert done.returncode == 0, done.stderr
    lines = whole(trace.read_text(errors="replace").splitlines())
    marks = [place for place, line in enumerate(lines) if '"/window/' in line]
    assert len(marks) == 2, "the load was not seen from its beginning to its end"
    return lines[marks[0] + 1 : marks[1]]


def changes(lines: list[str]) -> list[str]:
    """The calls that change something, failed ones too: nothing should even try."""
    changing = re.compile(rf"\b(?:{'|'.join(_CHANGING)})\(")
    writing = re.compile(r"\bopen(?:at|at2)?\(.*(?:O_WRONLY|O_RDWR|O_CREAT|O_TMPFILE|O_TRUNC|O_APPEND)\b")
    return [line for line in lines if changing.search(line) or writing.search(line)]


def opened(lines: list[str]) -> set[str]:
    """The paths that were opened."""
    found = (re.search(r'\bopen(?:at|at2)?\([^"]*"([^"]*)"', line) for line in lines if " = -1 " not in line)
    return {match[1] for match in found if match}


def test_a_load_through_the_library_changes_no_file(strace: str, sealed_folder: Path, now: int, tmp_path: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in sealed_folder.iterdir()}
    lines = window(strace, tmp_path / "trace", _LOADING, sealed_folder, now)
    read = opened(lines)
    allowed = {f"{sealed_folder}/{name}" for name in _SITE}

    assert {f"{sealed_folder}/{name}" for name in ("model.sealed", "identity.key", "vendor.pub")} <= read
    assert changes(lines) == []
    ours = (sys.prefix, str(Path(pericard.__file__).parent))  # which may lie in a temporary folder themselves
    temporary = {path for path in read if path.startswith(tempfile.gettempdir()) and not path.startswith(ours)}
    assert temporary <= allowed
    assert {path.name: path.stat().st_mtime_ns for path in sealed_folder.iterdir()} == before


def test_secret_memory_is_the_only_file_without_a_name(
    strace: str, sealed_folder: Path, now: int, tmp_path: Path
) -> None:
    lines = window(strace, tmp_path / "trace", _LOADING, sealed_folder, now, "secret")
    names = [re.search(r"\b(\w+)\(", line) for line in changes(lines)]

    # strace of some ages knows the call by its number only
    assert [name[1] for name in names if name] in (["memfd_secret", "ftruncate"], ["ftruncate"])


@pytest.mark.parametrize(
    ("code", "seen"),
    [
        ("os.close(os.memfd_create('x'))", "memfd_create"),
        ("import tempfile; os.rmdir(tempfile.mkdtemp(dir=sys.argv[1]))", "mkdir"),
        ("open(sys.argv[1] + '/leak', 'wb').close()", "open"),
        ("os.open(sys.argv[1], os.O_TMPFILE | os.O_WRONLY)", "open"),
        ("__import__('threading').Thread(target=lambda: open(sys.argv[1] + '/leak', 'ab').close()).start()", "open"),
    ],
)
def test_what_a_load_must_not_do_would_be_seen(strace: str, code: str, seen: str, tmp_path: Path) -> None:
    """The witness can speak."""
    marked = (
        "import os, sys, threading\nos.access('/window/open', 0)\n" + code + "\n"
        "[t.join() for t in threading.enumerate() if t is not threading.main_thread()]\nos.access('/window/closed', 0)"
    )
    assert any(seen in line for line in changes(window(strace, tmp_path / "trace", marked, tmp_path)))
