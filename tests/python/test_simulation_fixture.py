"""The pytest plugin: raft_simulation, its seeds, its second process, and what a failing test's report holds."""

from __future__ import annotations

import pytest

from documents import blocks

MACHINES = """
    import json
    import random
    import time

    import pytest

    import aioraft

    class Counter(aioraft.StateMachine[int]):
        count = 0

        def apply(self, entry):
            self.count += 1
            return self.count

    class Rare(Counter):
        def apply(self, entry):
            return random.random() < 0.01

    WORDS = "one two three four five six seven eight nine ten".split()

    def word(rng):
        return rng.choice(WORDS).encode()
"""


def run(pytester: pytest.Pytester, test: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(MACHINES + test)
    options = (*options, "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestDeprecationWarning")
    return pytester.runpytest_subprocess(*options)


PASSES = """
    def test_counter(raft_simulation):
        raft_simulation(3, Counter, command=word).run()
"""

FAILS = """
    def test_rare(raft_simulation):
        raft_simulation(3, Rare, command=word).run(seconds=300)
"""


def test_a_test_passes_with_a_new_seed_each_time(pytester: pytest.Pytester) -> None:
    seeds = """
    def test_seed(raft_simulation, raft_seed):
        simulation = raft_simulation(3, Counter, command=word)
        assert simulation.seed == raft_seed
        print("seed", raft_seed)
"""
    outputs = [run(pytester, seeds, "-s").stdout.str() for _ in range(2)]
    seed = [next(line for line in output.splitlines() if "seed " in line) for output in outputs]
    assert seed[0] != seed[1]


def test_many_seeds_are_many_tests_that_show_theirs(pytester: pytest.Pytester) -> None:
    result = run(pytester, PASSES, "--raft-seeds", "3", "-v")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines([f"*::test_counter[[]seed-{seed}] PASSED*" for seed in (1, 2, 3)])


def test_many_seeds_begin_where_they_are_told_to(pytester: pytest.Pytester) -> None:
    result = run(pytester, PASSES, "--raft-seeds", "2", "--raft-seed", "70", "-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*seed-70] PASSED*", "*seed-71] PASSED*"])


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [
        ("--raft-seeds", "0", "'0' is no number of seeds, which is a whole number from 1 on"),
        ("--raft-seeds", "many", "'many' is no number of seeds"),
        ("--raft-seed", "x", "'x' is no seed, which is a whole number from 0 to 2[*][*]64 - 1"),
        ("--raft-seed", str(1 << 64), "is no seed"),
    ],
)
def test_what_is_no_seed_is_refused(pytester: pytest.Pytester, option: str, text: str, said: str) -> None:
    result = run(pytester, PASSES, option, text)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{said}*"])


def test_other_parameters_stay(pytester: pytest.Pytester) -> None:
    test = """
    @pytest.mark.parametrize("n", [2, 3])
    def test_counter(raft_simulation, n):
        raft_simulation(n, Counter, command=word).run()
"""
    run(pytester, test, "--raft-seeds", "2").assert_outcomes(passed=4)


def test_a_failure_tells_the_entry_and_a_seed_that_fails_again(pytester: pytest.Pytester) -> None:
    first = run(pytester, FAILS)
    first.assert_outcomes(failed=1)
    first.stdout.fnmatch_lines(
        [
            "*SimulationError: apply is deterministic: not with seed *",
            "*First diverging entry: Entry(index=*, data=b'*",
            "*To run it again: pytest *::test_rare --raft-seed *",
            "*aioraft simulation*",
            "* node *: *",
            "*aioraft seed*",
        ]
    )
    told = next(line for line in first.stdout.str().splitlines() if line.startswith("pytest "))
    seed = told.rpartition(" ")[2]
    again = run(pytester, FAILS, "--raft-seed", seed)
    again.assert_outcomes(failed=1)

    def entry(result: pytest.RunResult) -> str:
        return next(line for line in result.stdout.str().splitlines() if "First diverging entry" in line)

    assert entry(first) == entry(again)


def test_any_failure_tells_the_seed(pytester: pytest.Pytester) -> None:
    test = """
    def test_counter(raft_simulation):
        raft_simulation(3, Counter, command=word).run()
        assert False
"""
    result = run(pytester, test, "--raft-seed", "42")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*aioraft seed*", "pytest *::test_counter --raft-seed 42"])


# The second process


@pytest.mark.parametrize("result", ['" ".join(set(WORDS))', 'hash("word")', "os.getpid()", "time.tzname[0]"])
def test_what_agrees_in_one_process_is_found_in_a_second_one(pytester: pytest.Pytester, result: str) -> None:
    test = f"""
    import os

    def test_words(raft_simulation):
        class Words(Counter):  # not importable
            def apply(self, entry):
                return {result}

        raft_simulation(3, Words, command=word).run()
"""
    outcome = run(pytester, test)
    outcome.assert_outcomes(failed=1)
    outcome.stdout.fnmatch_lines(
        ["*apply is deterministic: not with seed*", "*First diverging entry*", "*another PYTHONHASHSEED and time zone*"]
    )
    run(pytester, test, "--raft-once").assert_outcomes(passed=1)


