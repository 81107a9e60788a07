"""What holds for all tests."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    # A shell starts what it runs in the background with SIGINT ignored; the programs under test would inherit that, and
    # never see the Ctrl-C that they are tested with.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
