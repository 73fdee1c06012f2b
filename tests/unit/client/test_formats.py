"""Files: real recordings read rightly, damaged ones refused in words, and nothing of the patient kept."""

import io
import pickle
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian

from pericard_client.errors import ContractUnmet, FileError, UnreadableFile, UnsupportedRecording
from pericard_client.formats import Recording, read

HOSPITAL = Path(__file__).parents[2] / "data" / "hospital"
TWELVE = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
Change = Callable[[Callable[[Dataset], None]], Path]


def channel(dataset: Dataset, number: int, group: int = 0) -> Dataset:
    return dataset.WaveformSequence[group].ChannelDefinitionSequence[number]


def source(dataset: Dataset, number: int, group: int = 0) -> Dataset:
    return channel(dataset, number, group).ChannelSourceSequence[0]


def test_a_carts_12_lead_recording(ecg: Path) -> None:
    recording = read(ecg)
    assert recording.leads == TWELVE
    assert (recording.sampling_rate, recording.samples.shape, recording.duration) == (1000.0, (12, 10_000), 10.0)
    assert recording.source == "12-lead ECG, group 1 of 2 (ORIGINAL, RHYTHM)"
    assert recording.acquired == datetime(2013, 1, 25, 10, 59, 19)  # noqa: DTZ001 - the file names no zone
    raw = pydicom.dcmread(ecg).waveform_array(0)
    assert np.allclose(recording.lead("II"), raw[:, 1] / 1000, rtol=1e-12)
    assert 0.1 < np.ptp(recording.lead("II")) < 5  # millivolts, not microvolts


@pytest.mark.parametrize("name", ["guangxi_teaching_sinus_rhythm.dcm", "synthetic_muse.dcm"])
def test_a_converted_recording_with_a_correction_factor(name: str) -> None:
    recording = read(HOSPITAL / name)
    assert recording.source == "General ECG, group 1 of 2 (ORIGINAL, Rhythm)"
    assert recording.leads == TWELVE
    group = pydicom.dcmread(HOSPITAL / name).WaveformSequence[0]
    stored = np.frombuffer(group.WaveformData, "<i2").reshape(-1, 12)
    assert np.allclose(recording.lead("II"), stored[:, 1] * 4.88 / 1000)  # sensitivity 1, correction factor 4.88
    assert np.allclose(recording.lead("II"), recording.lead("I") + recording.lead("III"), atol=0.0101)


def test_the_median_beat_is_never_taken(changed: Change) -> None:
    def swap(dataset: Dataset) -> None:
        dataset.WaveformSequence = Sequence(reversed(list(dataset.WaveformSequence)))

    recording = read(changed(swap))
    assert recording.samples.shape == (12, 10_000)
    assert "group 2 of 2" in recording.source

    def mislabel(dataset: Dataset) -> None:
        dataset.WaveformSequence[0].WaveformOriginality = "DERIVED"
        dataset.WaveformSequence[1].WaveformOriginality = "ORIGINAL"

    with pytest.raises(UnsupportedRecording, match="none of its 2 waveform groups is an original rhythm"):
        read(changed(mislabel))


def test_the_longest_original_group_is_taken(changed: Change) -> None:
    def two(dataset: Dataset) -> None:
        dataset.WaveformSequence[1].WaveformOriginality = "ORIGINAL"
        dataset.WaveformSequence[1].MultiplexGroupLabel = "STRIP"
        dataset.WaveformSequence[1].SamplingFrequency = 100  # 12 s: fewer samples, and longer

    assert read(changed(two)).sampling_rate == 100


@pytest.mark.parametrize("scheme", ["SCPECG", "MDC", "unknown"])
def test_leads_by_code_then_by_meaning(changed: Change, scheme: str) -> None:
    def recode(dataset: Dataset) -> None:
        for number in range(12):
            name = source(dataset, number)
            if scheme == "MDC":
                name.CodingSchemeDesignator, name.CodeValue = "MDC", name.CodeValue.replace("5.6.3-9-", "2:")
                name.CodeMeaning = "nothing that is known"
            elif scheme == "unknown":
                name.CodingSchemeDesignator, name.CodeValue = "99LOCAL", str(number)
            else:
                del name.CodeMeaning

    assert read(changed(recode)).leads == TWELVE