def test_a_state_that_agrees_in_one_process_only_is_found(pytester: pytest.Pytester) -> None:
    test = """
    class Joined(aioraft.StateMachine):
        text = ""

        def apply(self, entry):
            self.text = " ".join(set(WORDS))

        def snapshot(self):
            return self.text.encode()

        def restore(self, data):
            self.text = data.decode()

    def test_joined(raft_simulation):
        raft_simulation(3, Joined, command=word).run()
"""
    outcome = run(pytester, test)
    outcome.assert_outcomes(failed=1)
    outcome.stdout.fnmatch_lines(["*replicas agree on the state: not with seed*"])


def test_commands_that_the_seed_does_not_decide_are_found(pytester: pytest.Pytester) -> None:
    test = """
    def test_counter(raft_simulation):
        raft_simulation(3, Counter, command=[word.encode() for word in set(WORDS)]).run()
"""
    outcome = run(pytester, test)
    outcome.assert_outcomes(failed=1)
    outcome.stdout.fnmatch_lines(["*the seed decides what the test does: not with seed*"])


def test_a_test_that_fails_elsewhere_shows_how(pytester: pytest.Pytester) -> None:
    test = """
    import os

    def test_counter(raft_simulation):
        raft_simulation(3, Counter, command=word).run()
        assert "AIORAFT_SIMULATION_LIVES" not in os.environ, "only here"
"""
    outcome = run(pytester, test)
    outcome.assert_outcomes(failed=1)
    outcome.stdout.fnmatch_lines(["*the test passes in another process*", "*only here*"])


def test_many_seeds_need_one_second_process(pytester: pytest.Pytester) -> None:
    test = """
    import os, pathlib

    def test_counter(raft_simulation):
        raft_simulation(3, Counter, command=word).run()
        if "AIORAFT_SIMULATION_LIVES" in os.environ:
            with pathlib.Path("processes").open("a") as file:
                file.write(os.environ["PYTHONHASHSEED"])
"""
    run(pytester, test, "--raft-seeds", "4").assert_outcomes(passed=4)
    assert (pytester.path / "processes").read_text() in ("1", "2")


def test_a_failure_that_is_expected_needs_no_second_process(pytester: pytest.Pytester) -> None:
    test = """
    def test_rare(raft_simulation):
        with pytest.raises(aioraft.testing.SimulationError):
            raft_simulation(3, Rare, command=word).run(seconds=300)
"""
    run(pytester, "    import aioraft.testing\n" + test).assert_outcomes(passed=1)


@pytest.mark.parametrize("place", [0, 1])
def test_the_document_shows_tests_that_pass(pytester: pytest.Pytester, place: int) -> None:
    shown = blocks("docs/testing.md", "python")[place]
    pytester.makepyfile(shown)
    options = ("--asyncio-mode=auto", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestDeprecationWarning")
    pytester.runpytest_subprocess(*options).assert_outcomes(passed=shown.count("def test_"))


# Clusters

OPEN = """
    async def opens(raft_cluster, tmp_path):
        cluster = raft_cluster(3, Counter, data_dir=tmp_path)
        await cluster.__aenter__()
        assert await (await cluster.leader()).propose(b"") == 1
"""

THREADS_GONE = """
    def test_no_thread_is_left():
        import pathlib

        deadline = time.monotonic() + 20
        while left := [task for task in pathlib.Path("/proc/self/task").iterdir() if named(task).startswith("aioraft")]:
            assert time.monotonic() < deadline, list(map(named, left))
            time.sleep(0.01)

    def named(task):
        try:
            return (task / "comm").read_text()
        except OSError:
            return ""
"""


def test_a_cluster_that_is_left_open_is_closed_with_its_loop(pytester: pytest.Pytester) -> None:
    test = OPEN.replace("async def opens", "@pytest.mark.asyncio\n    async def test_opens") + THREADS_GONE
    run(pytester, test, "--asyncio-mode=strict").assert_outcomes(passed=2)


def test_a_cluster_that_is_left_open_is_closed_without_its_loop(pytester: pytest.Pytester) -> None:
    test = (
        OPEN
        + """
    def test_opens(raft_cluster, tmp_path):
        import asyncio

        asyncio.run(opens(raft_cluster, tmp_path))
"""
        + THREADS_GONE
    )
    run(pytester, test, "-p", "no:asyncio").assert_outcomes(passed=2)


def test_a_failure_shows_what_the_nodes_have_logged(pytester: pytest.Pytester) -> None:
    test = """
    async def test_fails(raft_cluster):
        async with raft_cluster(3, Counter, seed=77) as cluster:
            await cluster.leader()
            assert False
"""
    for options in ((), ("-p", "no:logging"), ("--log-level=ERROR",)):
        result = run(pytester, test, "--asyncio-mode=auto", *options)
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["*aioraft seed*", "raft_cluster(..., seed=77)"])
        said = [line for line in result.stdout.lines if "INFO" in line and "node 2 started" in line]
        assert len(said) == 1, options
