"""Follow the tutorial of a first driver to the letter: what it says to write is written, and does what it says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from gpusvm.cli.new_driver import write_driver

PAGE = Path(__file__).resolve().parent.parent / "docs" / "tutorial" / "your-first-driver.md"
CHECK = ("drivers", "--check", "acme")
BLOCK = re.compile(r"^```(python|toml|diff)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BENCH = """
from gpusvm.testing import Bench

bench = Bench("acme", vram_bytes=8 << 20)
addr = bench.map(2 << 20)
bench.cpu_write(addr, 512)
bench.gpu_write(addr, 512)
bench.cpu_read(addr, 3)
bench.gpu_read(addr)
for _ in range(4):
    bench.gpu_write(bench.map(2 << 20))
bench.close()
"""


def apply(text, changes):
    """Make the changes of a diff, in order."""
    at = 0
    for hunk in changes.split("@@\n")[1:]:
        lines = hunk.splitlines()
        old = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
        new = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
        found = text.index(old, at)
        text = text[:found] + new + text[found + len(old) :]
        at = found
    return text


@pytest.fixture(scope="module")
def acme(tmp_path_factory):
    """The driver as the page leaves it."""
    folder = tmp_path_factory.mktemp("tutorial") / "gpusvm-acme"
    write_driver("acme", folder)
    for kind, name, body in BLOCK.findall(PAGE.read_text("utf-8")):
        file = folder / name
        file.write_text(body if kind != "diff" else apply(file.read_text("utf-8"), body))
    return folder


def run(acme, *command):
    source = acme / "src"
    plugin = source / "gpusvm_acme" / "plugin.py"
    environment = {**os.environ, "PYTHONPATH": str(source), "GPUSVM_DRIVERS": f"none,acme={plugin}"}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=acme, capture_output=True, text=True, check=False
    )


def mended(acme, file, old, new):
    """Make one mistake in a copy of the driver."""
    text = (acme / "src" / "gpusvm_acme" / file).read_text()
    assert text.count(old) == 1, old
    return text.replace(old, new)


@pytest.fixture
def told(acme, tmp_path):
    """Make one mistake, and return what the bench says of it, and the number of the first line that was changed."""

    def told(file, old, new):
        folder = tmp_path / "gpusvm-acme"
        shutil.copytree(acme, folder)
        text = mended(folder, file, old, new)
        (folder / "src" / "gpusvm_acme" / file).write_text(text)
        done = run(folder, "-c", BENCH)
        assert done.returncode == 1
        _, _, message = done.stderr.rpartition("\ngpusvm.errors.")
        return message.rstrip(), text[: text.index(new)].count("\n") + 1

    return told


def test_it_is_about_150_lines(acme):
    files = [acme / "src" / "gpusvm_acme" / name for name in ("vram.py", "pm.py")]
    code = [line for file in files for line in file.read_text().splitlines() if line.strip()]
    assert 120 <= len(code) <= 160


def test_it_needs_no_run_to_be_looked_at(acme):
    done = run(acme, "-c", "from gpusvm.cli import run; raise SystemExit(run(['drivers', '--check', 'acme']))")
    assert (done.returncode, done.stdout) == (0, "acme: 32 ops looked at, nothing wrong with them\n"), done.stderr


def test_it_conforms_to_what_is_asked_of_ops(acme):
    command = ["conform", "--driver", "acme", "--check", "ops.*", "--check", "invalidate.after-read.mprotect.*"]
    done = run(acme, "-c", f"from gpusvm.cli import run; raise SystemExit(run({[*command, '--jobs', '0']!r}))")
    assert done.returncode == 0, done.stdout
    assert re.fullmatch(r"acme: \d+ pass, \d+ unsupported, 3 xfail", done.stdout.splitlines()[-1])


def test_it_works(acme):
    done = run(acme, "-c", BENCH)
    assert done.returncode == 0, done.stderr


def test_a_power_reference_is_not_put(told):
    message, _ = told("vram.py", "        self.driver.pm.pages_gone(devmem.container)\n", "        # no put\n")
    assert message.startswith("LedgerError: ledger: not given back\n  'pm' held by 'bo': ")
    assert " taken in AcmeVram.populate_mm at gpusvm_acme/pm.py:" in message
    assert message.endswith(
        "\n  rule pm-put: every runtime-PM reference is put once, by the holder that took it"
        "\n  see docs/reference/driver-rules.md#pm-put"
    )


def test_a_devmem_is_not_consumed(told):
    message, _ = told(
        "vram.py",
        "                migrate_to_devmem(bo.devmem, mm, start, end, MigrateDetails(timeslice_ms=timeslice_ms))\n",
        "                return\n",
    )
    assert message.startswith(
        "LedgerError: ledger: a Devmem was made and neither migrated to nor released"
        "\n  in AcmeVram.populate_mm at gpusvm_acme/vram.py:"
    )
    assert message.endswith("\n  see docs/reference/driver-rules.md#devmem-consumed")


def looked_at(acme, tmp_path, file, old, new, *command):
    """Make one mistake, and return what is said of it: without a run, if no other command is given."""
    folder = tmp_path / "gpusvm-acme"
    shutil.copytree(acme, folder)
    path = folder / "src" / "gpusvm_acme" / file
    path.write_text(mended(folder, file, old, new))
    done = run(folder, "-c", f"from gpusvm.cli import run; raise SystemExit(run({list(command or CHECK)!r}))")
    assert (done.returncode, done.stderr) == (1, "")
    return done.stdout.replace(str(folder / "src"), "SRC").splitlines()


def test_a_method_of_cores_is_replaced_by_one_that_core_cannot_call(acme, tmp_path):
    lines = looked_at(acme, tmp_path, "driver.py", "def map(self, unit: RangeUnit)", "def map(self, unit, flags)")
    at = (acme / "src" / "gpusvm_acme" / "driver.py").read_text().partition("    def map(")[0].count("\n") + 1
    assert lines[0] == (
        f"acme: SRC/gpusvm_acme/driver.py:{at}: AcmeVm.map: expected map(unit), got map(unit, flags): missing a "
        "required argument: 'flags' (RangeVm of core)"
    )
    assert lines[2] == "    see docs/reference/driver-rules.md#signature"


def test_an_errno_is_a_negative_number(acme, tmp_path):
    first, *_ = looked_at(acme, tmp_path, "vram.py", "KernelError(EFAULT,", "KernelError(-14,")
    assert first.endswith("an errno is positive here: 14")


def test_a_statement_names_a_check_that_there_is_not(acme, tmp_path):
    first, *_ = looked_at(acme, tmp_path, "conformance.toml", "mprotect.read", "mprotekt.read")
    assert first == (
        "acme: gpusvm_acme/conformance.toml:2: no check is called 'invalidate.after-read.mprotekt.read'; did you mean "
        "'invalidate.after-read.mprotect.read'?"
    )


def test_an_invalidation_does_nothing(acme, tmp_path):
    new = "    def invalidate(self, gpusvm, notifier, mmu_range):\n        pass\n\n    def preferred_pagemap(self)"
    command = ("conform", "--driver", "acme", "--check", "invalidate.munmap.gone", "--jobs", "0")
    lines = looked_at(acme, tmp_path, "driver.py", "    def preferred_pagemap(self)", new, *command)
    at = (acme / "src" / "gpusvm_acme" / "driver.py").read_text().partition("    def preferred")[0].count("\n") + 1
    (said,) = (line for line in lines if line.startswith("fail "))
    first, _, rest = said.partition(", and ")
    assert re.fullmatch(
        r"fail invalidate\.munmap\.gone acme: invariant 54 \(mirror-free-page\): a device has a free page mapped "
        r"\[bench:0x100000000000, pfn 0x\w+, task 'main'\]",
        first,
    )
    assert re.sub(r"^\d+", "N", rest) == (
        f"N more in AcmeVm.invalidate at gpusvm_acme/driver.py:{at} rule zap: when an invalidation returns, the device "
        "maps nothing of what the CPU is about to change, and its TLB has none of it see "
        "docs/reference/driver-rules.md#zap (gpusvm/conformance/checks/test_access.py:67)"
    )


def test_what_a_driver_lacks_is_found_where_it_declares_it(acme, tmp_path):
    command = ("conform", "--driver", "acme", "--check", "capability.prefetch", "--jobs", "0")
    line = '        prefetch=no("a fault brings its range and nothing else"),\n'
    lines = looked_at(acme, tmp_path, "plugin.py", line, '        prefetch=yes("neighbours"),\n', *command)
    at = (acme / "src" / "gpusvm_acme" / "plugin.py").read_text().partition(line)[0].count("\n") + 1
    (said,) = (line for line in lines if line.startswith("fail "))
    assert said.startswith(
        "fail capability.prefetch acme: prefetch: it is not there, and declared as 'neighbours' at "
        f"gpusvm_acme/plugin.py:{at}; see docs/reference/driver-rules.md#capability ("
    )


def test_an_op_that_is_no_python_leads_to_a_look_without_a_run(acme, tmp_path):
    command = ("conform", "--driver", "acme", "--check", "access.read.cpu-wrote", "--jobs", "0")
    lines = looked_at(
        acme, tmp_path, "driver.py", "        self.pm = AcmePm(", "        self.pm == = AcmePm(", *command
    )
    at = (acme / "src" / "gpusvm_acme" / "driver.py").read_text().partition("self.pm = AcmePm(")[0].count("\n") + 1
    assert f"error access.read.cpu-wrote acme: SyntaxError: invalid syntax (gpusvm_acme/driver.py:{at})" in lines
    assert "    first  gpusvm drivers --check acme" in lines


def test_pages_are_not_named(told):
    message, _ = told("vram.py", "        return pfns\n", "        # no pfns\n")
    assert message.startswith("ModelError: populate_devmem_pfn returned None: expected the pfns of its pages\n  in ")
    assert message.endswith("\n  see docs/reference/driver-rules.md#pages-named")


def test_a_copy_is_not_done(told):
    line = "        copy_contents(self.memory, device_pfns, addrs.pfns, addrs.order, addrs.npages)\n"
    message, at = told("vram.py", line, "        # nothing arrives\n")
    assert re.match(
        r"ModelError: copy_to_devmem returned, and 512 of 512 pages have not arrived: device page 0x\w+ and page 0x\w+ "
        rf"differ\n  in AcmeVram.copy_to_devmem at gpusvm_acme/vram.py:{at - 2}\n  rule copy-done: ",
        message,
    )


def test_an_errno_is_returned(told):
    message, at = told(
        "vram.py",
        "        with self.driver.pm.populate():\n",
        "        if True:\n            return -16\n        with self.driver.pm.populate():\n",
    )
    assert message == (
        "ModelError: populate_mm returned -16, which nobody looks at"
        f"\n  in AcmeVram.populate_mm at gpusvm_acme/vram.py:{at - 1}"
        "\n  rule returned-value: an op fails by raising KernelError with a positive errno, and returns what the "
        "contract says and no -errno\n  see docs/reference/driver-rules.md#returned-value"
    )


def test_a_wrong_signature(told):
    message, at = told(
        "vram.py", "    def device_unmap(self, dpagemap, dev, addrs):\n", "    def device_unmap(self, addrs):\n"
    )
    assert message == (
        "ModelError: AcmeVram.device_unmap: expected device_unmap(dpagemap, dev, addrs), got device_unmap(addrs): "
        "too many positional arguments (PagemapOps of the contract)"
        f"\n  in AcmeVram.device_unmap at gpusvm_acme/vram.py:{at}"
        "\n  rule signature: core calls an op as the contract writes it, with every argument by place or by name as it "
        "is there\n  see docs/reference/driver-rules.md#signature"
    )


def test_the_page_table_is_written_without_a_look(told):
    message, _ = told(
        "driver.py",
        "    def preferred_pagemap(self)",
        "    def is_mapped(self, unit, access):\n"
        "        self.page_table.map_run(unit.start >> self.page_shift, 0, 1, READ)\n"
        "        return False\n\n    def preferred_pagemap(self)",
    )
    assert "without a look at the sequence under a lock that is still held\n  in AcmeVm.is_mapped at " in message
    assert message.endswith("\n  see docs/reference/driver-rules.md#pte-recheck")


def test_an_invalidation_allocates(told):
    message, at = told(
        "driver.py",
        "    def preferred_pagemap(self)",
        "    def zap(self, start, end):\n"
        "        self.kernel.might_alloc()\n"
        "        super().zap(start, end)\n\n    def preferred_pagemap(self)",
    )
    assert message.startswith("LockdepError: in an mmu notifier: task ")
    assert f"\n  in AcmeVm.zap at gpusvm_acme/driver.py:{at + 1}\n  rule notifier-alloc: " in message
