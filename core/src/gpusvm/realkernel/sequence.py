"""Execute one recorded sequence on a fresh machine, up to the first answer that differs."""

import re
from collections.abc import Sequence
from typing import Final

import attrs
from attrs import define, field, frozen

from gpusvm.driver.operations import (
    PROCESS_OPERATIONS,
    PROCESS_RESIDENCY,
    Answer,
    Deviation,
    OperationHost,
    OperationTarget,
    PageWords,
)
from gpusvm.driver.spec import DriverSpec
from gpusvm.errors import CpuSignal, DeadlockError, KernelError, LivelockError
from gpusvm.machine import Machine, load_topology
from gpusvm.mm import Geometry, MmStruct
from gpusvm.mm.lru import ActivateBatch
from gpusvm.realkernel.answers import ENDED, HANG, LEVELS, Level, first_difference, read_answer
from gpusvm.realkernel.operations import PAGE, Operation, address, read_operation
from gpusvm.realkernel.process import ProcessOperations
from gpusvm.realkernel.recordings import Pairs

__all__ = ["END", "Difference", "Player", "SequenceResult", "check_sequence"]

END: Final = "(end)"
"""What stands for the operation when a sequence is answered well, but leaves something behind."""

# More than any sequence uses: a machine that is booted for each has to be small.
_RAM_BYTES: Final = 256 << 20
_VRAM_BYTES: Final = 256 << 20
_SMALL_BYTES: Final = 4 << 20
_BEFORE: Final = 5

# An event by which the kernel took pages away for a copy: MMU_NOTIFY_CLEAR.
_CLEARED: Final = re.compile(r" inv\(\d+,([0-9a-f]+),([0-9a-f]+),1,")
_COPIED: Final = (
    "a page that EXCLUSIVE has pinned twice waits to be activated in a batch of its CPU, which has a reference on it; "
    "a write fault after a fork copies it, unless the batch was drained meanwhile, by whatever else the CPU does; the "
    "model does as the kernel did"
)


@frozen(kw_only=True)
class Difference:
    """Hold the first answer of a sequence that differs.

    `index` is the operation's place in the sequence, `level` the lowest at which the answers differ, None for a model
    that failed; `before` are the operations that led to it, with their answers.
    """

    file: str
    sequence: int
    index: int
    operation: str
    expected: str
    got: str
    level: Level | None
    before: tuple[tuple[str, str], ...]


@define
class SequenceResult:
    """Count what was compared, by kind of operation; `explained` counts deviations on purpose by their reason."""

    compared: dict[str, int] = field(factory=dict)
    explained: dict[str, int] = field(factory=dict)
    explained_kinds: dict[str, int] = field(factory=dict)
    difference: Difference | None = None


class Player:
    """Be the fresh machine and process of one sequence, and answer operations.

    THP is `madvise`, as where the recordings were made: what a sequence wants huge, it says so. With `explored`, the
    sizes of pages, the machine is one to be explored, and small.
    """

    def __init__(
        self,
        spec: DriverSpec,
        target: OperationTarget,
        *,
        devices: int | None = None,
        explored: Geometry | None = None,
    ) -> None:
        single = load_topology("single")
        count = target.devices if devices is None else devices
        nodes = tuple(attrs.evolve(single.device[0], name=f"gpu{i}") for i in range(count))
        self.machine = Machine.boot(
            attrs.evolve(single, name="recorded", ram_bytes=_SMALL_BYTES if explored else _RAM_BYTES, device=nodes),
            [spec] * count,
            vram_bytes=_SMALL_BYTES if explored else _VRAM_BYTES,
            thp="madvise",
            mode="explored" if explored else "timed",
            geometry=explored,
        )
        process = self.machine.process("recorded")
        vms = [self.machine.open(process, i) for i in range(count)]
        memory = self.machine.memory
        words = PageWords(memory)
        self._process = ProcessOperations(memory, process.mm, words)
        self._mm = process.mm
        self._cleared: list[tuple[int, int]] = []
        self.copied = 0
        if explored is None:  # else there is no kernel whose answer says what is copied
            memory.pages.activate = ActivateBatch(self._copies)
        self._devices = target.start(
            OperationHost(
                memory=memory,
                mm=process.mm,
                drivers=self.machine.drivers,
                vms=vms,
                words=words,
                address=address,
            )
        )

    def answer(self, operation: Operation, expected: str = "") -> Answer:
        """Do one operation; the answer with its events.

        `expected` is what the kernel answered: it decides of pages that may wait in a batch of its CPU whether they
        are copied (`copied` counts them).
        """
        self._cleared = [(int(start, 16), int(end, 16)) for start, end in _CLEARED.findall(expected)]
        try:
            if operation.name in PROCESS_OPERATIONS:
                answer = self._process.execute(operation.name, operation.numbers)
            else:
                answer = self._devices.execute(operation.name, operation.numbers)
        except KernelError as error:
            answer = Answer(-1, error.errno)
        except CpuSignal as signal:
            answer = Answer(-2, signal.signal)
        return attrs.evolve(answer, events=self._devices.take_events())

    def _copies(self, mm: MmStruct, at: int) -> bool:
        page = (at - address(0, 0)) // PAGE
        copied = mm is self._mm and any(start <= page < end for start, end in self._cleared)
        self.copied += copied
        return copied

    def close(self) -> None:
        """End the process and remove the devices; ModelError if that leaves something behind."""
        self._process.ke()
        self._process.close_files()
        self.machine.teardown()


