"""Builds and registers the fake device of ``fake_device.cpp`` as torch's device ``fake``."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import types
from collections.abc import Callable
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("fake_device.cpp")
_BUILD_SECONDS = 110


class Counters(ctypes.Structure):
    """As in the source."""

    _fields_ = [
        (name, ctypes.c_long)
        for name in (
            "to_device", "to_device_bytes", "to_device_largest", "to_host", "to_host_bytes", "to_host_largest",
            "live",
        )
    ]  # fmt: skip


def compiler() -> str | None:
    return shutil.which("g++")


def build(folder: Path) -> Path:
    """Compile against the torch of this interpreter."""
    root = Path(torch.__file__).parent
    built = folder / "fake_device.so"
    abi = int(torch._C._GLIBCXX_USE_CXX11_ABI)
    subprocess.run(
        [
            "g++", "-O1", "-std=c++20", "-shared", "-fPIC", f"-D_GLIBCXX_USE_CXX11_ABI={abi}",
            f"-I{root}/include", f"-I{root}/include/torch/csrc/api/include", str(SOURCE), "-o", str(built),
            f"-L{root}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{root}/lib",
        ],
        check=True, timeout=_BUILD_SECONDS, capture_output=True,
    )  # fmt: skip
    return built


def register(built: Path, *, before_synchronize: Callable[[], None] = lambda: None) -> Counters:
    """Make it torch's device ``fake``; once in a process."""
    torch.ops.load_library(str(built))
    library = ctypes.CDLL(str(built))
    library.fake_device_counters.restype = ctypes.POINTER(Counters)

    def synchronize(*_: object) -> None:
        before_synchronize()
        library.fake_device_synchronize()

    module = types.ModuleType("torch.fake")
    vars(module).update(
        is_available=lambda: True, device_count=lambda: 1, current_device=lambda: 0, is_initialized=lambda: True,
        synchronize=synchronize, _is_in_bad_fork=lambda: False, _lazy_init=lambda: None,
    )  # fmt: skip
    torch.utils.rename_privateuse1_backend("fake")
    torch._register_device_module("fake", module)
    counters: Counters = library.fake_device_counters().contents
    return counters
