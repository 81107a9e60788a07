"""Members change while processes are killed: what was begun is gone on with, and no command is lost or doubled."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from processes import (
    DEADLINE_S,
    HERE,
    QUICK_ELECTIONS,
    Process,
    Processes,
    make_random,
    reserved_addresses,
    three_of_kind,
)

pytestmark = pytest.mark.asyncio

IN_FLIGHT = 16
MORE = 200


class Managing(Processes):
    """Replicas that change their members."""

    program = HERE / "member_node.py"

    async def assert_voters(self, numbers: set[int]) -> None:
        for members in await self.ask(self.running, "members"):
            assert members == {str(number): True for number in sorted(numbers)}


@asynccontextmanager
async def growing(folder: pathlib.Path, seed: int, most: int) -> AsyncIterator[tuple[Managing, list[Process]]]:
    """Three replicas, and those that are to join."""
    with reserved_addresses(3 + most) as free:
        async with three_of_kind(Managing, folder, seed) as processes:
            newcomers: list[Process] = []
            founders = {process.number: ":".join(map(str, process.address)) for process in processes.all}
            for number in range(4, 4 + most):
                members = founders | {number: free[number]}
                newcomers.append(Process(processes, number, members, folder, dict(QUICK_ELECTIONS)))
            yield processes, newcomers


async def test_all_are_replaced_one_by_one_while_whoever_does_it_is_killed(tmp_path: pathlib.Path) -> None:
    chance = make_random()
    async with growing(tmp_path, chance.getrandbits(32), 4) as (processes, newcomers):
        await processes.ask(processes.all, "load", in_flight=IN_FLIGHT)
        for new in newcomers:
            processes.all.append(new)
            await new.start()
            old, *stay = [process for process in processes.running if process is not new]
            caller = chance.choice(stay)
            arguments = {"old": old.number, "new": new.number, "address": ":".join(map(str, new.address))}
            _ = caller.asking("replace", **arguments)
            await asyncio.sleep(chance.uniform(0, 0.1))  # somewhere in between
            await caller.kill()
            # Another one, or the same one again.
            if chance.random() < 0.5:
                await processes.start()
                again = caller
            else:
                again = next(process for process in stay if process is not caller)
            assert await again.ask("replace", **arguments) == [new.number, old.number]
            await processes.until(lambda: old.stopped is not None, "the old node to hear of it")  # noqa: B023
            assert old.stopped is not None
            assert "was removed from its cluster" in old.stopped
            await old.end()
            processes.all.remove(old)
            if not caller.is_running:
                await caller.start()
            await processes.ask([new, caller], "load", in_flight=IN_FLIGHT)
            await processes.assert_voters({process.number for process in processes.running})
            await processes.more(processes.running, MORE)
        await processes.stop_load()
        await processes.assert_counted_once()


async def test_members_change_while_the_leader_is_killed(tmp_path: pathlib.Path) -> None:
    chance = make_random()
    async with growing(tmp_path, chance.getrandbits(32), 2) as (processes, newcomers):
        await processes.ask(processes.all, "load", in_flight=IN_FLIGHT)
        for new in newcomers:
            leader = await processes.leader()
            processes.all.append(new)
            await new.start()
            caller = next(process for process in processes.running if process not in (leader, new))
            address = ":".join(map(str, new.address))
            adding = caller.asking("add", number=new.number, address=address)
            await asyncio.sleep(chance.uniform(0, 0.01))
            await leader.kill()
            async with asyncio.timeout(DEADLINE_S):
                assert await adding == [new.number]
            await processes.start()
            leader = await processes.leader()
            caller = next(process for process in processes.running if process not in (leader, new))
            promoting = caller.asking("promote", number=new.number)
            await asyncio.sleep(chance.uniform(0, 0.05))
            await leader.kill()
            async with asyncio.timeout(DEADLINE_S):
                assert await promoting == [new.number]
            await processes.start()
            idle = [process for process in processes.running if process is new or process.starts > 1]
            await processes.ask(idle, "stop")
            await processes.ask(idle, "load", in_flight=IN_FLIGHT)
            await processes.more(processes.running, MORE)
            await processes.assert_voters({process.number for process in processes.all})
        await processes.stop_load()
        await processes.assert_counted_once()
