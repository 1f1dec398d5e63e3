"""What a driver may offer beside the contract: to do the operations that a real kernel's answers were recorded for.

`gpusvm realkernel` replays such recordings. What the process itself does (mmap, writes, forks …) core does; what goes
to a device, the plugin's executor does, through the driver's own interface.
"""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Final, Protocol

from attrs import Factory, field, frozen

from gpusvm.mm.api import Pfns

if TYPE_CHECKING:
    from gpusvm.driver.protocols import Driver, Vm
    from gpusvm.mm import MemoryManager, MmStruct

__all__ = [
    "COHERENT_AT",
    "PROCESS_OPERATIONS",
    "PROCESS_RESIDENCY",
    "Answer",
    "Deviation",
    "OperationExecutor",
    "OperationHost",
    "OperationProfile",
    "OperationRace",
    "OperationTarget",
    "PageWords",
]

# What the process itself does, whatever the driver: each with the names of its numbers.
PROCESS_OPERATIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "mmap": ("slot", "page", "n", "prot", "shared"),
    "munmap": ("slot", "page", "n"),
    "mprot": ("slot", "page", "n", "prot"),
    "madv": ("slot", "page", "n", "advice"),
    "mremap": ("slot", "page", "n", "slot", "page"),
    "w": ("slot", "page", "n", "value"),
    "r": ("slot", "page", "n"),
    "fr": ("slot", "page", "n"),
    "fw": ("slot", "page", "n", "value"),
    "pm": ("slot", "page", "n"),
    "kf": (),
    "kr": ("slot", "page", "n"),
    "kw": ("slot", "page", "n", "value"),
    "kp": ("slot", "page", "n"),
    "ke": (),
    "warn": (),
    "mapf": ("slot", "page", "n", "prot", "shared", "file", "offset"),
    "ft": ("file", "pages"),
    "pr": ("file", "offset", "pages"),
    "pw": ("file", "offset", "pages", "value"),
}
COHERENT_AT: Final = 0x140000000
"""Where a guest whose profile is `coherent` has 512 MiB that its kernel leaves to the devices."""

PROCESS_RESIDENCY: Final = frozenset({"pm", "kp"})


