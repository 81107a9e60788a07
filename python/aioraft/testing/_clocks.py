"""The local clocks of simulated nodes: each shows a time of its own, as in a real cluster, only more so."""

from __future__ import annotations

import contextlib
import datetime
import threading
import time
import types
from collections.abc import Callable, Generator, Iterable
from typing import Any, ClassVar, Final

__all__ = ["Clock", "Clocks"]

TICK_NS: Final = 1_000_003
READINGS: Final = ("time", "monotonic", "perf_counter", "clock_gettime")
REAL: Final = {
    name: getattr(time, name)
    for name in (
        *READINGS,
        *(f"{name}_ns" for name in READINGS),
        *("localtime", "gmtime", "ctime", "asctime", "strftime"),
    )
}
RealDatetime = datetime.datetime


class Clock:
    """One node's: it runs with the world, at a speed of its own, and advances with each look at it."""

    __slots__ = ("_base_ns", "_ns", "_speed")

    def __init__(self, seconds: float, speed: int = 1) -> None:
        self._base_ns = self._ns = int(seconds * 1e9)
        self._speed = speed

    def set(self, now: int) -> None:
        """Let it be this time of the world, in nanoseconds."""
        self._ns = max(self._ns, self._base_ns + self._speed * now)

    def look(self) -> int:
        """Return nanoseconds since the epoch."""
        self._ns += TICK_NS
        return self._ns


class Clocks:
    """Lets a piece of code read a node's clock in the place of this machine's.

    What is replaced, and only on the thread that uses it: the functions of the module `time`, wherever they are looked
    up there or were imported by name into a module that defines (a base of) the state machine; and there `datetime`.
    """

    def __init__(self) -> None:
        self.current: Clock | None = None
        self._thread = threading.get_ident()
        self._replaced: list[tuple[dict[str, Any], str, Any]] = []

    @contextlib.contextmanager
    def installed(self, machine: object) -> Generator[None, None, None]:
        """Let the code of `machine` read whichever clock is `current`, and this machine's if there is none."""
        substitutes = self._substitutes()
        try:
            for name, real in REAL.items():
                self._replace(time.__dict__, name, substitutes[real])
            proxy = types.ModuleType("datetime")
            vars(proxy).update({**vars(datetime), "datetime": substitutes[RealDatetime]})
            substitutes[datetime] = proxy
            for names in _globals(type(machine)):
                for name, value in list(names.items()):
                    with contextlib.suppress(TypeError):  # unhashable
                        if value in substitutes and names is not time.__dict__:
                            self._replace(names, name, substitutes[value])
            yield
        finally:
            self.current = None
            while self._replaced:
                names, name, real = self._replaced.pop()
                names[name] = real

    @contextlib.contextmanager
    def at(self, clock: Clock) -> Generator[None, None, None]:
        """Read this clock inside the `with`."""
        before, self.current = self.current, clock
        try:
            yield
        finally:
            self.current = before

    def _replace(self, names: dict[str, Any], name: str, substitute: object) -> None:
        self._replaced.append((names, name, names[name]))
        names[name] = substitute

    def _look(self) -> int | None:
        clock = self.current
        return None if clock is None or threading.get_ident() != self._thread else clock.look()

    def _seconds(self) -> float | None:
        ns = self._look()
        return None if ns is None else ns / 1e9

    def _substitutes(self) -> dict[object, Any]:
        found: dict[object, Any] = {RealDatetime: _Instances("datetime", (_Datetime,), {"clocks": self})}
        for name, real in REAL.items():
            if name in ("localtime", "gmtime", "ctime"):
                found[real] = self._of_seconds(real)
            elif name in ("asctime", "strftime"):
                found[real] = self._of_time(real, takes=name == "strftime")
            else:
                found[real] = self._reading(real, nanoseconds=name.endswith("_ns"))
        return found

    def _reading(self, real: Callable[..., Any], *, nanoseconds: bool) -> Callable[..., Any]:
        def read(*arguments: Any) -> Any:
            ns = self._look()
            if ns is None:
                return real(*arguments)
            return ns if nanoseconds else ns / 1e9

        return read

    def _of_seconds(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def convert(seconds: float | None = None) -> Any:
            return real(self._seconds() if seconds is None else seconds)

        return convert

    def _of_time(self, real: Callable[..., Any], *, takes: bool) -> Callable[..., Any]:
        def convert(*arguments: Any) -> Any:
            seconds = self._seconds() if len(arguments) == takes else None
            return real(*arguments) if seconds is None else real(*arguments, REAL["localtime"](seconds))

        return convert


def _globals(kind: type) -> Iterable[dict[str, Any]]:
    """The module dictionaries of a state machine's own code."""
    found: dict[int, dict[str, Any]] = {}
    for one in kind.__mro__:
        for value in vars(one).values():
            names = getattr(value, "__globals__", None)
            if names is not None and not str(names.get("__name__", "")).startswith(("aioraft.", "abc", "typing")):
                found[id(names)] = names
    return found.values()


class _Instances(type):
    """Whatever is a real `datetime` is one of these."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, RealDatetime)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, RealDatetime)


class _Datetime(RealDatetime, metaclass=_Instances):
    """A `datetime` whose now() is the simulated node's; all that it makes are real ones."""

    clocks: ClassVar[Clocks]

    def __new__(cls, *arguments: Any, **keywords: Any) -> Any:
        return RealDatetime(*arguments, **keywords)

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        now = cls.clocks._seconds()
        return RealDatetime.now(tz) if now is None else RealDatetime.fromtimestamp(now, tz)

    @classmethod
    def utcnow(cls) -> Any:
        return cls.now(datetime.UTC).replace(tzinfo=None)