def check_sequence(
    file: str,
    number: int,
    pairs: Pairs,
    *,
    spec: DriverSpec,
    target: OperationTarget,
    level: Level,
    devices: int | None = None,
) -> SequenceResult:
    """Execute the sequence `number` of `file` and compare every answer at `level`.

    `devices`: how many there are, if not as many as the target says.
    """
    result = SequenceResult()
    forms = {**PROCESS_OPERATIONS, **target.operations}
    residency = PROCESS_RESIDENCY | target.residency

    def differs(index: int, operation: str, expected: str, got: str, at: Level | None) -> SequenceResult:
        result.difference = Difference(
            file=file,
            sequence=number,
            index=index,
            operation=operation,
            expected=expected,
            got=got,
            level=at,
            before=pairs[max(0, index - _BEFORE) : index],
        )
        return result

    player = Player(spec, target, devices=devices)
    count = target.devices if devices is None else devices
    for index, (text, expected) in enumerate(pairs):
        operation = read_operation(text, forms, devices=count)
        result.compared[operation.name] = result.compared.get(operation.name, 0) + 1
        copied = player.copied
        try:
            answer = player.answer(operation, expected)
        except (DeadlockError, LivelockError) as error:
            # Whoever waits for ever waits on: this machine cannot be taken down.
            return result if expected == HANG else differs(index, text, expected, f"{HANG}: {error}", "L0")
        except Exception as error:  # noqa: BLE001  # a model or driver that breaks down answers with that
            return differs(index, text, expected, _raised(error), None)
        if player.copied > copied:
            _add(result.explained, _COPIED)
            _add(result.explained_kinds, operation.name)
        got = str(answer)
        if got == expected:
            continue
        if expected == HANG or expected.startswith(ENDED):
            return differs(index, text, expected, got, "L0")
        wanted = read_answer(expected, target.events)
        at = first_difference(wanted, answer, residency=operation.name in residency)
        if at is None or LEVELS.index(at) > LEVELS.index(level):
            continue
        reason = _reason(target.explained, text, expected, got)
        if reason is None:
            return differs(index, text, expected, got, at)
        _add(result.explained, reason)
        _add(result.explained_kinds, operation.name)
    try:
        player.close()
    except Exception as error:  # noqa: BLE001  # as above
        return differs(len(pairs), END, "nothing is left", _raised(error), None)
    return result


def _add(counts: dict[str, int], key: str) -> None:
    counts[key] = counts.get(key, 0) + 1


def _reason(explained: Sequence[Deviation], operation: str, expected: str, got: str) -> str | None:
    for each in explained:
        if (
            re.fullmatch(each.operation, operation)
            and re.fullmatch(each.expected, expected)
            and re.fullmatch(each.got, got)
        ):
            return each.reason
    return None


def _raised(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
