"""A decrypted artifact: on the host in private memory, or on a device through two chunks of it.

On the host, tensors are views of the one buffer that was decrypted into. On a device they are views of one buffer
there; the host never holds more than one chunk a worker, in staging memory that the device copies from and that is
wiped once the copy has ended. What the host needs itself (index, graph, known answers) is read back.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from pericard.errors import HardeningError, ModelTooLarge
from pericard.hardening import PrivateMemory
from pericard.runtime.exported import dtype_of, view_tensor
from pericard.sealed import Artifact, Progress, Tensor, VerifiedModel, artifact
from pericard.sealed.layout import CHUNK_SIZE
from pericard.sealed.payload import ChunkCipher

_STAGES = 2  # while one chunk is copied the next is decrypted


class Plaintext(Protocol):
    """The bytes of an artifact and where they are.

    Attributes:
        device: ``cpu`` or a device's name.
        locked: whether they can never be swapped out.
    """

    device: str
    locked: bool

    def decrypt(self, model: VerifiedModel, cipher: ChunkCipher, progress: Progress | None) -> None:
        """Fill it; on any failure nothing is left in it."""
        ...

    def index(self, *, subject: str) -> Artifact:
        """Read the artifact's index."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """A copy of some bytes, on the host."""
        ...

    def tensor(self, tensor: Tensor) -> torch.Tensor:
        """A view of one tensor, where it is."""
        ...

    def close(self) -> None:
        """Zero everything and let go of it; views that are still held see zeros."""
        ...


def hold(size: int, device: str, *, secret: bool = False) -> Plaintext:
    """Memory for an artifact of ``size`` bytes.

    Raises:
        HardeningError: the host has not so much, or has no secret memory.
        ModelTooLarge: the device has not so much.
    """
    return HostPlaintext(size, secret=secret) if device == "cpu" else DevicePlaintext(size, device)


class HostPlaintext:
    """An artifact in private memory."""

    device = "cpu"

    def __init__(self, size: int, *, secret: bool = False) -> None:
        """Get the memory; see :class:`~pericard.hardening.PrivateMemory`."""
        self._memory = PrivateMemory(size, secret=secret)
        self.locked = self._memory.locked

    def decrypt(self, model: VerifiedModel, cipher: ChunkCipher, progress: Progress | None) -> None:
        """Decrypt straight to its place."""
        model.decrypt_into(cipher, self._memory.view, progress=progress)

    def index(self, *, subject: str) -> Artifact:
        """Read the artifact's index."""
        return artifact.parse(self._memory.view, subject=subject)

    def read(self, offset: int, size: int) -> bytes:
        """A copy of some bytes."""
        return bytes(self._memory.view[offset : offset + size])

    def view(self, tensor: Tensor) -> memoryview:
        """The bytes of one tensor, without a copy."""
        return self._memory.view[tensor.offset : tensor.offset + tensor.size]

    def tensor(self, tensor: Tensor) -> torch.Tensor:
        """A view of one tensor."""
        return view_tensor(tensor, self._memory.view)

    def close(self) -> None:
        """Zero and unmap."""
        self._memory.close()


class DevicePlaintext:
    """An artifact in a device's memory. Nothing locks that, and nothing needs to: it is not swapped."""

    locked = True

    def __init__(self, size: int, device: str) -> None:
        """Get the memory.

        Raises:
            ModelTooLarge: the device has not so much.
        """
        self.device = device
        try:
            self._flat = torch.zeros(size, dtype=torch.uint8, device=device)
        except RuntimeError as error:
            raise ModelTooLarge(f"device {device}: has no {size} bytes of memory left") from error

    def decrypt(self, model: VerifiedModel, cipher: ChunkCipher, progress: Progress | None) -> None:
        """Decrypt through staging memory."""
        stages: list[Staging] = []
        try:
            stages.extend(Staging(self._flat) for _ in range(min(_STAGES, len(model.manifest.payload.chunks))))
            model.decrypt_to(cipher, stages, progress=progress)
        except BaseException:
            self._flat.zero_()
            raise
        finally:
            for stage in stages:
                stage.close()

    def index(self, *, subject: str) -> Artifact:
        """Read the artifact's index."""
        size = len(self._flat)
        head = self.read(0, min(size, artifact.index_end(self.read(0, artifact.HEAD_SIZE), subject=subject)))
        return artifact.parse(memoryview(head), size=size, subject=subject)

    def read(self, offset: int, size: int) -> bytes:
        """A copy of some bytes, on the host."""
        return self._flat[offset : offset + size].cpu().numpy().tobytes()

    def tensor(self, tensor: Tensor) -> torch.Tensor:
        """A view of one tensor, on the device."""
        return self._flat[tensor.offset : tensor.offset + tensor.size].view(dtype_of(tensor)).reshape(tensor.shape)

    def close(self) -> None:
        """Zero it on the device, and wait until that is done."""
        self._flat.zero_()
        synchronize(self._flat.device)


class Staging:
    """One worker's chunk on its way to a device: pinned, left out of core dumps, wiped after every copy."""

    def __init__(self, flat: torch.Tensor) -> None:
        """Get the staging memory.

        Raises:
            HardeningError: the host or the driver refuses it.
        """
        self._flat = flat
        self._memory = PrivateMemory(CHUNK_SIZE)
        self._view = self._memory.view
        self._tensor = torch.frombuffer(self._view, dtype=torch.uint8)
        self._pinned = False
        if flat.device.type == "cuda":
            self._pin()

    def slot(self, offset: int, length: int) -> memoryview:  # noqa: ARG002  (a Sink is told where)
        """The staging memory."""
        return self._view[:length]

    def done(self, offset: int, length: int) -> None:
        """Copy to the device, wait for the copy's end, wipe."""
        try:
            self._flat[offset : offset + length].copy_(self._tensor[:length], non_blocking=True)
            synchronize(self._flat.device)  # wiped before that, the device would get zeros
        finally:
            self._memory.wipe()

    def close(self) -> None:
        """Unpin and give back."""
        self._memory.wipe()
        if self._pinned:
            _cudart().cudaHostUnregister(self._tensor.data_ptr())
        del self._tensor
        self._view.release()
        self._memory.close()

    def _pin(self) -> None:
        """Let the driver copy from this very memory; it would otherwise go through a buffer of its own."""
        status = _cudart().cudaHostRegister(self._tensor.data_ptr(), CHUNK_SIZE, 0)
        if int(status) != 0:
            self._memory.close()
            raise HardeningError(f"staging memory: cannot be pinned for {self._flat.device} (status {int(status)})")
        self._pinned = True


def synchronize(device: torch.device) -> None:
    """Wait until everything that was asked of a device is done."""
    torch.get_device_module(device).synchronize()


def _cudart() -> Any:  # noqa: ANN401  (a module that torch makes at run time)
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]  # torch's own, without types