@pytest.mark.parametrize(
    ("meaning", "lead"),
    [
        ("Lead I (Einthoven)", "I"),
        ("aVR, augmented voltage, right", "aVR"),
        ("LEAD AVF", "aVF"),
        ("MLII", "MLII"),
        ("Derived Lead II", None),
        ("Lead II modified", None),
        ("Pacer", None),
        ("", None),
    ],
)
def test_a_meaning_is_one_leads_whole_name(changed: Change, meaning: str, lead: str | None) -> None:
    def rename(dataset: Dataset) -> None:
        name = source(dataset, 6)
        name.CodingSchemeDesignator, name.CodeValue, name.CodeMeaning = "99LOCAL", "x", meaning
        for number in (0, 3, 5):
            source(dataset, number).CodeValue, source(dataset, number).CodeMeaning = "x", "other"

    assert read(changed(rename)).leads == ("II", "III", "aVL", *((lead,) if lead else ()), *TWELVE[7:])


def test_a_lead_whose_code_and_meaning_differ_is_refused(changed: Change) -> None:
    def contradict(dataset: Dataset) -> None:
        source(dataset, 1).CodeMeaning = "Lead III"

    with pytest.raises(UnsupportedRecording, match="channel 2 is lead II by its code and lead III by its meaning"):
        read(changed(contradict))


def test_padding_is_no_signal(changed: Change) -> None:
    def pad(dataset: Dataset) -> None:
        group = dataset.WaveformSequence[0]
        group.add_new("WaveformPaddingValue", "OW", (-32768).to_bytes(2, "little", signed=True))
        stored = np.frombuffer(group.WaveformData, "<i2").reshape(-1, 12).copy()
        stored[2500:2510, 1] = -32768
        group.WaveformData = stored.tobytes()

    recording = read(changed(pad))
    with pytest.raises(ContractUnmet, match=r"lead II has 10 samples without signal, the first at 2\.500 s"):
        recording.lead("II")
    assert np.isfinite(recording.lead("I")).all()


def test_samples_of_32_bits(changed: Change) -> None:
    def widen(dataset: Dataset) -> None:
        group = dataset.WaveformSequence[0]
        group.WaveformData = np.frombuffer(group.WaveformData, "<i2").astype("<i4").tobytes()
        group.WaveformBitsAllocated, group.WaveformSampleInterpretation = 32, "SL"
        for number in range(12):
            channel(dataset, number).WaveformBitsStored = 32
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.9.1.4"

    wide = read(changed(widen))
    assert wide.source.startswith("General 32-bit ECG")
    assert np.ptp(wide.lead("II")) > 0.1


@pytest.mark.parametrize(
    ("text", "moment"), [("20240101120000", 4), ("20240101120000+0000", 12), ("", None), ("x", None)]
)
def test_the_time_of_acquisition(changed: Change, text: str, moment: int | None) -> None:
    def date(dataset: Dataset) -> None:
        dataset.TimezoneOffsetFromUTC = "+0800"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset.AcquisitionDateTime = text

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # writing a value that breaks the standard
        path = changed(date)
    acquired = read(path).acquired
    assert acquired == (moment if moment is None else datetime(2024, 1, 1, moment, tzinfo=UTC))


def _delete(*path: str) -> Callable[[Dataset], None]:
    def edit(dataset: Dataset) -> None:
        spot = dataset
        for step in path[:-1]:
            spot = getattr(spot, step)[0]
        delattr(spot, path[-1])

    return edit


def _set(value: Any, *path: str) -> Callable[[Dataset], None]:
    def edit(dataset: Dataset) -> None:
        spot = dataset
        for step in path[:-1]:
            spot = getattr(spot, step)[0]
        setattr(spot, path[-1], value)

    return edit


