"""Recordings from files, and the strips that a model takes.

Rules of this room: a file is known by its content, not by its name; the server never sees a file, only samples, so
that no parser of these formats stands in the process that holds a model.
"""

from __future__ import annotations

from pathlib import Path

from pericard_client.errors import UnreadableFile, UnsupportedRecording
from pericard_client.formats.dicom import MAGIC as DICOM_MAGIC
from pericard_client.formats.dicom import MAGIC_AT as DICOM_MAGIC_AT
from pericard_client.formats.dicom import read_dicom
from pericard_client.formats.npy import MAGIC as NPY_MAGIC
from pericard_client.formats.npy import read_npy
from pericard_client.formats.recording import Recording
from pericard_client.formats.strips import Strips, as_recorded, prepare

__all__ = ["Recording", "Strips", "as_recorded", "prepare", "read"]

_LARGEST_FILE = 1 << 30
_FOUND = {
    b"%PDF": "a PDF document",
    b"<?xml": "an XML document",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "gzip-compressed data",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"{": "JSON",
}


def read(
    path: Path | str, *, sampling_rate: float | None = None, unit: str | None = None, leads: tuple[str, ...] = ()
) -> Recording:
    """Read a DICOM waveform or an NPY array.

    Args:
        path: the file.
        sampling_rate: in Hz, of an NPY file; a DICOM file declares its own.
        unit: ``mV``, ``uV`` or ``V``, of an NPY file.
        leads: names of an NPY file's rows.

    Raises:
        UnreadableFile: it cannot be opened, is damaged, or is something else.
        UnsupportedRecording: it is read, and not a recording that can be used.
    """
    path = Path(path)
    head = _head(path)
    if head.startswith(NPY_MAGIC):
        return read_npy(path, sampling_rate=sampling_rate, unit=unit, leads=leads)
    if head[DICOM_MAGIC_AT:].startswith(DICOM_MAGIC):
        if sampling_rate is not None or unit is not None or leads:
            raise UnsupportedRecording(
                f"{path}: a DICOM file declares its own sampling rate, unit and leads",
                hint="leave out --sampling-rate, --unit and --leads",
            )
        return read_dicom(path)
    found = next((name for magic, name in _FOUND.items() if head.startswith(magic)), "something else")
    raise UnreadableFile(
        f"{path}: neither a DICOM nor an NPY file, but {found if head else 'empty'}",
        hint="export the recording as a DICOM waveform",
    )


def _head(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(DICOM_MAGIC_AT + len(DICOM_MAGIC))
    except OSError as error:
        raise UnreadableFile(f"{path}: {(error.strerror or str(error)).lower()}") from error
    if size > _LARGEST_FILE:
        raise UnreadableFile(f"{path}: {size} bytes are more than any recording that is read here")
    return head
