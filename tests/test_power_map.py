"""The table of docs/explanation/power.md: each reference on an xe device is taken and dropped where it says."""

import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from gpusvm.drm import D3COLD, Inner, RuntimePm
from gpusvm.plugins import load_drivers
from gpusvm.testing import Bench

PAGE = Path(__file__).resolve().parent.parent / "docs" / "explanation" / "power.md"
ROW = re.compile(r"^\| [^|]+ \| `(\w+)` \| (get\w*)[^|]*\| [^|]+ \| `([\w.]+)` \| `([\w.]+)` \|$", re.MULTILINE)
ROWS = ROW.findall(PAGE.read_text("utf-8"))
PMD = 2 << 20
WRITE = 2

Seen = set[tuple[str, str]]


def stack() -> Iterator[str]:
    """Name the functions that are being called, by module and name; closures by the function around them."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_qualname.partition(".<locals>")[0]
        yield f"{frame.f_globals.get('__name__')}.{name}"
        frame = frame.f_back


def where(name: str) -> str:
    """Return the module that a function is defined in, and its name there."""
    function = pkgutil.resolve_name(name)
    return f"{function.__module__}.{function.__qualname__}"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> tuple[Seen, Seen, dict[str, set[str]]]:
    """Note for each reference who holds it and every function above; and with which call it was taken."""
    taken: Seen = set()
    dropped: Seen = set()
    kinds: dict[str, set[str]] = {}

    def note(owner: type, name: str, into: Seen, kind: str = "") -> None:
        plain = getattr(owner, name)

        def noting(self, *args):  # type: ignore[no-untyped-def]  # stands for methods of two classes
            holder = str(self._holder if owner is Inner else args[0])
            into.update((holder, each) for each in stack())
            if kind:
                kinds.setdefault(holder, set()).add(kind)
            return plain(self, *args)

        monkeypatch.setattr(owner, name, noting)

    note(RuntimePm, "get", taken, "get")
    note(RuntimePm, "get_noresume", taken, "get_noresume")
    note(RuntimePm, "put", dropped)
    for name in ("get", "__enter__"):
        note(Inner, name, taken, "get_noresume")
    for name in ("put", "__exit__"):
        note(Inner, name, dropped)
    return taken, dropped, kinds


def program() -> None:
    """Pass every row: populate by a fault, touch from the CPU, change attributes, unmap, sleep, close."""
    bench = Bench("xe", drivers=load_drivers())
    addr = bench.map(2 * PMD)
    bench.cpu_write(addr, 1024)
    bench.fault(addr, WRITE)
    bench.cpu_write(addr, 1)
    bench.fault(addr, WRITE)
    bench.vm.populate(addr + PMD, addr + 2 * PMD)
    bench.machine.sleep(1)
    assert bench.driver.device.pm is not None
    assert D3COLD in [state for _, state in bench.driver.device.pm.history]
    bench.fault(addr, WRITE)
    bench.mm.munmap(addr, PMD)
    bench.close()


def test_every_reference_is_taken_and_dropped_where_the_table_says(
    seen: tuple[Seen, Seen, dict[str, set[str]]],
) -> None:
    taken, dropped, kinds = seen
    program()
    assert len(ROWS) == 12
    for holder, kind, take, drop in ROWS:
        assert (holder, where(take)) in taken, (holder, take)
        assert (holder, where(drop)) in dropped, (holder, drop)
        assert kinds[holder] == {"get"} if kind == "get" and holder != "bo_move" else "get_noresume" in kinds[holder]


def test_the_table_has_every_holder(seen: tuple[Seen, Seen, dict[str, set[str]]]) -> None:
    program()
    assert set(seen[2]) == {holder for holder, *_ in ROWS}
