"""A replica that changes the members of its cluster."""

from __future__ import annotations

from typing import Any

from counting_node import Counts, Replica, run


class Managing(Replica):
    """Has the members changed when it is asked to."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._skills |= {"add": self._add, "promote": self._promote, "replace": self._replace, "members": self._members}

    async def _add(self, number: int, address: str) -> list[int]:
        return list((await self._node.add_learner(number, address)).ids)

    async def _promote(self, number: int) -> list[int]:
        return list((await self._node.promote(number)).ids)

    async def _replace(self, old: int, new: int, address: str) -> list[int]:
        return list((await self._node.replace(old, new, address)).ids)

    async def _members(self) -> dict[str, bool]:
        """Who votes, as of now."""
        await self._node.read_barrier()
        return {str(number): member.votes for number, member in self._node.members().items()}


if __name__ == "__main__":
    run(Managing, Counts())
