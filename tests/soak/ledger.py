"""What became of a very large number of commands, one bit for each."""

from __future__ import annotations

import collections


class Ledger:
    """A set of commands, named "incarnation.number" by a process that counts them from 0 upwards."""

    def __init__(self) -> None:
        self._bits: collections.defaultdict[str, bytearray] = collections.defaultdict(bytearray)

    def add(self, name: str) -> bool:
        """Add a command; False if it was there already."""
        incarnation, _, number = name.rpartition(".")
        place, bit = divmod(int(number), 8)
        bits = self._bits[incarnation]
        bits.extend(bytes(max(0, place + 1 - len(bits))))
        is_new = not bits[place] & 1 << bit
        bits[place] |= 1 << bit
        return is_new

    def __len__(self) -> int:
        return sum(int.from_bytes(bits).bit_count() for bits in self._bits.values())

    def __sub__(self, other: Ledger) -> list[str]:
        """Name the commands that are here and not there."""
        return [name for name in self._names() if not other._holds(name)]

    def __and__(self, other: Ledger) -> list[str]:
        """Name the commands that are in both."""
        return [name for name in self._names() if other._holds(name)]

    def dump(self) -> dict[str, str]:
        """Return it as what JSON can carry."""
        return {incarnation: bits.hex() for incarnation, bits in sorted(self._bits.items())}

    @classmethod
    def load(cls, dumped: dict[str, str]) -> Ledger:
        """Return what was dumped."""
        ledger = cls()
        ledger._bits.update((incarnation, bytearray.fromhex(bits)) for incarnation, bits in dumped.items())
        return ledger

    def _names(self) -> list[str]:
        return [
            f"{incarnation}.{number}"
            for incarnation, bits in self._bits.items()
            for number in range(8 * len(bits))
            if bits[number // 8] & 1 << number % 8
        ]

    def _holds(self, name: str) -> bool:
        incarnation, _, number = name.rpartition(".")
        place, bit = divmod(int(number), 8)
        bits = self._bits.get(incarnation, bytearray())
        return place < len(bits) and bool(bits[place] & 1 << bit)
