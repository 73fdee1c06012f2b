"""A vendor's own ``nn.Module`` and its weights, exported here.

The module's code is the vendor's, it runs in the vendor's own trust domain, and it is the only code that does: the
weights are read as weights. What does not fit is explained, never guessed: a wrapper's prefix is named, not removed.
"""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.export import ExportedProgram

from pericard.errors import UnsupportedModel
from pericard.runtime import known_answers
from pericard.sealed import Description

#: What wrappers put before every name.
PREFIXES = {
    "module.": "DataParallel",
    "_orig_mod.": "torch.compile",
    "model.": "Lightning",
    "net.": "Lightning",
}
#: Where training scripts keep the weights in a checkpoint.
ENTRIES = ("state_dict", "model_state_dict", "model")
_OBJECT = re.compile(r"GLOBAL ([A-Za-z_][A-Za-z0-9_.]{0,200})")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_SHOWN = 3
_SEED = 20010913

Weights = dict[str, torch.Tensor]


def build(factory: str, weights: Path, *, strip_prefix: str | None = None) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """Make the vendor's module with its weights, ready to be exported.

    Args:
        factory: ``pkg.mod:name``, of something that makes the module without arguments; found from the current folder.
        weights: a file of ``torch.save(model.state_dict(), …)``, or a checkpoint that holds one.
        strip_prefix: taken off the front of every name in it.

    Returns:
        The module in evaluation mode, and remarks.

    Raises:
        UnsupportedModel: the module cannot be made, or the weights are not its own; the message says how they differ.
    """
    found, remarks = _read(weights)
    if strip_prefix is not None:
        found = _stripped(found, strip_prefix, weights)
    module = _made(factory)
    _fit(module, found, factory, weights)
    module.load_state_dict(found, strict=True)
    return module.eval().requires_grad_(requires_grad=False), remarks


def export(
    module: torch.nn.Module, description: Description, *, subject: str
) -> tuple[ExportedProgram, Description, tuple[str, ...]]:
    """Export a module with made-up inputs of the description's shapes, for any batch size if it can.

    Returns:
        The program, the description with the batch sizes that it can take, and remarks.

    Raises:
        UnsupportedModel: torch cannot export it, or it keeps a state.
    """
    _check_repeatable(module, description, subject)
    largest = description.max_batch
    failure: Exception | None = None
    for strict in (False, True) if largest > 1 else ():
        try:
            return _exported(module, description, batch=largest, strict=strict, subject=subject), description, ()
        except UnsupportedModel:
            raise
        except Exception as error:  # noqa: BLE001  (torch.export and the vendor's own code raise anything)
            failure = failure or error
    try:
        program = _exported(module, description, batch=1, strict=False, subject=subject)
    except UnsupportedModel:
        raise
    except Exception as error:  # torch.export and the vendor's own code raise anything
        raise UnsupportedModel(
            f"{subject}: torch.export cannot export it: {_first_line(failure or error)}",
            hint="its forward must be a graph of tensor operators in the description's shapes; call torch.export "
            "on it yourself for the whole explanation",
        ) from error
    if failure is None:
        return program, description, ()
    remark = f"{subject}: will be served one by one: it cannot be exported for batches: {_first_line(failure)}"
    return program, known_answers.one_by_one(description), (remark,)


def _check_repeatable(module: torch.nn.Module, description: Description, subject: str) -> None:
    """Ask the module itself one question twice."""
    inputs = tuple(_made_up((1, *spec.row_shape), spec.dtype) for spec in description.inputs)
    try:
        with torch.inference_mode():
            first, second = (
                torch.utils._pytree.tree_leaves(module(*inputs))  # noqa: SLF001  (the public optree is optional)
                for _ in range(2)
            )
    except Exception as error:  # the vendor's own code fails in any way it likes
        shapes = ", ".join(f"{spec.dtype}{[1, *spec.row_shape]}" for spec in description.inputs)
        raise UnsupportedModel(
            f"{subject}: its forward fails for {shapes}: {_first_line(error)}",
            hint="the description's inputs must be those of forward, in its order",
        ) from error
    if len(first) != len(second) or not all(_same(one, other) for one, other in zip(first, second, strict=True)):
        raise UnsupportedModel(
            f"{subject}: answers one question differently the second time",
            hint="it keeps a state, or draws random numbers; a sealed model does neither",
        )


def _same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    return one == other


def _exported(
    module: torch.nn.Module, description: Description, *, batch: int, strict: bool, subject: str
) -> ExportedProgram:
    rows = min(batch, 2)  # at one, torch takes the batch for a constant
    inputs = tuple(_made_up((rows, *spec.row_shape), spec.dtype) for spec in description.inputs)
    shapes = None
    if batch > 1:
        axis = torch.export.Dim("batch", min=1, max=batch)
        shapes = tuple({0: axis} for _ in inputs)
    with warnings.catch_warnings():  # torch's advice to whoever wrote the module
        warnings.simplefilter("ignore")
        program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=strict)
        pure = program.run_decompositions({})
    changed = sorted(pure.graph_signature.buffers_to_mutate.values())
    if changed:
        raise UnsupportedModel(
            f"{subject}: its forward changes {_some(changed)}; a sealed model keeps no state between answers",
            hint="compute it from the inputs, or return it as an output; a counter for training belongs under `if "
            "self.training`",
        )
    return program


