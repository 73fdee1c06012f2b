"""The ``onnx`` kind: a graph of ONNX and a table of tensors, run by ONNX Runtime.

The runtime reads the graph from memory and the weights from where they were decrypted; it copies them into memory of
its own. It writes nothing: no optimised model, no profile, no cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pericard.errors import BackendFailed, UnsupportedModel
from pericard.runtime import onnx_graph
from pericard.runtime.backend import Array


class OnnxBackend:
    """Runs an ONNX graph on one device."""

    def __init__(self, graph: bytes, tensors: Mapping[str, Array], *, device: str) -> None:
        """Check the graph and let ONNX Runtime build it around the tensors.

        Args:
            graph: a serialised ``onnx.ModelProto`` without weights.
            tensors: the weights by name, on the host, contiguous; may be views. They are copied, and may be wiped
                once this returns.
            device: ``cpu`` or ``cuda:N``.

        Raises:
            ForbiddenGraph: the graph is not on the allow-lists.
            UnsupportedModel: ONNX Runtime is not installed, cannot build it or has no such device, or a tensor is
                missing.
        """
        checked = onnx_graph.check(graph, tensors)
        runtime = onnx_graph.packages()[1]
        self.device = device
        try:
            self._session = runtime.InferenceSession(
                checked, _options(runtime, tensors), providers=_providers(runtime, device)
            )
        except UnsupportedModel:
            raise
        except Exception as error:  # ONNX Runtime raises kinds of its own, with text of the graph's
            raise UnsupportedModel(f"graph: this ONNX Runtime cannot build it ({type(error).__name__})") from error
        self._inputs = tuple(value.name for value in self._session.get_inputs())

    def infer(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        """Answer one batch; see ``Backend``."""
        if self._session is None or len(inputs) != len(self._inputs):
            raise BackendFailed(f"model: takes {len(self._inputs)} inputs, got {len(inputs)}")
        try:
            found = self._session.run(None, dict(zip(self._inputs, inputs, strict=True)))
            return tuple(_array(output) for output in found)
        except Exception as error:  # a failed kernel must cost its batch, not the engine
            raise BackendFailed(f"model: the computation failed ({type(error).__name__})") from error

    def close(self) -> None:
        """Drop the session and its weights."""
        self._session = None
        self._inputs = ()


def _options(runtime: Any, tensors: Mapping[str, Array]) -> Any:  # noqa: ANN401  (a package without types)
    options = runtime.SessionOptions()
    options.enable_profiling = False
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = torch.get_num_threads()  # the engine sets one number for every backend
    options.use_deterministic_compute = True
    options.log_severity_level = (
        onnx_graph.FATAL
    )  # what goes wrong is raised; a line of its log would name parts of the model
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    names = list(tensors)
    buffers = [tensors[name].reshape(-1).view(np.uint8).data for name in names]
    options.add_external_initializers_from_files_in_memory(names, buffers, [len(buffer) for buffer in buffers])
    return options


def _providers(runtime: Any, device: str) -> list[Any]:  # noqa: ANN401  (a package without types)
    if device == "cpu":
        return ["CPUExecutionProvider"]
    kind, _, number = device.partition(":")
    wanted = f"{kind.upper()}ExecutionProvider"
    if kind != "cuda" or wanted not in runtime.get_available_providers():
        raise UnsupportedModel(
            f"device: {device!r} was asked for, and this ONNX Runtime has no {wanted}",
            hint="install onnxruntime-gpu, or set engine.device: cpu",
        )
    return [(wanted, {"device_id": number or "0", "use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"})]


def _array(output: object) -> Array:
    if not isinstance(output, np.ndarray):
        raise BackendFailed("model: gives something that is not a tensor")
    array: Array = np.ascontiguousarray(output)
    return array
