"""From a sealed file to a model that answers; and whatever fails on the way leaves nothing in memory."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pericard.errors import (
    BackendFailed,
    ForbiddenGraph,
    InvalidInput,
    KnownAnswerMismatch,
    LicenceExpired,
    MalformedModel,
    ModelTooLarge,
    PericardError,
    UnsupportedModel,
)
from pericard.hardening import PrivateMemory
from pericard.keys import Identity
from pericard.runtime import export, loader, plaintext
from pericard.runtime.loader import LoadedModel
from pericard.sealed import Artifact, Description, Output, SealedModel, artifact
from pericard.tensors import TensorSpec
from pericard.trust import Policy

Load = Callable[..., LoadedModel]
Array = np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture
def load(policy: Policy, identity: Identity, now: int) -> Load:
    """Load a sealed file as the hospital."""

    def run(path: Path, *, at: int = now, memory_budget: int | None = None) -> LoadedModel:
        with SealedModel(path) as source:
            return loader.load(
                source.verify(policy.publishers), identity, policy,
                device="cpu", now=at, memory_budget=memory_budget,
            )  # fmt: skip

    return run


@pytest.fixture
def memories(monkeypatch: pytest.MonkeyPatch) -> list[PrivateMemory]:
    """Every private memory that the loader makes."""
    made: list[PrivateMemory] = []

    class Recorded(PrivateMemory):
        def __init__(self, size: int, *, secret: bool = False) -> None:
            super().__init__(size, secret=secret)
            made.append(self)

    monkeypatch.setattr(plaintext, "PrivateMemory", Recorded)
    return made


@pytest.fixture(scope="module")
def plain(tiny_pt2: Path, tiny_description: Description) -> bytes:
    """The tiny model's plaintext."""
    _, parts = export.pack(tiny_pt2, tiny_description)
    return b"".join(parts)


def altered(plain: bytes, place: Callable[[Artifact], int], value: bytes) -> bytes:
    at = place(artifact.parse(memoryview(plain), subject="it"))
    return plain[:at] + value + plain[at + len(value) :]


def strips(count: int) -> Array:
    return np.random.default_rng(count).normal(size=(count, 1, 64)).astype(np.float32)


# --- a model that answers


def test_a_sealed_model_is_loaded_and_answers(sealed_model: Path, load: Load, memories: list[PrivateMemory]) -> None:
    model = load(sealed_model)

    assert (model.description.name, model.description.sequence, model.device) == ("tiny", 3, "cpu")
    assert model.licence.grant.grace_days == 14
    assert len(model.manifest_hash) == len(model.publisher) == 64
    assert [memory.locked for memory in memories] == [model.locked]
    answers = model.infer((strips(4),))
    assert [answer.shape for answer in answers] == [(4,), (4, 15)]
    model.check_known_answers()
    model.close()


def test_any_number_of_items_is_cut_into_buckets(sealed_model: Path, load: Load) -> None:
    model = load(sealed_model)
    one_by_one = [model.infer((strips(11)[place : place + 1],)) for place in range(11)]

    answers = model(strips(11))
    assert answers.keys() == {"score", "timeline"}
    for slot, name in enumerate(answers):
        np.testing.assert_allclose(answers[name], np.concatenate([row[slot] for row in one_by_one]), atol=1e-6)
    assert model(strips(11).tolist())["score"].shape == (11,)  # type: ignore[arg-type]  # lists are fine too
    assert [model.bucket(count) for count in (1, 2, 4)] == [1, 4, 4]
    model.close()


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ((), "model tiny: takes 1 inputs"),
        ((strips(1), strips(1)), "model tiny: takes 1 inputs"),
        ((strips(1)[:, :, :63],), r"input ecg: has shape \[1, 1, 63\], wanted \[-1, 1, 64\]"),
        ((strips(1)[0],), r"input ecg: has shape \[1, 64\]"),
        ((strips(0),), "one and the same number of items"),
        ((strips(1) * np.float32("nan"),), "values that are not finite"),
        ((strips(1) * np.float32("inf"),), "values that are not finite"),
        (([["a strip"]],), "is not an array of float32"),
        (([[1.0], [1.0, 2.0]],), "is not an array of float32"),
        ((None,), r"input ecg: has shape \[1\], wanted"),
    ],
)
def test_what_does_not_fit_is_refused_not_guessed(
    inputs: tuple[Any, ...], reason: str, sealed_model: Path, load: Load
) -> None:
    model = load(sealed_model)
    with pytest.raises(InvalidInput, match=reason):
        model(*inputs)
    model.close()


def test_a_closed_model_is_zeroed_and_answers_nothing(
    sealed_model: Path, load: Load, memories: list[PrivateMemory]
) -> None:
    model = load(sealed_model)
    (memory,) = memories
    assert any(memory.view)
    model.close()

    assert gone(memory)
    with pytest.raises(BackendFailed):
        model.infer((strips(1),))
    model.close()


