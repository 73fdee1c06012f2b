"""Symbolic sizes: the one place in a graph where torch's reader evaluates text.

torch.export writes a symbolic size as nested constructor calls, ``Mul(Integer(8), Symbol('s77', positive=True,
integer=True))``, and reads it back with ``sympify``, which is ``eval`` in the end. So the whole text must reduce to one
expression of this grammar, whose names are all integer arithmetic::

    expression = symbol | integer | Pow(symbol, Integer(2…8)) | function(expression{, expression})
    symbol     = Symbol('s0'…'s999999' or 'u…'{, positive=True | integer=True | nonnegative=True})
    integer    = Integer(at most 18 digits, with or without a minus)
"""

from __future__ import annotations

import re

FUNCTIONS = ("Add", "Mul", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CeilDiv", "CleanDiv")
MAX_LENGTH = 4096
MAX_DEPTH = 128

#: What a symbol may be called; torch counts up to the number of an unbacked one (``u…``), so it is bounded.
SYMBOL = re.compile(r"[su][0-9]{1,6}")

_SYMBOL_CALL = rf"Symbol\('{SYMBOL.pattern}'(?:, (?:positive|integer|nonnegative)=True){{0,3}}\)"
_LEAF = re.compile(rf"Pow\({_SYMBOL_CALL}, Integer\([2-8]\)\)|{_SYMBOL_CALL}|Integer\(-?[0-9]{{1,18}}\)")
_CALL = re.compile(rf"(?:{'|'.join(FUNCTIONS)})\(#(?:, #)*\)")


def allowed(text: str) -> bool:
    """Whether a text is an expression of the grammar; decided by reducing it to ``#``, innermost calls first."""
    if len(text) > MAX_LENGTH or "#" in text:
        return False
    reduced = _LEAF.sub("#", text)
    for _ in range(MAX_DEPTH):
        shorter = _CALL.sub("#", reduced)
        if shorter == reduced:
            break
        reduced = shorter
    return reduced == "#"