@frozen
class Answer:
    """Hold what an operation answered: the numbers, the data or None, and the events in order.

    `ret` is 0, -1 with `errno`, or -2 when an access of the CPU raised signal `errno`; `done` counts pages, `rounds`
    fault rounds.
    """

    ret: int = 0
    errno: int = 0
    done: int = 0
    rounds: int = 0
    payload: str | None = None
    events: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Write it as recordings do."""
        head = f"{self.ret} {self.errno} {self.done} {self.rounds}"
        return " ".join([head, *(() if self.payload is None else (self.payload,)), *self.events])


class PageWords:
    """Remember which 32-bit word each version of a page holds, as the contents of the model are versions only."""

    def __init__(self, memory: "MemoryManager") -> None:
        self._contents = memory.contents
        self._words = {0: 0}

    def new_tokens(self, n: int, value: int) -> Pfns:
        """Make versions for `n` pages to be written, of which page i is to hold `value` + i."""
        tokens = self._contents.new_tokens(n)
        self._note(tokens.tolist(), value)
        return tokens

    def wrote_versions(self, tokens: Sequence[int], value: int) -> None:
        """Note that version i holds `value` + i."""
        self._note(tokens, value)

    def wrote(self, pfns: Pfns, value: int) -> None:
        """Note that page i, just written, holds `value` + i."""
        self._note([self._contents.token(pfn) for pfn in pfns.tolist()], value)

    def text(self, pfns: Pfns) -> str:
        """Write down what pages hold, in hexadecimal; what nobody has written by name."""
        return self.of_tokens([self._contents.token(pfn) for pfn in pfns.tolist()])

    def _note(self, tokens: Sequence[int], value: int) -> None:
        for i, token in enumerate(tokens):
            self._words[token] = (value + i) & 0xFFFFFFFF

    def of_tokens(self, tokens: Sequence[int]) -> str:
        """Write down what versions of pages hold."""
        words = self._words
        return ",".join(f"{words[token]:x}" if token in words else f"?{token}" for token in tokens)


@frozen(kw_only=True, eq=False)
class OperationHost:
    """Give an executor the process it works for: one `vms[i]` open on each `drivers[i]`."""

    memory: "MemoryManager"
    mm: "MmStruct"
    drivers: "Sequence[Driver]"
    vms: "Sequence[Vm]"
    words: PageWords
    address: Callable[[int, int], int]
    """Turn a slot and a page into an address."""


class OperationExecutor(Protocol):
    """Do the operations of one sequence, which begins in a fresh process with every device open."""

    def execute(self, name: str, numbers: Sequence[int]) -> Answer:
        """Do one operation of the target; KernelError stands for an answer of -1. Events are asked for separately."""

    def take_events(self) -> tuple[str, ...]:
        """Return the events that reached the devices since the last call, in order, and forget them."""


@frozen(kw_only=True)
class Deviation:
    """Name answers that differ on purpose, and why: regular expressions for the whole operation and both answers."""

    operation: str
    expected: str
    got: str
    reason: str


@frozen(kw_only=True)
class OperationProfile:
    """Say what random sequences of one kind are like, and how the devices are set up that do them.

    `sequence` makes one, out of the chance that it is given alone. On a real kernel the devices are those of the module
    `module`, one of those that come with gpusvm, loaded with `parameters`; in the model those of the driver with
    `settings`, options of a spec string. `coherent`: the kernel leaves memory at `COHERENT_AT` to the devices.
    `devices`: how many there are, if not as many as the target says.
    """

    name: str
    about: str
    sequence: Callable[[Random], list[str]]
    module: str
    parameters: Sequence[str] = Factory(tuple)
    settings: Mapping[str, str] = field(factory=dict)
    coherent: bool = False
    devices: int | None = None


@frozen(kw_only=True)
class OperationRace:
    """Say what two threads are to do at the same time: `left` and `right`, one operation each.

    The operations `before` prepare the process, those `after` say what came of it. A huge page is smaller in the model:
    numbers are written ``@3`` for three eighths of one, and no answer may depend on its size. `profile` says how the
    devices are set up (None: as by the target's first profile).
    """

    name: str
    about: str
    before: Sequence[str]
    left: str
    right: str
    after: Sequence[str]
    profile: str | None = None


@frozen(kw_only=True)
class OperationTarget:
    """Say which operations a driver's recordings have, and how to do them.

    `driver` is the name of a driver of the same plugin; recordings whose file name begins with it and a dash are taken
    for its. `operations` maps each operation on a device to the names of its numbers, in order: `dev`, `slot`, `page`,
    `n` are checked to be in range, others only to be whole. An answer's events begin with a word of `events` and a
    parenthesis. The answers of `residency` say where pages are; all other payload is data. `settings` are options of a
    spec string that the recordings need; `settings_by_name` are those of recordings whose file name matches a pattern
    (`fnmatch`), where several do, the last one's count. `profiles` are the kinds of random sequences that there are.
    `races` are what two threads can do at once; `race_settings` are options of a spec string that make the model small
    enough for every order of theirs.
    """

    driver: str
    devices: int
    operations: Mapping[str, tuple[str, ...]]
    start: Callable[[OperationHost], OperationExecutor]
    events: tuple[str, ...] = ("inv",)
    residency: frozenset[str] = frozenset()
    settings: Mapping[str, str] = field(factory=dict)
    settings_by_name: Sequence[tuple[str, Mapping[str, str]]] = Factory(tuple)
    explained: Sequence[Deviation] = Factory(tuple)
    profiles: Sequence[OperationProfile] = Factory(tuple)
    races: Sequence[OperationRace] = Factory(tuple)
    race_settings: Mapping[str, str] = field(factory=dict)