def _made_up(shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(_SEED)
    if dtype.startswith("float") or dtype == "bfloat16":
        return torch.randn(shape, generator=generator).to(getattr(torch, dtype))
    return torch.randint(0, 2, shape, generator=generator).to(getattr(torch, dtype))


def _made(factory: str) -> torch.nn.Module:
    place, _, name = factory.partition(":")
    if not place or not name:
        raise UnsupportedModel(f"{factory}: is not of the form pkg.mod:factory", hint="for example ecgnet.model:build")
    with _current_folder():
        try:
            source = importlib.import_module(place)
        except Exception as error:  # the vendor's module fails in any way it likes
            raise UnsupportedModel(
                f"{factory}: {place} cannot be imported: {_first_line(error)}",
                hint="run pericard from the folder that holds it, in the environment that it was trained in",
            ) from error
        make: Callable[[], object] | None = getattr(source, name, None)
        if not callable(make):
            raise UnsupportedModel(f"{factory}: {place} has no {name} that can be called")
        try:
            made = make()
        except Exception as error:  # and so does its factory
            raise UnsupportedModel(
                f"{factory}: cannot be called without arguments: {_first_line(error)}",
                hint="name a function that takes nothing and returns the module as it was trained",
            ) from error
    if not isinstance(made, torch.nn.Module):
        raise UnsupportedModel(f"{factory}: makes a {type(made).__name__}, not a torch.nn.Module")
    return made


@contextmanager
def _current_folder() -> Iterator[None]:
    """The current folder is where modules are found, for as long as this lasts."""
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before


def _read(path: Path) -> tuple[Weights, tuple[str, ...]]:
    """The weights in a file, and which entry of it they are."""
    if not path.is_file():
        raise UnsupportedModel(f"{path}: there is no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on archives of TorchScript, which fail
            held = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251  (the restricted unpickler)
    except Exception as error:  # a foreign file fails in any way it likes
        objects = _OBJECT.search(str(error))  # torch's own message advises to run them
        why = f"it holds objects ({objects[1]}), not tensors alone" if objects else type(error).__name__
        raise UnsupportedModel(
            f"{path}: is not a file of weights: {why}",
            hint="it must hold tensors only: torch.save(model.state_dict(), 'weights.pth')",
        ) from error
    if _is_weights(held):
        return dict(held), ()
    entries = [name for name in ENTRIES if isinstance(held, Mapping) and _is_weights(held.get(name))]
    if len(entries) != 1:
        says = ", ".join(map(repr, list(held)[:8])) if isinstance(held, Mapping) else f"a {type(held).__name__}"
        what = f"more than one set of weights ({', '.join(entries)})" if entries else "no set of weights"
        raise UnsupportedModel(
            f"{path}: holds {what}; it holds {says}",
            hint="save the weights alone: torch.save(model.state_dict(), 'weights.pth')",
        )
    return dict(held[entries[0]]), (f"{path}: the weights are its entry {entries[0]!r}",)


def _is_weights(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(item, torch.Tensor) for name, item in value.items())
    )


def _stripped(found: Weights, prefix: str, path: Path) -> Weights:
    others = [name for name in found if not name.startswith(prefix) or name == prefix]
    if others:
        raise UnsupportedModel(
            f"{path}: {len(others)} of {len(found)} names do not begin with {prefix!r}: {_some(others)}",
            hint="--strip-prefix takes the same text off every name",
        )
    return {name.removeprefix(prefix): tensor for name, tensor in found.items()}


def _fit(module: torch.nn.Module, found: Weights, factory: str, path: Path) -> None:
    """Say how the weights differ from what the module has, if they do."""
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    if missing or unexpected:
        parts = [
            f"{len(names)} {what}: {_some([f'{name} {list(held[name].shape)}' for name in names])}"
            for names, what, held in ((missing, "missing", wanted), (unexpected, "unexpected", found))
            if names
        ]
        raise UnsupportedModel(
            f"{path}: does not hold the weights of {factory}: {'; '.join(parts)}", hint=_prefix_hint(wanted, found)
        )
    for name, tensor in wanted.items():
        if tensor.shape != found[name].shape or tensor.dtype != found[name].dtype:
            raise UnsupportedModel(
                f"{path}: does not hold the weights of {factory}: {name} is {_kind(found[name])}, the module has "
                f"{_kind(tensor)}",
                hint="build the module with the sizes and types that it was trained with",
            )


def _prefix_hint(wanted: Mapping[str, torch.Tensor], found: Weights) -> str:
    first = next(iter(wanted), "")
    for name in found:
        prefix = name.removesuffix(first)
        stripped = {other.removeprefix(prefix) for other in found if other.startswith(prefix)}
        if first and prefix and name.endswith(first) and len(stripped) == len(found) and stripped == wanted.keys():
            return f"{_wrapper(prefix)}every name begins with {prefix!r}: --strip-prefix {prefix}"
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in found):
            return (
                f"{_wrapper(prefix)}every name begins with {prefix!r}; --strip-prefix {prefix} takes it off, though "
                "others differ too"
            )
    return "build the module as it was trained; compare model.state_dict().keys() with the file's"


def _wrapper(prefix: str) -> str:
    for known, wrapper in PREFIXES.items():
        if prefix.startswith(known):
            return f"these come from {wrapper}: "
    return ""


def _some(items: list[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (", …" if len(items) > _SHOWN else "")


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _first_line(error: BaseException) -> str:
    """The first line of another's message, and of what kind it is."""
    text = next((line.strip() for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text[:300].rstrip('.')}" if text else type(error).__name__
