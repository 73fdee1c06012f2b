"""DICOM waveforms: the ECG storage classes of PS3.3 A.34, as carts, Holters and converters write them.

Rules of this room: only the elements named here are read from the file, so no name and no identity of a patient is
ever in memory; the original rhythm is taken, never a median beat; a lead is known by its code, then by its meaning,
never by its position; whatever is damaged becomes an ``UnreadableFile`` that says what was found.
"""

from __future__ import annotations

import re
import warnings
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pydicom.valuerep import DT
from pydicom.waveforms.numpy_handler import multiplex_array

from pericard_client.errors import ClientError, UnreadableFile, UnsupportedRecording, printable
from pericard_client.formats.recording import MILLIVOLTS, Recording, Samples

MAGIC = b"DICM"
MAGIC_AT = 128

_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.9.1.1": "12-lead ECG",
    "1.2.840.10008.5.1.4.1.1.9.1.2": "General ECG",
    "1.2.840.10008.5.1.4.1.1.9.1.3": "Ambulatory ECG",
    "1.2.840.10008.5.1.4.1.1.9.1.4": "General 32-bit ECG",
}
_READ = ["SpecificCharacterSet", "SOPClassUID", "AcquisitionDateTime", "TimezoneOffsetFromUTC", "WaveformSequence"]
# Linear samples; the companded ones (MB, AB) are voice codings.
_LINEAR = {(8, "SB"), (8, "UB"), (16, "SS"), (16, "US"), (32, "SL"), (32, "UL")}

# CID 3001 "ECG Lead": SCP-ECG and MDC number the leads alike, as 5.6.3-9-N and 2:N.
_NUMBERED = {
    1: "I", 2: "II", 3: "V1", 4: "V2", 5: "V3", 6: "V4", 7: "V5", 8: "V6", 9: "V7",
    10: "V2R", 11: "V3R", 12: "V4R", 13: "V5R", 14: "V6R", 15: "V7R", 16: "X", 17: "Y", 18: "Z",
    61: "III", 62: "aVR", 63: "aVL", 64: "aVF", 66: "V8", 67: "V9", 68: "V8R", 69: "V9R",
}  # fmt: skip
_CODES = {("SCPECG", f"5.6.3-9-{number}"): name for number, name in _NUMBERED.items()} | {
    ("MDC", f"2:{number}"): name for number, name in _NUMBERED.items()
}
_MEANINGS = {name.casefold(): name for name in [*_NUMBERED.values(), "MLII"]}
_MEANING = re.compile(
    r"(?:lead\s+)?(?P<name>[a-z0-9]+)(?:\s*\(einthoven\)|,\s*augmented voltage,?.*)?", re.IGNORECASE | re.ASCII
)
_ZONED = re.compile(r"[+-]\d{4}$")
_LABEL_LENGTH = 40


def read_dicom(path: Path) -> Recording:
    """Read the original rhythm of an ECG waveform file, in mV.

    Raises:
        UnreadableFile: damaged or cut short.
        UnsupportedRecording: no ECG, no original rhythm, or coded in a way that is not read.
    """
    try:
        with warnings.catch_warnings():
            # pydicom warns of values that break the standard; those that matter are checked here.
            warnings.simplefilter("ignore")
            return _recording(path, pydicom.dcmread(path, specific_tags=_READ))
    except ClientError:
        raise
    except Exception as error:  # pydicom lets any built-in error through when it parses damaged bytes
        what = str(error)[:200] or type(error).__name__
        raise UnreadableFile(f"{path}: damaged DICOM file: {what}") from error


def _recording(path: Path, dataset: Dataset) -> Recording:
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax not in {ImplicitVRLittleEndian, ExplicitVRLittleEndian}:
        raise UnsupportedRecording(f"{path}: transfer syntax {syntax} is not read; waveforms are stored uncompressed")
    kind = str(dataset.get("SOPClassUID", "none"))
    if kind not in _CLASSES:
        raise UnsupportedRecording(f"{path}: a DICOM file of class {_class_name(kind)}, which is no ECG")
    groups = list(dataset.get("WaveformSequence") or ())
    index = _original(path, groups)
    group = groups[index]
    _check_data(path, group)
    rows, names = _leads(path, dataset, index)
    label = printable(str(group.get("MultiplexGroupLabel") or "no label"))[:_LABEL_LENGTH]
    return Recording(
        samples=rows,
        sampling_rate=float(group.SamplingFrequency),
        leads=names,
        source=f"{_CLASSES[kind]}, group {index + 1} of {len(groups)} (ORIGINAL, {label})",
        acquired=_acquired(dataset),
    )


def _class_name(uid: str) -> str:
    known = pydicom.uid.UID(uid).name
    return f"{known} ({uid})" if known != uid else uid


