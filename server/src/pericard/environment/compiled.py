"""Compiled files: made once from verified sources, or, where an installer made them, compared with what they must be.

Rules of this room: a compiled file is never believed for what it says of its source. To compare, the source is compiled
anew by an interpreter that is trusted already, in a process of its own, and the two code objects must agree in
everything but the name of the file that they came from (``compared``). Bytes would not do: the same source gives other
bytes, depending on what else the compiling process did before.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pericard.environment.archive import Python
from pericard.errors import NotInstalled

_NAME = re.compile(r"(.*?)(?:^|/)__pycache__/([^/]+)\.([a-z]+-\d+)(?:\.opt-(\w+))?\.pyc")
_COMPARER = Path(__file__).with_name("compared.py")
_SECONDS = 900
_NOWHERE = "/proc/self/fdinfo/none"  # where nobody can put a file
_LOT = 64


def source(path: str) -> str | None:
    """The path of what a compiled file was compiled from; None of a name that python does not look for."""
    match = _NAME.fullmatch(path)
    return None if match is None else f"{match[1]}/{match[2]}.py".lstrip("/")


def compile_all(prefix: Path, python: Python) -> None:
    """Compile every source below the interpreter's folder, by the prefix's own interpreter, which was verified.

    The files are never looked at again by the interpreter (``unchecked-hash``): the manifest vouches for them.

    Raises:
        NotInstalled: the interpreter does not run.
    """
    command = [
        str(prefix / "bin" / f"python{python.version}"), "-I", "-S", "-m", "compileall", "-q", "-q", "-f", "-j", "0",
        "--invalidation-mode", "unchecked-hash", str(prefix / "lib" / f"python{python.version}"),
    ]  # fmt: skip
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    try:
        # its status says whether every source compiled; some packages carry some that were never meant to
        done = subprocess.run(
            command, env=environment, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=_SECONDS, umask=0o022, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(f"{prefix}: its interpreter does not run here: {error}") from error
    if done.returncode not in {0, 1} or "Traceback" in done.stderr:
        said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise NotInstalled(f"{prefix}: its interpreter does not run here: {said[:300]}")


def agreeing(root: Path, paths: Sequence[str], python: Python | None) -> list[str]:
    """Those of the compiled files that their verified sources compile to.

    Args:
        root: the prefix.
        paths: of the compiled files, below it.
        python: the prefix's interpreter, if it and all that it runs was verified; else this one answers, which can
            only for the same version.
    """
    if not paths:
        return []
    interpreter = str(root / "bin" / f"python{python.version}") if python else sys.executable
    pairs = [(path, source(path) or "") for path in paths]
    count = max(1, min(len(os.sched_getaffinity(0)), len(pairs) // _LOT))
    parts = [pairs[place::count] for place in range(count)]
    with ThreadPoolExecutor(count) as pool:
        return [path for good in pool.map(lambda part: _asked(interpreter, root, part), parts) for path in good]


def _asked(interpreter: str, root: Path, part: Sequence[tuple[str, str]]) -> list[str]:
    """Ask a comparer; where it dies, of a file made to that end perhaps, ask for each half of them again."""
    # it must not run a compiled file that is yet to be compared: it looks for its own where there are none
    command = [interpreter, "-I", "-S", "-B", "-X", f"pycache_prefix={_NOWHERE}", str(_COMPARER), str(root)]
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            command, env=environment, cwd="/", input=json.dumps(part), stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, timeout=_SECONDS, check=False,
        )  # fmt: skip
        verdicts = json.loads(done.stdout) if done.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired, ValueError):
        verdicts = None
    if isinstance(verdicts, list) and len(verdicts) == len(part):
        return [path for (path, _), verdict in zip(part, verdicts, strict=True) if verdict is True]
    if len(part) == 1:
        return []
    middle = len(part) // 2
    return [path for half in (part[:middle], part[middle:]) for path in _asked(interpreter, root, half)]
