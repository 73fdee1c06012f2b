"""What is sent to each kind of server, and where in its answer the numbers stand.

A dialect knows the body of one question. Everything else about a request is the same for all: one keep-alive HTTP/1.1
request with few headers, made once and sent many times. Numbers are written as Python's ``json`` writes them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from servers.bench_models import ABSOLUTE, MODELS, RELATIVE, references, samples

Row = np.ndarray[Any, np.dtype[np.float32]]
Body = tuple[bytes, Mapping[str, str]]

JSON = {"Content-Type": "application/json"}
BINARY = {"Content-Type": "application/octet-stream"}


def _plain(row: Row, _model: str) -> Body:
    return json.dumps({"data": row.tolist()}).encode(), JSON


def _batch(row: Row, _model: str) -> Body:
    return json.dumps({"data": [row.tolist()]}).encode(), JSON


def _raw(row: Row, _model: str) -> Body:
    return row.tobytes(), BINARY


def _declared(model: str) -> dict[str, Any]:
    """What a question says of its signal, where the manifest declares one."""
    rate = MODELS[model].sampling_rate
    return {} if rate is None else {"sampling_rate": rate, "unit": "mV", "leads": ["II"]}


def _pericard(row: Row, model: str) -> Body:
    return json.dumps({"model": model, "inputs": row.tolist(), **_declared(model)}).encode(), JSON


def _oip_json(row: Row, _model: str) -> Body:
    tensor = {"name": "x", "shape": [1, *row.shape], "datatype": "FP32", "data": row.ravel().tolist()}
    return json.dumps({"inputs": [tensor]}).encode(), JSON


def _oip_binary(row: Row, model: str) -> Body:
    tensor = {"name": "x", "shape": [1, *row.shape], "datatype": "FP32"}
    declared = {key: ",".join(value) if isinstance(value, list) else value for key, value in _declared(model).items()}
    head = {
        "inputs": [{**tensor, "parameters": {"binary_data_size": row.nbytes}}],
        "outputs": [{"name": "scores", "parameters": {"binary_data": True}}],
    } | ({"parameters": declared} if declared else {})
    text = json.dumps(head).encode()
    return text + row.tobytes(), {**BINARY, "Inference-Header-Content-Length": str(len(text))}


@dataclass(frozen=True)
class Dialect:
    """One way to ask: the path, the body, and the mark before the answer's numbers (empty: they are its last bytes)."""

    path: str
    body: Callable[[Row, str], Body]
    mark: bytes = b""


SCORES = b'"scores":'
PLAIN = {"json": Dialect("/predict", _plain, SCORES), "binary": Dialect("/predict_bin", _raw)}
MOSEC = {"json": Dialect("/inference", _plain, SCORES), "binary": Dialect("/inference", _raw)}
BATCH = {"json": Dialect("/predict", _batch, b"[")}
OIP = {
    "json": Dialect("/v2/models/{model}/infer", _oip_json, b'"data":'),
    "binary": Dialect("/v2/models/{model}/infer", _oip_binary),
}
OIP_JSON = {"json": OIP["json"]}
PERICARD = {"json": Dialect("/predict", _pericard, SCORES), "binary": OIP["binary"]}


def request(dialect: Dialect, row: Row, model: str, headers: Mapping[str, str]) -> bytes:
    """One whole request."""
    body, kind = dialect.body(row, model)
    lines = {"Host": "127.0.0.1", "Accept": "*/*", **kind, "Content-Length": str(len(body)), **headers}
    head = [f"POST {dialect.path.format(model=model)} HTTP/1.1", *(f"{name}: {value}" for name, value in lines.items())]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def write(path: Path, questions: list[tuple[bytes, Row]], mark: bytes) -> None:
    """A file for the generator: requests, each with the numbers that answer it."""
    with path.open("wb") as out:
        out.write(struct.pack("<IIffI", len(questions), len(questions[0][1]), ABSOLUTE, RELATIVE, len(mark)) + mark)
        for data, right in questions:
            out.write(struct.pack("<I", len(data)) + data + right.astype("<f4").tobytes())


@dataclass
class Questions:
    """All questions of one model; a file for each dialect and set of headers, made when it is first asked for."""

    folder: Path
    model: str

    def __post_init__(self) -> None:
        self._rows, self._right = samples(self.model), references(self.model)
        self._files: dict[tuple[object, ...], Path] = {}

    def file(self, dialect: Dialect, headers: Mapping[str, str]) -> Path:
        """The file for the generator."""
        key = (dialect, *headers.items())
        if key not in self._files:
            made = [request(dialect, row, self.model, headers) for row in self._rows]
            self._files[key] = self.folder / f"{self.model}-{len(self._files)}.requests"
            write(self._files[key], list(zip(made, self._right, strict=True)), dialect.mark)
        return self._files[key]
