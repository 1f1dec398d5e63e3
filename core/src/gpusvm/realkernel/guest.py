"""Run a built kernel under QEMU, and have it do sequences of operations."""

import contextlib
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

from attrs import Factory, define, frozen

from gpusvm.driver.operations import COHERENT_AT
from gpusvm.errors import GpusvmError, InputError
from gpusvm.realkernel.answers import HANG
from gpusvm.realkernel.build import Built
from gpusvm.realkernel.build.tools import check_tools
from gpusvm.realkernel.targets import Asked

__all__ = ["Guest", "GuestDiedError", "Hardware", "Variant"]

_QEMU: Final = "qemu-system-x86_64"
_ANSWER_S: Final = 120.0
_BOOT_S: Final = 120.0
_HEAD: Final = struct.Struct("<IB")
_LAST_LINES: Final = 40


class GuestDiedError(GpusvmError):
    """Report that the guest's kernel crashed or fell silent; `serial` is the end of what it said."""

    def __init__(self, why: str, serial: str) -> None:
        super().__init__(why, serial)
        self.why = why
        self.serial = serial

    def __str__(self) -> str:
        return self.why


@frozen(kw_only=True)
class Variant:
    """Say which module a guest loads for which driver, and how; `coherent` if it needs memory for the devices alone."""

    target: str
    module: str
    parameters: tuple[str, ...] = ()
    coherent: bool = False

    @classmethod
    def of(cls, asked: Asked) -> "Variant":
        """Return what a profile needs."""
        profile = asked.profile
        return cls(
            target=asked.target.driver,
            module=profile.module,
            parameters=tuple(profile.parameters),
            coherent=profile.coherent,
        )


@frozen(kw_only=True)
class Hardware:
    """Say what a guest runs on: one CPU, where answers are to be the same each time."""

    cpus: int = 1
    ram: str = "1G"
    kvm: bool | None = None
    """None: if this machine's KVM takes a guest at all."""


@define
class Guest:
    """Be one running guest. A context manager: leaving it ends the guest.

    `sequence` does one sequence in a process of its own. After a crash the guest is gone; `restart` boots it again.
    """

    built: Built
    variant: Variant
    hardware: Hardware = Hardware()
    kernel: str = ""
    """What the guest says that it runs, once it is up."""
    said: str = ""
    """The end of what the kernel before the last restart had said."""
    _process: "subprocess.Popen[bytes] | None" = None
    _line: socket.socket | None = None
    _folder: Path = Factory(lambda: Path(tempfile.mkdtemp(prefix="gpusvm-guest-")))

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:  # nobody leaves what was not entered
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def serial(self) -> str:
        """The end of what the guest's kernel has said."""
        path = self._folder / "serial.log"
        lines = path.read_text("utf-8", errors="replace").splitlines() if path.is_file() else []
        return "\n".join(lines[-_LAST_LINES:])

    def header(self) -> dict[str, Any]:
        """Return what a recording says of the kernel that answered: its release, and what it was built from."""
        return {"release": self.kernel, "cpus": self.hardware.cpus, "built": self.built.manifest}

    def start(self) -> None:
        """Boot, and wait until the agent is there. GuestDiedError if it does not come."""
        check_tools(build=False)
        address = self._folder / "port"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(address))
            listener.listen(1)
            listener.settimeout(_BOOT_S)
            self._process = subprocess.Popen(  # noqa: S603  # our own command
                self._command(address),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=(self._folder / "qemu.log").open("wb"),
            )
            try:
                self._line, _ = listener.accept()
            except TimeoutError:
                said = (self._folder / "qemu.log").read_text("utf-8", errors="replace").strip()
                self.stop()
                raise InputError(f"{_QEMU} did not start: {said or 'it said nothing'}") from None
        address.unlink()
        self._line.settimeout(_BOOT_S)
        kind, text = self._receive("the guest did not boot")
        if kind != "H":
            raise GuestDiedError(f"expected the agent's greeting, got a frame {kind!r}", self.serial)
        self.kernel = text.split()[0]
        self._line.settimeout(_ANSWER_S)

    def restart(self) -> None:
        """End what is left of the guest, and boot it again; `said` is what it said last."""
        self.said = self.serial
        self.stop()
        self.start()

    def stop(self) -> None:
        """End the guest, at once if it does not end by itself."""
        if self._line is not None:
            with contextlib.suppress(OSError):
                self._line.sendall(_HEAD.pack(0, ord("Q")))
        if self._process is not None:
            try:
                self._process.wait(5 if self._line is not None else 0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._line is not None:
            self._line.close()
        self._process = self._line = None

    def sequence(self, operations: Sequence[str]) -> list[str]:
        """Do operations in a fresh process; their answers. GuestDiedError if the kernel dies of it.

        The list is shorter than the operations if the process ended before the last; its last says `ENDED` then, or is
        `HANG` for an operation that did not return, after which the guest has been booted again.
        """
        if self._line is None:
            raise InputError("the guest is not running")
        payload = "\n".join(operations).encode()
        try:
            self._line.sendall(_HEAD.pack(len(payload), ord("S")) + payload)
        except OSError:
            raise GuestDiedError("the guest died", self.serial) from None
        _, text = self._receive("the guest died")
        answers = text.split("\n")[:-1]
        if answers and answers[-1] == HANG:
            self.restart()  # what the process holds it will hold for ever
        return answers

    def _receive(self, otherwise: str) -> tuple[str, str]:
        length, kind = _HEAD.unpack(self._read(_HEAD.size, otherwise))
        return chr(kind), self._read(length, otherwise).decode()

    def _read(self, n: int, otherwise: str) -> bytes:
        assert self._line is not None
        found = bytearray()
        while len(found) < n:
            try:
                more = self._line.recv(n - len(found))
            except TimeoutError:
                raise GuestDiedError(
                    f"{otherwise}: no word of it for {self._line.gettimeout():.0f} s", self.serial
                ) from None
            except OSError:
                more = b""
            if not more:
                raise GuestDiedError(otherwise, self.serial)
            found += more
        return bytes(found)

    def _command(self, address: Path) -> list[str]:
        words = [
            "console=ttyS0",
            "quiet",
            "panic=-1",
            "oops=panic",
            "no_timer_check",  # an emulated timer may be late, which says nothing
            f"GPUSVM_TARGET={self.variant.target}",
            f"GPUSVM_MODULE={self.variant.module}",
            f"GPUSVM_DEVICE_SIZE={self.built.manifest['dmirror_device_bytes']}",
        ]
        parameters = list(self.variant.parameters)
        ram = self.hardware.ram
        if self.variant.coherent:
            # Memory that the kernel leaves alone, for the devices' own.
            words.append(f"memmap=512M${COHERENT_AT:#x}")
            ram = "6G"
        if parameters:
            words.append(f"GPUSVM_PARAMETERS={','.join(parameters)}")
        return [
            _QEMU,
            *(
                ["-accel", "kvm", "-cpu", "host"]
                if self.hardware.kvm
                else ["-accel", "tcg,thread=multi", "-cpu", "max"]
            ),
            *("-smp", str(self.hardware.cpus), "-m", ram),
            *("-nodefaults", "-no-reboot", "-display", "none"),
            *("-serial", f"file:{self._folder / 'serial.log'}"),
            *("-kernel", str(self.built.image), "-initrd", str(self.built.initramfs)),
            *("-append", " ".join(words)),
            *("-device", "virtio-serial-pci", "-chardev", f"socket,id=line,path={address}"),
            *("-device", "virtserialport,chardev=line,name=gpusvm,nr=1"),
        ]