GROUP = "WaveformSequence"
CHANNEL = (GROUP, "ChannelDefinitionSequence")
DAMAGED: list[tuple[Callable[[Dataset], None], type[FileError], str]] = [
    (_delete(GROUP), UnsupportedRecording, "none of its 0"),
    (_delete("SOPClassUID"), UnsupportedRecording, "class none"),
    (_set("1.2.840.10008.5.1.4.1.1.2", "SOPClassUID"), UnsupportedRecording, "CT Image Storage"),
    (_set("1.2.840.10008.5.1.4.1.1.9.2.1", "SOPClassUID"), UnsupportedRecording, "no ECG"),
    (_delete(GROUP, "WaveformData"), UnreadableFile, "WaveformData"),
    (_delete(GROUP, "SamplingFrequency"), UnreadableFile, "SamplingFrequency"),
    (_set(0, GROUP, "SamplingFrequency"), UnreadableFile, "division by zero"),
    (_set(-500, GROUP, "SamplingFrequency"), UnsupportedRecording, "-500 Hz is not possible"),
    (_set(20_000, GROUP, "NumberOfWaveformSamples"), UnreadableFile, "holds 240000 bytes; 480000 are declared"),
    (_set(11, GROUP, "NumberOfWaveformChannels"), UnreadableFile, "12 channels are described; 11 are declared"),
    (_set("MB", GROUP, "WaveformSampleInterpretation"), UnsupportedRecording, "16 bit MB"),
    (_set("mm[Hg]", *CHANNEL, "ChannelSensitivityUnitsSequence", "CodeValue"), UnsupportedRecording, "mm"),
    (_delete(*CHANNEL, "ChannelSensitivity"), UnsupportedRecording, "voltage is not known"),
    (_delete(*CHANNEL, "ChannelSensitivityUnitsSequence"), UnsupportedRecording, "given in no unit"),
    (_delete(*CHANNEL, "ChannelSourceSequence"), UnreadableFile, "ChannelSourceSequence"),
    (_delete(GROUP, "ChannelDefinitionSequence"), UnreadableFile, "ChannelDefinitionSequence"),
]


@pytest.mark.parametrize(("edit", "kind", "words"), DAMAGED, ids=[f"{n}-{d[2]}" for n, d in enumerate(DAMAGED)])
def test_a_file_that_breaks_the_standard(
    changed: Change, edit: Callable[[Dataset], None], kind: type[FileError], words: str
) -> None:
    path = changed(edit)
    with pytest.raises(FileError) as caught:
        read(path)
    assert type(caught.value) is kind
    assert words in caught.value.message


def test_no_ecg_lead_at_all(changed: Change) -> None:
    def rename(dataset: Dataset) -> None:
        for number in range(12):
            source(dataset, number).CodeValue, source(dataset, number).CodeMeaning = "x", "pressure"

    with pytest.raises(UnsupportedRecording, match="none of its 12 channels is an ECG lead"):
        read(changed(rename))


def test_one_lead_twice(changed: Change) -> None:
    def twice(dataset: Dataset) -> None:
        source(dataset, 2).CodeValue, source(dataset, 2).CodeMeaning = "5.6.3-9-2", "Lead II"

    with pytest.raises(UnsupportedRecording, match="lead II is there more than once"):
        read(changed(twice))


def test_a_compressed_transfer_syntax(ecg: Path, tmp_path: Path) -> None:
    dataset = pydicom.dcmread(ecg)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "deflated.dcm")
    with pytest.raises(UnsupportedRecording, match="transfer syntax"):
        read(tmp_path / "deflated.dcm")


def attempt(path: Path) -> tuple[Any, FileError | None]:
    try:
        return read(path), None
    except FileError as error:
        return None, error


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.integers(min_value=0, max_value=1 << 19))
def test_a_file_cut_anywhere_is_refused_or_whole(ecg: Path, tmp_path: Path, at: int) -> None:
    whole = ecg.read_bytes()
    path = tmp_path / "cut.dcm"
    path.write_bytes(whole[:at])
    recording, error = attempt(path)
    if error is not None:
        assert str(path) in error.message
    else:  # cut behind the last sample
        assert np.array_equal(recording.samples, read(ecg).samples)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.integers(min_value=128, max_value=4000), mask=st.integers(min_value=1, max_value=255))
def test_a_flipped_byte_in_the_header_raises_nothing_foreign(ecg: Path, tmp_path: Path, at: int, mask: int) -> None:
    damaged = bytearray(ecg.read_bytes())
    damaged[at] ^= mask
    path = tmp_path / "flipped.dcm"
    path.write_bytes(damaged)
    _, error = attempt(path)
    assert error is None or "\n" not in error.message


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"", "empty"),
        (b"%PDF-1.7", "a PDF document"),
        (b"<?xml version='1.0'?>", "an XML document"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"\x1f\x8b\x08", "gzip-compressed data"),
        (b"hello", "something else"),
    ],
)
def test_another_kind_of_file_is_named(tmp_path: Path, head: bytes, found: str) -> None:
    path = tmp_path / "Upper.dcm"
    path.write_bytes(head)
    with pytest.raises(UnreadableFile) as caught:
        read(path)
    assert caught.value.message == f"{path}: neither a DICOM nor an NPY file, but {found}"


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="no such file or directory"):
        read(tmp_path / "Absent.dcm")
    with pytest.raises(UnreadableFile, match="is a directory"):
        read(tmp_path)
    with (tmp_path / "huge.npy").open("wb") as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(UnreadableFile, match="more than any recording"):
        read(tmp_path / "huge.npy")


