"""`aioraft recover`: a cluster whose quorum is lost for good goes on from one data directory."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from typing import TYPE_CHECKING, TypedDict, cast

from aioraft import RaftError, _core

from ._command import Command, CommandError, Status

if TYPE_CHECKING:
    from ._report import Report

__all__ = ["COMMAND"]


class _Recovery(TypedDict):
    id: int
    cluster: str
    lost: list[int]
    commit: int
    last_index: int
    last_term: int
    last_wall_ns: int | None
    copy: str | None


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data_dir", metavar="DATA_DIR", help="of the node that goes on; no process may use it")
    parser.add_argument("--yes", action="store_true", help="do it without asking")
    parser.add_argument("--json", action="store_true", help="print one JSON object; needs --yes")


def _run(arguments: argparse.Namespace) -> Status:
    if arguments.json and not arguments.yes:
        raise CommandError("--json asks no questions: add --yes to have it done", Status.USAGE)
    foreseen = _recover(arguments.data_dir, foresee=True)
    if not arguments.yes:
        sys.stdout.write(_warning(foreseen))
        sys.stdout.flush()
        if not _is_confirmed(foreseen["cluster"]):
            raise CommandError("it was not confirmed, and nothing was changed", Status.REFUSED)
    done = _recover(arguments.data_dir, foresee=False)
    sys.stdout.write(json.dumps(done, indent=2) + "\n" if arguments.json else _report(done))
    return Status.OK


def _recover(data_dir: str, *, foresee: bool) -> _Recovery:
    try:
        return cast("_Recovery", _core.recover(data_dir, foresee=foresee))
    except RaftError as error:
        reason = str(error)
        if _is_in_use(data_dir):
            reason = f"a node runs in {data_dir}: stop it, see that nothing starts it again, and recover then"
        raise CommandError(reason, Status.UNREADABLE if foresee else Status.REFUSED) from error


def _is_in_use(data_dir: str) -> bool:
    with contextlib.suppress(RaftError):
        return cast("Report", _core.inspect(data_dir))["locked"]
    return False


def _warning(foreseen: _Recovery) -> str:
    lost = ", ".join(map(str, foreseen["lost"]))
    new = "nothing: all of it was known to be committed"
    if foreseen["commit"] < foreseen["last_index"]:
        new = f"entries behind {foreseen['commit']}, which nobody may have acknowledged, count as committed now"
    return f"""\
Node {foreseen["id"]} becomes the only member of cluster {foreseen["cluster"]!r}; the nodes {lost} are out for good.

  kept        every entry of this log: through {foreseen["last_index"]}, term {foreseen["last_term"]}{_when(foreseen)}
  may be lost what the others acknowledged and this node has not got, if there is any: nobody can tell from here
  may be new  {new}
  the others  must not run: if a majority of them does, it goes on by itself, and there are two clusters from
              now on. One that meets this node again stops; its data directory is to be removed, and it comes back as a
              new member

Of several directories that are left, take the one with the highest term, and among those the highest index
(`aioraft inspect`). A copy of the directory as it is now is kept beside it.
"""


def _when(recovery: _Recovery) -> str:
    if recovery["last_wall_ns"] is None:
        return ""
    moment = time.gmtime(recovery["last_wall_ns"] / 1e9)
    return time.strftime(", appended at %Y-%m-%d %H:%M:%S UTC", moment)


def _is_confirmed(cluster: str) -> bool:
    try:
        return input(f"Type the cluster's name, {cluster}, to go on: ") == cluster
    except EOFError:
        sys.stdout.write("\n")
        return False


def _report(done: _Recovery) -> str:
    lost = ", ".join(map(str, done["lost"]))
    return f"""\
node {done["id"]} is the only member of cluster {done["cluster"]!r} now; the nodes {lost} are out
the directory as it was is at {done["copy"]}
start the node, and then new members: `aioraft add`, `aioraft promote`
"""


COMMAND = Command(
    name="recover",
    summary="go on with one node where the quorum is lost for good",
    description="""\
For a cluster that has lost the majority of its voters for good: makes the node of this data directory its only member,
in a new incarnation. Says what may be lost, asks, and keeps a copy of the directory beside it.

While a majority can be started again, start it instead: nothing is lost then.
""",
    add_arguments=_add_arguments,
    run=_run,
)
