"""Keeps what nodes log while a test runs, for its report."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

__all__ = ["NodeLogs"]

RECORDS: Final = 2000


class NodeLogs(logging.Handler):
    """The newest records of the logger `aioraft`, from INFO up."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
        self._records: deque[logging.LogRecord] = deque(maxlen=RECORDS)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self._records.append(record)

    @contextmanager
    def listening(self) -> Generator[None, None, None]:
        """Keep what is logged inside the `with`."""
        logger = logging.getLogger("aioraft")
        level = logger.level
        if logger.getEffectiveLevel() > logging.INFO:
            logger.setLevel(logging.INFO)
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)
            logger.setLevel(level)

    def text(self) -> str:
        """Return all of it, a line each."""
        return "\n".join(map(self.format, self._records))