def _original(path: Path, groups: list[Dataset]) -> int:
    """The longest original group; of equals the one with most channels, then the first."""

    def extent(index: int) -> tuple[float, int, int]:
        group = groups[index]
        seconds = float(group.NumberOfWaveformSamples) / float(group.SamplingFrequency)
        return seconds, int(group.NumberOfWaveformChannels), -index

    originals = [
        index
        for index, group in enumerate(groups)
        if group.get("WaveformOriginality") == "ORIGINAL"
        and "median" not in str(group.get("MultiplexGroupLabel", "")).casefold()
    ]
    if not originals:
        raise UnsupportedRecording(f"{path}: none of its {len(groups)} waveform groups is an original rhythm")
    return max(originals, key=extent)


def _check_data(path: Path, group: Dataset) -> None:
    coding = (int(group.WaveformBitsAllocated), str(group.WaveformSampleInterpretation))
    if coding not in _LINEAR:
        raise UnsupportedRecording(f"{path}: samples coded as {coding[0]} bit {coding[1]} are not read")
    needed = int(group.NumberOfWaveformSamples) * int(group.NumberOfWaveformChannels) * coding[0] // 8
    held = len(group.WaveformData)
    if needed < 1 or held < needed:
        raise UnreadableFile(f"{path}: its waveform holds {held} bytes; {needed} are declared")
    channels = len(group.ChannelDefinitionSequence)
    if channels != int(group.NumberOfWaveformChannels):
        raise UnreadableFile(
            f"{path}: {channels} channels are described; {group.NumberOfWaveformChannels} are declared"
        )


def _leads(path: Path, dataset: Dataset, index: int) -> tuple[Samples, tuple[str, ...]]:
    """Samples ``[leads][T]`` in mV and their names; channels that are no ECG lead are left out."""
    group = dataset.WaveformSequence[index]
    # waveform_array applies sensitivity, correction factor and baseline; reading the sensitivity alone is wrong.
    values: Samples = dataset.waveform_array(index)
    padding = _padding(group)
    raw = None if padding is None else multiplex_array(dataset, index, as_raw=True)
    rows: list[Samples] = []
    names: list[str] = []
    for number, channel in enumerate(group.ChannelDefinitionSequence):
        name = _lead_name(path, number, channel)
        if name is None:
            continue
        row = values[:, number] * _millivolts(path, name, channel)
        if raw is not None:
            row[raw[:, number] == padding] = np.nan
        rows.append(row)
        names.append(name)
    if not rows:
        raise UnsupportedRecording(
            f"{path}: none of its {len(group.ChannelDefinitionSequence)} channels is an ECG lead"
        )
    return np.stack(rows), tuple(names)


def _padding(group: Dataset) -> int | None:
    stored = group.get("WaveformPaddingValue")
    if isinstance(stored, bytes):
        signed = str(group.WaveformSampleInterpretation).startswith("S")
        return int.from_bytes(stored[: int(group.WaveformBitsAllocated) // 8], "little", signed=signed)
    return None if stored is None else int(stored)


def _lead_name(path: Path, number: int, channel: Dataset) -> str | None:
    """The lead by its code, else by its meaning; None for a channel that is neither.

    Raises:
        UnsupportedRecording: code and meaning name different leads; which is right cannot be known.
    """
    source = channel.ChannelSourceSequence[0]
    by_code = _CODES.get((str(source.get("CodingSchemeDesignator", "")), str(source.get("CodeValue", ""))))
    match = _MEANING.fullmatch(str(source.get("CodeMeaning", "")).strip())
    by_meaning = _MEANINGS.get(match["name"].casefold()) if match else None
    if by_code and by_meaning and by_code != by_meaning:
        raise UnsupportedRecording(
            f"{path}: channel {number + 1} is lead {by_code} by its code and lead {by_meaning} by its meaning"
        )
    return by_code or by_meaning


def _millivolts(path: Path, name: str, channel: Dataset) -> float:
    units = channel.get("ChannelSensitivityUnitsSequence") or ()
    unit = str(units[0].get("CodeValue", "")) if units else "no unit"
    if "ChannelSensitivity" not in channel or unit not in MILLIVOLTS:
        raise UnsupportedRecording(f"{path}: lead {name} is given in {unit}, so its voltage is not known")
    return MILLIVOLTS[unit]


def _acquired(dataset: Dataset) -> datetime | None:
    text = str(dataset.get("AcquisitionDateTime") or "")
    if not _ZONED.search(text):
        text += str(dataset.get("TimezoneOffsetFromUTC") or "")
    try:
        return datetime.fromisoformat(DT(text).isoformat())
    except (AttributeError, ValueError):  # empty or malformed: the recording is as good without it
        return None
