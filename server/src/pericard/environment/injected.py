"""What gets code into this process, or into one that it starts, without being part of the installed environment.

Rules of this room: it looks and names, it does not judge and changes nothing. Every variable has the reason why it is
here; one that only tunes, logs or points at data is not. Values are never repeated, names are. What cannot be looked at
is a finding. Whoever is in already can lie to all of this: an interpreter from outside verifies files
(``verifier``), a service manager clears variables.

It must look before the process hardens itself: afterwards ``/proc/self`` is closed to it.
"""

from __future__ import annotations

import json
import os
import re
import site
import stat
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from pericard.environment.verifier import Finding, printable

_LINKER = "the dynamic linker"
_PYTHON = "python"
_OPENSSL = "OpenSSL"
_PROFILER = "a profiler's interface that torch is built with"

#: A variable's name, or its beginning where it ends in ``*`` → who heeds it, and what it does.
VARIABLES = {
    # ld.so(8): it reads them before the first instruction of any program, of python too
    "LD_PRELOAD": (_LINKER, "loads what it names before everything else"),
    "LD_AUDIT": (_LINKER, "loads what it names, and lets it redirect every call"),
    "LD_LIBRARY_PATH": (_LINKER, "looks for libraries there before their own places"),
    # iconv(3): character sets are shared objects
    "GCONV_PATH": ("the C library", "loads converters of character sets from there"),
    # python(1): the daemon's children run with -I and heed none of them; the daemon itself may
    "PYTHONPATH": (_PYTHON, "imports modules from there before its own"),
    "PYTHONHOME": (_PYTHON, "takes its whole standard library from there"),
    "PYTHONPLATLIBDIR": (_PYTHON, "takes its standard library from that folder's name"),
    "PYTHONUSERBASE": (_PYTHON, "takes the user's packages and .pth files from there"),
    "PYTHONPYCACHEPREFIX": (_PYTHON, "runs compiled files from there in place of their sources"),
    "PYTHONSTARTUP": (_PYTHON, "runs it before the first prompt"),
    "PYTHONINSPECT": (_PYTHON, "takes code from its input when the program ends"),
    "PYTHONBREAKPOINT": (_PYTHON, "imports and calls what it names at a breakpoint"),
    # openssl-env(7): a configuration names providers and engines, which are shared objects
    "OPENSSL_CONF": (_OPENSSL, "loads the providers that the file names"),
    "OPENSSL_CONF_INCLUDE": (_OPENSSL, "takes parts of its configuration from there"),
    "OPENSSL_MODULES": (_OPENSSL, "loads its providers from there"),
    "OPENSSL_ENGINES": (_OPENSSL, "loads its engines from there"),
    # shared objects that arithmetic libraries load when they start
    "INTEL_LIBITTNOTIFY*": (_PROFILER, "loads the library that it names"),
    "INTEL_JIT_PROFILER*": (_PROFILER, "loads the library that it names"),
    "OMP_TOOL_LIBRARIES": ("the OpenMP runtime", "loads the tools that it names"),
    "CUDA_INJECTION*_PATH": ("the CUDA driver", "loads the library that it names"),
    "NVTX_INJECTION*_PATH": ("the CUDA libraries", "load the library that it names"),
    "NCCL_*_PLUGIN": ("NCCL", "loads the plugin that it names"),
    "ORT_TENSORRT_EXTRA_PLUGIN_LIB_PATHS": ("ONNX Runtime", "loads the plugins that it names"),
    # compiled code that is kept in folders, and programs that compile it
    "CUDA_CACHE_PATH": ("the CUDA driver", "takes compiled kernels from there"),
    "TORCH_EXTENSIONS_DIR": ("torch", "loads compiled extensions from there"),
    "TORCHINDUCTOR_CACHE_DIR": ("torch", "loads compiled graphs from there"),
    "TRITON_CACHE_DIR": ("triton", "loads compiled kernels from there"),
    "TRITON_OVERRIDE_DIR": ("triton", "takes kernels from there in place of its own"),
    "TRITON_LIBCUDA_PATH": ("triton", "links with the driver that it names"),
    "TRITON_PTXAS*_PATH": ("triton", "runs the program that it names"),
}
_PATTERNS = [
    (re.compile(re.escape(name).replace(r"\*", r"\w*")), f"{who} {what}") for name, (who, what) in VARIABLES.items()
]
_ENVIRON, _MAPS = Path("/proc/self/environ"), Path("/proc/self/maps")
_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ (\S{4}) [0-9a-f]+ \S+ \d+ +(.*)")
_MOST_BYTES = 16 << 20


