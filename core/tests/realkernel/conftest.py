"""A driver without a device, whose operations answer what a test tells them to."""

import attrs
import pytest
from gpusvm.driver import ABI, Capabilities, DriverInfo, no, quirk
from gpusvm.driver.operations import Answer, OperationTarget
from gpusvm.errors import DeadlockError, KernelError
from gpusvm.plugins import LoadedDriver, Registry
from gpusvm.realkernel import write_recording


class Vm:
    def close(self):
        pass


class Driver:
    def __init__(self, host):
        self.host = host
        self.leaves = host.quirks.leak == "as_written"

    def vm_create(self, mm, *, start, end):
        return Vm()

    def shutdown(self):
        if self.leaves:
            self.host.kernel.ledger.get("bo", self.host.device.name)


@attrs.frozen(kw_only=True)
class Tunables:
    pass


@attrs.frozen(kw_only=True)
class Quirks:
    leak: str = quirk("Leaves a buffer object behind", cite="nowhere")


class Executor:
    """Answer `say` with its word, `tell` with as many events as told, `fail` with an errno; `hang` waits for ever,
    `break` breaks down.
    """

    def __init__(self, host):
        self.host = host
        self.events = []

    def take_events(self):
        events, self.events = tuple(self.events), []
        return events

    def execute(self, name, numbers):
        return getattr(self, f"do_{name}")(*numbers)

    def do_say(self, word):
        return Answer(payload=str(word))

    def do_where(self, dev):
        return Answer(payload=self.host.drivers[dev].host.device.name)

    def do_tell(self, n):
        self.events += [f"ev({i})" for i in range(n)]
        return Answer()

    def do_fail(self, errno):
        raise KernelError(errno)

    def do_hang(self):
        raise DeadlockError("deadlock: nothing can run")

    def do_break(self):
        raise RuntimeError("broken")


TARGET = OperationTarget(
    driver="echo",
    devices=2,
    operations={"say": ("word",), "where": ("dev",), "tell": ("n",), "fail": ("errno",), "hang": (), "break": ()},
    start=Executor,
    events=("ev", "other"),
    residency=frozenset({"where"}),
    settings={"quirk.leak": "fixed"},
)

INFO = DriverInfo(
    name="echo",
    summary="A driver of a test",
    abi=ABI,
    kernel="7.3.4",
    capabilities=Capabilities(**{each.name: no("a test") for each in attrs.fields(Capabilities)}),
    tunables=Tunables,
    quirks=Quirks,
    embedding="none",
    bo_mapping="none",
    pm="none",
    make=Driver,
)


@pytest.fixture
def target():
    return TARGET


@pytest.fixture
def echo():
    """A registry with the driver echo alone, with some of its target changed."""

    def echo(**changes):
        return Registry.of_loaded([LoadedDriver(info=INFO, operations=attrs.evolve(TARGET, **changes))])

    return echo


@pytest.fixture
def silent():
    """The same driver, of a plugin that executes no operations."""
    return Registry.of(INFO)


@pytest.fixture
def write(tmp_path):
    """Write a recording: sequences of (operation, answer) pairs."""

    def write(*sequences, name="echo-test.json.gz"):
        return write_recording(tmp_path / name, sequences)

    return write
