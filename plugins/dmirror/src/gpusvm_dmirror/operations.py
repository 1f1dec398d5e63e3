"""Do the operations that a real dmirror's answers were recorded for, as ioctls of its devices."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from gpusvm.driver.operations import Answer, Deviation, OperationHost, OperationTarget
from gpusvm.mm.api import IntervalNotifier, MmuNotifierRange

from gpusvm_dmirror.profiles import PROFILES
from gpusvm_dmirror.races import RACES

if TYPE_CHECKING:
    from gpusvm_dmirror.commands import Done
    from gpusvm_dmirror.mirror import Dmirror

__all__ = ["OPERATIONS", "DmirrorOperations"]

_SLOTS_BYTES: Final = 1 << 30  # all slots lie below one PUD entry


class DmirrorOperations:
    """Answer the operations on dmirror devices of one sequence."""

    def __init__(self, host: OperationHost) -> None:
        self.host = host
        self.files: list[Dmirror] = list(host.vms)  # type: ignore[arg-type]  # what vm_create of dmirror returns
        self._page_shift = host.memory.geometry.page_shift
        self._events: list[str] = []
        for number, mirror in enumerate(self.files):
            self._listen(number, mirror)

    def take_events(self) -> tuple[str, ...]:
        """Return the callbacks since the last call: page numbers count from slot 0."""
        events = tuple(self._events)
        self._events.clear()
        return events

    def execute(self, name: str, numbers: Sequence[int]) -> Answer:
        """Do one operation. KernelError stands for an answer of -1."""
        answer: Answer = getattr(self, name)(*numbers)
        return answer

    def dr(self, dev: int, slot: int, page: int, n: int) -> Answer:
        return self._read(self.files[dev].ioctl.read(self.host.address(slot, page), n))

    def dw(self, dev: int, slot: int, page: int, n: int, value: int) -> Answer:
        tokens = self.host.words.new_tokens(n, value)
        done = self.files[dev].ioctl.write(self.host.address(slot, page), n, tokens)
        return Answer(done=done.cpages, rounds=done.faults)

    def mtd(self, dev: int, slot: int, page: int, n: int) -> Answer:
        return self._read(self.files[dev].ioctl.migrate_to_dev(self.host.address(slot, page), n))

    def dru(self, dev: int, slot: int, page: int, n: int) -> Answer:
        return self._read(self.files[dev].ioctl.read_unlocked(self.host.address(slot, page), n))

    def rel(self, dev: int) -> Answer:
        self.files[dev].ioctl.release()
        return Answer()

    def mts(self, dev: int, slot: int, page: int, n: int) -> Answer:
        return Answer(done=self.files[dev].ioctl.migrate_to_sys(self.host.address(slot, page), n).cpages)

    def ex(self, dev: int, slot: int, page: int, n: int) -> Answer:
        return self._read(self.files[dev].ioctl.exclusive(self.host.address(slot, page), n))

    def cex(self, dev: int, slot: int, page: int, n: int) -> Answer:
        self.files[dev].ioctl.check_exclusive(self.host.address(slot, page), n)
        return Answer()

    def snap(self, dev: int, slot: int, page: int, n: int) -> Answer:
        return Answer(done=n, payload=self.files[dev].ioctl.snapshot(self.host.address(slot, page), n).hex())

    def fl(self, dev: int, flags: int) -> Answer:
        self.files[dev].ioctl.flags(flags)
        return Answer()

    def _read(self, done: "Done") -> Answer:
        return Answer(done=done.cpages, rounds=done.faults, payload=self.host.words.of_tokens(done.tokens.tolist()))

    def _listen(self, number: int, mirror: "Dmirror") -> None:
        """Log every callback that reaches a mirror, before the driver decides whether it cares."""
        invalidate = mirror.invalidate
        first, shift = self.host.address(0, 0), self._page_shift

        def listening(sub: IntervalNotifier, range_: MmuNotifierRange, cur_seq: int) -> bool:
            # What lies outside the slots, as the whole address space does at exit, was left out.
            if first <= range_.start and range_.end <= first + _SLOTS_BYTES:
                start, end = (range_.start - first) >> shift, (range_.end - first) >> shift
                owner = "own" if range_.owner is mirror.device else "-"
                self._events.append(f"inv({number},{start:x},{end:x},{range_.event},{owner})")
            return invalidate(sub, range_, cur_seq)

        mirror.invalidate = listening  # type: ignore[method-assign]  # looked up at every call


OPERATIONS = OperationTarget(
    driver="dmirror",
    devices=2,
    operations={
        "dr": ("dev", "slot", "page", "n"),
        "dru": ("dev", "slot", "page", "n"),
        "dw": ("dev", "slot", "page", "n", "value"),
        "mtd": ("dev", "slot", "page", "n"),
        "mts": ("dev", "slot", "page", "n"),
        "snap": ("dev", "slot", "page", "n"),
        "ex": ("dev", "slot", "page", "n"),
        "cex": ("dev", "slot", "page", "n"),
        "fl": ("dev", "flags"),
        "rel": ("dev",),
    },
    start=DmirrorOperations,
    residency=frozenset({"snap"}),
    settings={"quirk.device_page": "fixed"},
    explained=(
        Deviation(
            operation="warn",
            expected=r"0 0 \d+ 0( WARNING:_mm/memremap\.c:\d+_at_memremap_pages)+",
            got="0 0 0 0",
            reason="for a second chunk test_hmm maps its special-purpose memory again, which memremap_pages refuses "
            "with a warning; in the model it refuses, which is what the sequence sees, and says nothing",
        ),
    ),
    profiles=PROFILES,
    races=RACES,
    race_settings={"chunk_bytes": "2M"},
)