def gone(memory: PrivateMemory) -> bool:
    """Zeroed: still mapped because something holds a view of it, or unmapped after it was zeroed."""
    return memory._map.closed or not any(memory.view)


# --- refusals


def test_a_model_beyond_the_budget_is_refused_before_any_key_is_unwrapped(
    sealed_model: Path, load: Load, memories: list[PrivateMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Identity, "unwrap", None)

    with pytest.raises(ModelTooLarge, match=r"tiny\.sealed: needs \d+ bytes, the budget is 100"):
        load(sealed_model, memory_budget=100)
    assert memories == []


def test_a_licence_that_is_over_is_refused_before_any_key_is_unwrapped(
    sealed_model: Path, load: Load, now: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Identity, "unwrap", None)

    with pytest.raises(LicenceExpired):
        load(sealed_model, at=now + 90 * 86_400)


def last_answer(found: Artifact) -> int:
    return found.known_answers[-1].outputs[0].offset


def first_weight(found: Artifact) -> int:
    return next(tensor.offset for tensor in found.tensors if tensor.name == "conv.weight")


def graph_start(found: Artifact) -> int:
    return found.graph[0]


@pytest.mark.parametrize(
    ("place", "value", "error"),
    [
        (last_answer, struct.pack("<f", 7.0), KnownAnswerMismatch),
        (last_answer, struct.pack("<f", float("nan")), KnownAnswerMismatch),
        (first_weight, struct.pack("<f", 7.0), KnownAnswerMismatch),
        (graph_start, b"[", ForbiddenGraph),
        (lambda _: 0, bytes(4), MalformedModel),
        (lambda _: 4, b"[", MalformedModel),
    ],
)
def test_what_a_publisher_signed_by_mistake_is_refused_and_leaves_nothing(
    place: Callable[[Artifact], int],
    value: bytes,
    error: type[PericardError],
    plain: bytes,
    load: Load,
    seal_bytes: Callable[..., Path],
    memories: list[PrivateMemory],
) -> None:
    with pytest.raises(error):
        load(seal_bytes(altered(plain, place, value)))

    assert [gone(memory) for memory in memories] == [True]


SCORE = Output(TensorSpec("score", "float32", (-1,)))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"outputs": (SCORE,)}, "does not fit the description"),
        ({"inputs": (TensorSpec("ecg", "float32", (-1, 1, 65)),)}, "as the description says"),
        ({"inputs": (TensorSpec("ecg", "float64", (-1, 1, 64)),)}, "as the description says"),
        (
            {"inputs": (TensorSpec("a", "float32", (-1, 1, 64)),) * 1 + (TensorSpec("b", "float32", (-1,)),)},
            "the description names 2",
        ),
        (
            {"outputs": (SCORE, Output(TensorSpec("timeline", "float32", (-1, 16))))},
            "does not fit the description",
        ),
    ],
)
def test_a_graph_or_known_answers_that_are_not_the_descriptions_are_refused(
    changes: dict[str, Any], reason: str, plain: bytes, load: Load, seal_bytes: Callable[..., Path]
) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        load(seal_bytes(plain, signal=None, **changes))


def test_bfloat16_answers_are_refused_with_words(
    tiny_graph: bytes, tiny_description: Description, load: Load, seal_bytes: Callable[..., Path]
) -> None:
    from pericard.sealed import Source

    ecg = Source("ecg", "answer", "float32", (1, 1, 64), memoryview(bytes(256)))
    score = Source("score", "answer", "bfloat16", (1,), memoryview(bytes(2)))
    _, parts = artifact.pack(tiny_graph, weights(), (((ecg,), (score,)),))
    path = seal_bytes(b"".join(parts), outputs=(Output(TensorSpec("score", "bfloat16", (-1,))),))

    with pytest.raises(UnsupportedModel, match="bfloat16 inputs and outputs are not served"):
        load(path)


def weights() -> tuple[Any, ...]:
    from pericard.sealed import Source

    shapes = {"conv.bias": (3,), "conv.weight": (3, 1, 8), "head.bias": (1,), "head.weight": (1, 3)}
    return tuple(
        Source(name, "parameter", "float32", shape, memoryview(bytes(4 * int(np.prod(shape)))))
        for name, shape in shapes.items()
    )


def test_a_model_of_several_inputs_needs_as_many_of_each(
    sealed_model: Path, load: Load, tiny_description: Description
) -> None:
    model = load(sealed_model)
    spec = tiny_description.inputs[0]
    model.description = replace(tiny_description, inputs=(spec, replace(spec, name="other")))

    with pytest.raises(InvalidInput, match="one and the same number of items"):
        model(strips(2), strips(3))
    model.close()
