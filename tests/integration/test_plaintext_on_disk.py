"""P1 on the real daemon: from start to answers, no process writes a byte of the weights to any file."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from integration_site import Site, running

pytestmark = pytest.mark.integration

#: What the daemon may open for writing, relative to the site's folder, or a device.
ALLOWED = re.compile(r"(audit/.*|audit|trust\.json|\.trust\..*|/dev/null|/dev/tty)")
_WRITING = re.compile(r'open(?:at)?\([^"]*"(?P<path>[^"]*)", (?P<flags>[A-Z_|]+)')
_ANONYMOUS = re.compile(r"(memfd_create|shm_open)\(")


@pytest.fixture
def strace() -> str:
    found = shutil.which("strace")
    if found is None:
        assert not os.environ.get("CI"), "strace is missing: make system installs it"
        pytest.skip("strace is not on this machine; make system installs it")
    return found


def test_nothing_but_the_log_and_the_trust_state_is_written(
    site: Site, strip: list[float], strace: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    trace = tmp_path_factory.mktemp("trace") / "trace"
    calls = "trace=open,openat,creat,memfd_create,rename,renameat2,link,linkat,mknod,mknodat"
    prefix = (strace, "-f", "-qq", "-e", calls, "-e", "signal=none", "-s", "400", "-o", str(trace))
    with running(site, prefix=prefix) as daemon:
        for _ in range(3):
            assert daemon.predict(strip).status == 200
        assert daemon.stop() == 0
    lines = trace.read_text(errors="replace").splitlines()
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
    assert not [line for line in lines if _ANONYMOUS.search(line)], "weights could hide in an anonymous file"


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