def find(roots: Sequence[str] | None = None) -> list[Finding]:
    """Everything that was found; empty where nothing but the environment itself runs here.

    Args:
        roots: folders that modules may come from; those of this interpreter, if none are given.
    """
    places = tuple(str(Path(root).resolve()) for root in roots or prefixes())
    return [*variables(), *_flags(), *_module_path(places), *_mapped(places)]


def prefixes() -> tuple[str, ...]:
    """Where this interpreter and its packages are installed: one folder, or two for a virtual environment."""
    return tuple(dict.fromkeys((sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)))


def variables() -> list[Finding]:
    """Variables that this process has or was started with; a preloaded library may have taken its own away."""
    names = {name for name, value in os.environ.items() if value}  # one without a value does nothing
    unseen: list[Finding] = []
    try:
        with _ENVIRON.open("rb") as file:
            entries = [entry.partition(b"=") for entry in file.read(_MOST_BYTES).split(b"\0")]
        names |= {os.fsdecode(name) for name, _, value in entries if value}
    except OSError as error:
        unseen = [_unseen(_ENVIRON, error)]
    found = ((name, why) for name in sorted(names) for pattern, why in _PATTERNS if pattern.fullmatch(name))
    return [*(Finding("variable", name, f"{name}: is set; {why}") for name, why in found), *unseen]


def _flags() -> Iterator[Finding]:
    """What the interpreter was told on its command line, or by a folder that is there."""
    if sys.flags.inspect:
        yield Finding("flag", "-i", "-i: python takes code from its input when the program ends")
    if sys.pycache_prefix is not None:
        yield Finding("flag", "pycache_prefix", "-X pycache_prefix: python runs compiled files from another folder")
    user = site.getusersitepackages() if site.ENABLE_USER_SITE else None
    if user is not None and user in sys.path:
        yield Finding(
            "user-site", user, f"{printable(user)}: python imports the user's own packages; -s leaves them out"
        )


def _module_path(roots: tuple[str, ...]) -> Iterator[Finding]:
    """Places that modules come from and that are not of the environment, and packages that lie elsewhere."""
    user = site.getusersitepackages() if site.ENABLE_USER_SITE else None
    for entry in dict.fromkeys(sys.path):
        if entry == "":
            yield Finding("path", "", "the working folder: python imports modules from it; -I leaves it out")
        elif entry != user and not _within(str(Path(entry).resolve()), roots):
            words = "python imports modules from it, and it is not of the environment"
            yield Finding("path", entry, f"{printable(entry)}: {words}")
    for name in sorted(_editable()):
        yield Finding("editable", name, f"{printable(name)}: is installed as a link to a folder that may change")


def _editable() -> Iterator[str]:
    """Distributions that pip installed as links to their sources."""
    for distribution in metadata.distributions():
        text = distribution.read_text("direct_url.json")
        if text is None:
            continue
        try:
            linked = bool(json.loads(text)["dir_info"].get("editable"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # of an archive, or nobody's
        if linked:
            yield str(distribution.metadata["Name"] or "unknown")


def _mapped(roots: tuple[str, ...]) -> Iterator[Finding]:
    """Code in this process from files that others than root may change, and that are not of the environment.

    It shows a library that was loaded by a variable which is gone, or by no variable at all.
    """
    try:
        with _MAPS.open("rb") as file:
            lines = os.fsdecode(file.read(_MOST_BYTES)).splitlines()
    except OSError as error:
        yield _unseen(_MAPS, error)
        return
    found = (_MAPPING.fullmatch(line) for line in lines)
    for path in sorted({match[2] for match in found if match and "x" in match[1] and match[2].startswith("/")}):
        if path.endswith(" (deleted)"):
            yield Finding("mapped", path, f"{printable(path)}: runs here, and its file is gone")
        elif not _within(path, roots) and _changeable(path):
            yield Finding("mapped", path, f"{printable(path)}: runs here, and others than root may change it")


def _changeable(path: str) -> bool:
    """Whether anybody but root can change a file, or put another in its place; yes where that cannot be seen."""
    try:
        places = [os.stat(path), os.stat(os.path.dirname(path))]  # noqa: PTH116, PTH120  (text from the kernel)
    except OSError:
        return True
    return any(found.st_uid != 0 or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) for found in places)


def _within(path: str, roots: tuple[str, ...]) -> bool:
    return any(path == root or path.startswith(root.rstrip("/") + "/") for root in roots)


def _unseen(path: Path, error: OSError) -> Finding:
    return Finding("unseen", str(path), f"{path}: cannot be read: {(error.strerror or 'i/o error').lower()}")
