"""The manifest: what the publisher signs in the clear.

It is read only after its signatures verified, from the very bytes that were signed. Numbers are integers; where a
quantity has a fraction, its unit is in the field's name (``_nano``, ``_micro``, ``_millihertz``, ``_us``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pericard import canonical
from pericard.canonical import JSON
from pericard.errors import MalformedModel
from pericard.sealed.bounds import HostBounds
from pericard.sealed.layout import CHUNK_SIZE, MAX_MANIFEST, MAX_PAYLOAD, TAG_SIZE
from pericard.tensors import NAME, TensorSpec

FORMAT = "pericard/sealed-model/v1"
AEAD = "A256GCM"
KINDS = ("exported", "onnx")
UNITS = ("mV", "uV")
_MAX_BATCH = 4096
#: The highest sequence and floor: the largest number that an audit record holds.
MAX_SEQUENCE = (1 << 53) - 1
_HEX = re.compile(r"[0-9a-f]{64}")
_FLAG = re.compile(r"[a-z0-9_]{1,32}")
_VERSION = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){0,3}")
_TEXT = re.compile(r"[\x20-\x7e]{0,2000}")


@dataclass(frozen=True, slots=True)
class Output:
    """One output and what it means.

    Attributes:
        spec: name, type, shape.
        meaning: ``score`` (one number per item), ``timeline`` (one number per frame) or empty.
        threshold: operating point of a score, as the publisher chose it; None if there is none.
        frame_seconds: length of one frame of a timeline, in seconds; None otherwise.
    """

    spec: TensorSpec
    meaning: str = ""
    threshold: float | None = None
    frame_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Signal:
    """What a sampled input must be.

    Attributes:
        sampling_rate: hertz.
        unit: of the samples.
        leads: for each channel, the accepted names.
    """

    sampling_rate: float
    unit: str
    leads: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an output may be from the publisher's: ``|a - b| <= absolute + relative * |b|``."""

    absolute: float
    relative: float


@dataclass(frozen=True, slots=True)
class Description:
    """What the publisher says of a model: everything in the manifest but the payload and the file's own identity."""

    name: str
    version: str
    sequence: int
    floor: int
    kind: str
    publisher_name: str
    intended_use: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[Output, ...]
    signal: Signal | None
    max_batch: int
    buckets: tuple[int, ...]
    tolerance: Mapping[str, Tolerance]
    sealed_in: str
    required_runtime: str | None
    required_host: HostBounds | None = None


