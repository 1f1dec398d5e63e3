"""A driver without a device, whose operations answer what a test tells them to, and a kernel that does."""

import json
import sys
from pathlib import Path

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


class Device:
    pm = None


class Driver:
    def __init__(self, host):
        self.host = host
        self.device = Device()
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


class Kernel:
    """A kernel that is built, and the stand-in that runs it; `serial` is what it says when it dies."""

    serial = "Linux version 7.3.4\nBUG: kernel NULL pointer dereference\nRIP: 0010:do_it+0x10/0x20"

    def __init__(self, path):
        self.shop = path / "shop"
        self.bin = path / "bin"
        self.bin.mkdir()
        out = self.shop / "7.3" / "out"
        out.mkdir(parents=True)
        (out / "manifest.json").write_text(json.dumps({"kernel": "7.3.4", "dmirror_device_bytes": 8}))
        stand_in = self.bin / "qemu-system-x86_64"
        text = Path(__file__).with_name("standin_qemu.py").read_text()
        stand_in.write_text(f"#!{sys.executable}\n{text}")
        stand_in.chmod(0o755)
        self.says()

    def says(self, **table):
        (self.bin / "table.json").write_text(json.dumps({key.replace("_", " "): each for key, each in table.items()}))

    @property
    def boots(self):
        return (self.bin / "boots.txt").read_text().splitlines()


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    made = Kernel(tmp_path)
    monkeypatch.setenv("PATH", str(made.bin))
    return made
