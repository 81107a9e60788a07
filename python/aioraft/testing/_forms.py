"""What results are compared by: a text that equal values share, in this process and in any other."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import re
from collections.abc import Iterable, Mapping, Set
from typing import Any, Final, cast

__all__ = ["digest", "of_result", "of_value"]

PLAIN: Final = frozenset({bool, bytes, bytearray, complex, float, int, str, type(None)})
BRACKETS: Final[dict[type, tuple[str, str]]] = {dict: ("{", "}"), list: ("[", "]"), tuple: ("(", ")"), set: ("{", "}")}
ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")
LONGEST: Final = 400


def of_result(value: object, error: BaseException | None) -> str:
    """Return the form of what `apply` returned, or raised."""
    text = of_value(value) if error is None else f"raised {of_value(error)}"
    if len(text) > LONGEST:
        return f"{text[:LONGEST]}... ({len(text)} characters, digest {digest(text.encode(errors='replace'))})"
    return text


def of_value(value: object, outer: frozenset[int] = frozenset()) -> str:
    """Return the form of a value.

    Numbers, strings and bytes are themselves, by type and `repr`. Sets and mappings are the same in any order, since
    they are equal then; sequences are not. Dataclasses, exceptions and objects without a `repr` of their own are their
    type and what they hold. Anything else is its `repr`, without addresses.
    """
    kind = type(value)
    if kind in PLAIN:
        return repr(value)
    if id(value) in outer:
        return "..."
    inside = outer | {id(value)}
    name = kind.__qualname__
    if isinstance(value, enum.Enum):
        return f"{name}.{value.name}"
    before, after = BRACKETS.get(kind, (f"{name}(", ")"))
    if isinstance(value, Mapping):
        mapping = cast("dict[Any, Any]", value)
        items = sorted(f"{of_value(key, inside)}: {of_value(held, inside)}" for key, held in mapping.items())
        return f"{before}{', '.join(items)}{after}"
    if isinstance(value, Set):
        members = cast("Iterable[Any]", value)
        return f"{before}{', '.join(sorted(of_value(held, inside) for held in members))}{after}"
    if isinstance(value, list | tuple):
        items = [of_value(held, inside) for held in cast("Iterable[Any]", value)]
        return f"{before}{', '.join(items)}{after}"
    if isinstance(value, BaseException):
        return f"{name}({', '.join(of_value(held, inside) for held in value.args)})"
    if dataclasses.is_dataclass(value) or getattr(kind, "__repr__", None) is object.__repr__:
        slots = (slot for one in kind.__mro__ for slot in getattr(one, "__slots__", ()) if isinstance(slot, str))
        held = {slot: getattr(value, slot) for slot in slots if hasattr(value, slot)} | getattr(value, "__dict__", {})
        return f"{name}({', '.join(f'{key}={of_value(held[key], inside)}' for key in sorted(held))})"
    return ADDRESS.sub("", repr(value))


def digest(data: bytes) -> str:
    """Return a short digest."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()