@dataclass(frozen=True, slots=True)
class Payload:
    """How the encrypted part is cut and committed to.

    Attributes:
        size: plaintext bytes.
        commitment: 32 bytes, derived from the file key.
        chunks: SHA-256 of each encrypted chunk (ciphertext and tag).
    """

    size: int
    commitment: bytes
    chunks: tuple[bytes, ...]

    @property
    def stored_size(self) -> int:
        """Bytes in the file: ciphertext and tags."""
        return self.size + TAG_SIZE * len(self.chunks)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A whole manifest."""

    file_id: bytes
    created: int
    publisher_id: str
    description: Description
    payload: Payload

    def encode(self) -> bytes:
        """Canonical bytes, as they are signed."""
        about = self.description
        return canonical.encode(
            {
                "format": FORMAT,
                "file_id": self.file_id.hex(),
                "created": self.created,
                "publisher": {"id": self.publisher_id, "name": about.publisher_name},
                "model": {
                    "name": about.name,
                    "version": about.version,
                    "sequence": about.sequence,
                    "floor": about.floor,
                    "kind": about.kind,
                    "intended_use": about.intended_use,
                },
                "inputs": [_spec_json(spec) for spec in about.inputs],
                "outputs": [_output_json(output) for output in about.outputs],
                "signal": _signal_json(about.signal),
                "batch": {"max": about.max_batch, "buckets": list(about.buckets)},
                "tolerance": {
                    backend: {
                        "absolute_nano": round(allowed.absolute * 1e9),
                        "relative_nano": round(allowed.relative * 1e9),
                    }
                    for backend, allowed in about.tolerance.items()
                },
                "runtime": {
                    "sealed_in": about.sealed_in,
                    "required": about.required_runtime,
                    **({} if about.required_host is None else {"host": about.required_host.json()}),
                },
                "payload": {
                    "aead": AEAD,
                    "chunk_size": CHUNK_SIZE,
                    "size": self.payload.size,
                    "commitment": self.payload.commitment.hex(),
                    "chunks": [digest.hex() for digest in self.payload.chunks],
                },
            }
        )


def _spec_json(spec: TensorSpec) -> dict[str, JSON]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def _output_json(output: Output) -> dict[str, JSON]:
    return _spec_json(output.spec) | {
        "meaning": output.meaning,
        "threshold_micro": None if output.threshold is None else round(output.threshold * 1e6),
        "frame_us": None if output.frame_seconds is None else round(output.frame_seconds * 1e6),
    }


def _signal_json(signal: Signal | None) -> JSON:
    if signal is None:
        return None
    return {
        "sampling_rate_millihertz": round(signal.sampling_rate * 1e3),
        "unit": signal.unit,
        "leads": [list(names) for names in signal.leads],
    }


def check(description: Description) -> None:
    """Read a description back as any site will, before there is a payload.

    Raises:
        ValueError: a site would refuse it; says what.
    """
    made = Manifest(bytes(32), 0, "0" * 64, description, Payload(1, bytes(32), (bytes(32),)))
    try:
        data = made.encode()
    except OverflowError as error:
        raise ValueError(f"holds a number that is out of bounds: {error}") from error
    _manifest(_Fields(canonical.decode(data, limit=MAX_MANIFEST)))


def parse(data: bytes, *, subject: str) -> Manifest:
    """Read a manifest whose signatures were verified.

    Raises:
        MalformedModel: it is not canonical, lacks or adds a field, or a value is out of bounds.
    """
    try:
        return _manifest(_Fields(canonical.decode(data, limit=MAX_MANIFEST)))
    except ValueError as error:
        raise MalformedModel(f"{subject}: the manifest {error}") from error


class _Fields:
    """One JSON object being read: every field is taken exactly once, with its type and bounds."""

    def __init__(self, value: JSON, name: str = "") -> None:
        if not isinstance(value, dict):
            raise ValueError(f"has {name or 'a value'} that is not an object")  # noqa: TRY004
        self._left = dict(value)
        self._name = name

    def take(self, key: str) -> JSON:
        if key not in self._left:
            raise ValueError(f"lacks {self._path(key)}")
        return self._left.pop(key)

    def text(self, key: str, pattern: re.Pattern[str] = _TEXT, allowed: str = "") -> str:
        value = self.take(key)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError(f"has a bad {self._path(key)}{_allowed(allowed)}")
        return value

    def integer(self, key: str, low: int, high: int, allowed: str = "") -> int:
        value = self.take(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"has a bad {self._path(key)}{_allowed(allowed)}")
        return value

    def optional_integer(self, key: str, low: int, high: int) -> int | None:
        if self._left.get(key, 0) is None:
            self.take(key)
            return None
        return self.integer(key, low, high)

    def optional_text(self, key: str, pattern: re.Pattern[str]) -> str | None:
        if self._left.get(key, "") is None:
            self.take(key)
            return None
        return self.text(key, pattern)

    def digest(self, key: str) -> bytes:
        return bytes.fromhex(self.text(key, _HEX))

    def items(self, key: str, low: int, high: int) -> list[JSON]:
        value = self.take(key)
        if not isinstance(value, list) or not low <= len(value) <= high:
            raise ValueError(f"has a bad {self._path(key)}")
        return value

    def fields(self, key: str) -> _Fields:
        return _Fields(self.take(key), self._path(key))

    def names(self) -> list[str]:
        return list(self._left)

    def done(self) -> None:
        if self._left:
            raise ValueError(f"has an unknown field {self._path(min(self._left))[:80]!r}")

    def _path(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key


def _allowed(words: str) -> str:
    return f" (allowed: {words})" if words else ""


def _manifest(top: _Fields) -> Manifest:
    if top.take("format") != FORMAT:
        raise ValueError("is of another format version")
    publisher = top.fields("publisher")
    manifest = Manifest(
        file_id=top.digest("file_id"),
        created=top.integer("created", 0, 1 << 40),
        publisher_id=publisher.text("id", _HEX),
        description=_description(top, publisher),
        payload=_payload(top.fields("payload")),
    )
    publisher.done()
    top.done()
    return manifest


def _description(top: _Fields, publisher: _Fields) -> Description:
    model, batch, runtime = top.fields("model"), top.fields("batch"), top.fields("runtime")
    inputs = tuple(_spec(_Fields(item, "inputs")) for item in top.items("inputs", 1, 16))
    outputs = tuple(_output(_Fields(item, "outputs")) for item in top.items("outputs", 1, 64))
    for kind, names in (("inputs", [i.name for i in inputs]), ("outputs", [o.spec.name for o in outputs])):
        if len(set(names)) != len(names):
            raise ValueError(f"names two {kind} alike")
    required = runtime.take("required")
    if required is not None and not (isinstance(required, str) and _HEX.fullmatch(required)):
        raise ValueError("has a bad runtime.required")
    description = Description(
        name=model.text("name", NAME, "1 to 64 of a-z, 0-9 and . _ -"),
        version=model.text(
            "version", re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}"), "1 to 64 of A-Z, a-z, 0-9 and . + _ -"
        ),
        sequence=model.integer("sequence", 1, MAX_SEQUENCE, "1 to 2^53-1"),
        floor=model.integer("floor", 0, MAX_SEQUENCE, "0 to 2^53-1"),
        kind=model.text("kind", re.compile("|".join(KINDS))),
        publisher_name=publisher.text("name", allowed="up to 2000 printable ASCII characters"),
        intended_use=model.text("intended_use", allowed="up to 2000 printable ASCII characters"),
        inputs=inputs,
        outputs=outputs,
        signal=_signal(top.take("signal"), inputs),
        max_batch=batch.integer("max", 1, _MAX_BATCH, f"1 to {_MAX_BATCH}"),
        buckets=tuple(_bucket(item) for item in batch.items("buckets", 1, 16)),
        tolerance=_tolerance(top.fields("tolerance")),
        sealed_in=runtime.text("sealed_in", _HEX),
        required_runtime=required,
        required_host=_host(runtime.fields("host")) if "host" in runtime.names() else None,
    )
    if (
        list(description.buckets) != sorted(set(description.buckets))
        or description.buckets[-1] != description.max_batch
    ):
        raise ValueError("has batch buckets that do not rise to batch.max")
    if description.floor > description.sequence:
        raise ValueError("withdraws its own version: model.floor is above model.sequence")
    for fields in (model, batch, runtime):
        fields.done()
    return description


def _bucket(item: JSON) -> int:
    if not isinstance(item, int) or isinstance(item, bool) or not 1 <= item <= _MAX_BATCH:
        raise ValueError(f"has a bad batch bucket (allowed: 1 to {_MAX_BATCH})")
    return item


def _spec(fields: _Fields, *, last: bool = True) -> TensorSpec:
    shape = fields.items("shape", 1, 8)
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in shape):
        raise ValueError("has a tensor shape that is not all integers")
    spec = TensorSpec(fields.text("name", NAME), fields.text("dtype"), tuple(int(size) for size in shape))
    if last:
        fields.done()
    return spec


def _output(fields: _Fields) -> Output:
    spec = _spec(fields, last=False)
    meaning = fields.text("meaning", re.compile("|score|timeline"), "score, timeline, or nothing")
    threshold = fields.optional_integer("threshold_micro", -(10**15), 10**15)
    frame = fields.optional_integer("frame_us", 1, 10**12)
    fields.done()
    return Output(spec, meaning, None if threshold is None else threshold / 1e6, None if frame is None else frame / 1e6)


def _signal(value: JSON, inputs: tuple[TensorSpec, ...]) -> Signal | None:
    if value is None:
        return None
    fields = _Fields(value, "signal")
    rate = fields.integer("sampling_rate_millihertz", 1, 10**12) / 1e3
    unit = fields.text("unit", re.compile("|".join(UNITS)), ", ".join(UNITS))
    leads = []
    for names in fields.items("leads", 1, 64):
        if not isinstance(names, list) or not 1 <= len(names) <= 8:  # noqa: PLR2004  (as the spec says)
            raise ValueError("has a bad signal.leads")
        if not all(isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9+_-]{1,16}", name) for name in names):
            raise ValueError("has a bad lead name")
        leads.append(tuple(str(name) for name in names))
    fields.done()
    if len(inputs) != 1 or len(inputs[0].shape) != 3 or inputs[0].shape[1] != len(leads):  # noqa: PLR2004
        raise ValueError("describes a signal, so it needs one input of shape [-1, leads, samples]")
    return Signal(rate, unit, tuple(leads))


def _host(fields: _Fields) -> HostBounds:
    flags = fields.items("cpu_flags", 0, 64)
    if not all(isinstance(flag, str) and _FLAG.fullmatch(flag) for flag in flags):
        raise ValueError("has a bad CPU flag in runtime.host")
    names = tuple(str(flag) for flag in flags)
    if list(names) != sorted(set(names)):
        raise ValueError("has CPU flags in runtime.host that are not sorted, or twice")
    bounds = HostBounds(names, *(fields.optional_text(key, _VERSION) for key in ("driver", "cuda", "cudnn")))
    fields.done()
    if bounds == HostBounds():
        raise ValueError("has a runtime.host that asks for nothing")
    return bounds


def _tolerance(fields: _Fields) -> dict[str, Tolerance]:
    found = {}
    for backend in fields.names():
        if not re.fullmatch(r"[a-z0-9-]{1,32}", backend):
            raise ValueError("has a bad tolerance backend")
        allowed = fields.fields(backend)
        found[backend] = Tolerance(
            allowed.integer("absolute_nano", 0, 10**12) / 1e9, allowed.integer("relative_nano", 0, 10**9) / 1e9
        )
        allowed.done()
    return found


def _payload(fields: _Fields) -> Payload:
    if fields.take("aead") != AEAD or fields.take("chunk_size") != CHUNK_SIZE:
        raise ValueError("asks for another cipher or chunk size")
    size = fields.integer("size", 1, MAX_PAYLOAD)
    count = -(-size // CHUNK_SIZE)
    chunks = fields.items("chunks", count, count)
    if not all(isinstance(digest, str) and _HEX.fullmatch(digest) for digest in chunks):
        raise ValueError("has a bad chunk hash")
    payload = Payload(size, fields.digest("commitment"), tuple(bytes.fromhex(str(digest)) for digest in chunks))
    fields.done()
    return payload