def test_nothing_of_the_patient_is_kept(changed: Change) -> None:
    def plant(dataset: Dataset) -> None:
        dataset.PatientName, dataset.PatientID, dataset.AccessionNumber = "Planted^Name", "PLANTED-1", "PLANTED-2"
        dataset.PatientBirthDate, dataset.PatientComments = "19700101", "PLANTED-3"

    recording = read(changed(plant))
    kept = "".join(str(getattr(recording, name)) for name in recording.__slots__)
    assert "lanted" not in kept.lower()


def npy(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def test_an_npy_file_and_what_the_caller_says_of_it(tmp_path: Path) -> None:
    array = np.arange(20, dtype=np.int16).reshape(2, 10)
    recording = read(npy(tmp_path / "a.npy", array), sampling_rate=360, unit="uV", leads=("I", "II"))
    assert np.allclose(recording.samples, array / 1000)
    assert (recording.leads, recording.sampling_rate, recording.source) == (("I", "II"), 360, "NPY array of int16")
    one = read(npy(tmp_path / "b.npy", array[0].astype(np.float32)), sampling_rate=360, unit="mV", leads=("II",))
    assert one.samples.shape == (1, 10)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"unit": "mV", "leads": ("I", "II")}, "not known"),
        ({"sampling_rate": 360.0, "leads": ("I", "II")}, "not known"),
        ({"sampling_rate": 360.0, "unit": "mV"}, "not known"),
        ({"sampling_rate": 360.0, "unit": "mmHg", "leads": ("I", "II")}, "not a unit of voltage"),
        ({"sampling_rate": 360.0, "unit": "mV", "leads": ("I",)}, "1 lead names for samples of shape 2x10"),
        ({"sampling_rate": 0.0, "unit": "mV", "leads": ("I", "II")}, "0 Hz"),
        ({"sampling_rate": float("nan"), "unit": "mV", "leads": ("I", "II")}, "nan Hz"),
        ({"sampling_rate": 360.0, "unit": "mV", "leads": ("I", "i")}, "more than once"),
    ],
)
def test_an_npy_file_is_not_guessed_at(tmp_path: Path, said: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedRecording, match=words):
        read(npy(tmp_path / "a.npy", np.zeros((2, 10))), **said)


def test_an_npy_file_that_is_none(tmp_path: Path) -> None:
    said: dict[str, Any] = {"sampling_rate": 360.0, "unit": "mV", "leads": ("I",)}
    whole = io.BytesIO()
    np.save(whole, np.zeros((1, 100)))
    objects = io.BytesIO()
    np.save(objects, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for content in (whole.getvalue()[:200], whole.getvalue()[:8], b"\x93NUMPY" + pickle.dumps(1), objects.getvalue()):
        (tmp_path / "x.npy").write_bytes(content)
        with pytest.raises(UnreadableFile, match="not a whole NPY file"):
            read(tmp_path / "x.npy", **said)
    with pytest.raises(UnsupportedRecording, match="not numbers"):
        read(npy(tmp_path / "x.npy", np.array(["a"])), **said)
    with pytest.raises(UnsupportedRecording, match="shape 1x0"):
        read(npy(tmp_path / "x.npy", np.zeros((1, 0))), **said)


def test_a_dicom_file_is_not_told_what_it_is(ecg: Path) -> None:
    with pytest.raises(UnsupportedRecording, match="declares its own"):
        read(ecg, sampling_rate=500.0)


@given(st.integers(min_value=0, max_value=2**31))
def test_limb_leads_follow_from_i_and_ii(seed: int) -> None:
    noise = np.random.default_rng(seed)
    right, left, foot = noise.normal(size=(3, 50))  # potentials of the electrodes
    recording = Recording(np.stack([left - right, foot - right]), 100.0, ("I", "II"), "test")
    mean = {"aVR": (right, left, foot), "aVL": (left, right, foot), "aVF": (foot, right, left)}
    assert np.allclose(recording.lead("III"), foot - left)
    for name, (at, one, other) in mean.items():
        assert np.allclose(recording.lead(name), at - (one + other) / 2)
    assert not recording.can_derive("V1")
    with pytest.raises(ContractUnmet, match="lead V1 is not in it; it has I, II"):
        recording.lead("V1")
