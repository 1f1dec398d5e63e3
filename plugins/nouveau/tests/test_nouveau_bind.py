"""What SVM_BIND is asked for, and what it answers."""

import errno

import pytest
from attrs import evolve
from gpusvm.errors import KernelError
from gpusvm_nouveau.bind import NOUVEAU_SVM_BIND_TARGET__GPU_VRAM, SvmBind

PAGE = 4096
MIGRATE = NOUVEAU_SVM_BIND_TARGET__GPU_VRAM << 16


def moved(b, **change):
    """Write 8 pages and ask for the second to the fourth of them to be migrated, but for a change; which moved."""
    addr = b.map(8 * PAGE)
    b.cpu_write(addr, 8)
    args = SvmBind(va_start=addr + PAGE, va_end=addr + 4 * PAGE)
    assert args.header == MIGRATE
    shifted = {name: addr + value if name.startswith("va") else value for name, value in change.items()}
    assert b.vm.bind(evolve(args, **shifted)) == 0
    return [i for i in range(8) if b.where(addr + i * PAGE) == "device"]


def test_it_answers_0_whatever_moved(bench):
    b = bench(thp="never")
    assert moved(b) == [1, 2, 3]
    assert b.vm.bind(SvmBind(va_start=0, va_end=PAGE)) == 0
    assert moved(bench(thp="never", vram_bytes=64 << 20)) == []


def test_addresses_are_widened_to_whole_pages(bench):
    assert moved(bench(thp="never"), va_start=PAGE + 1, va_end=3 * PAGE + 1) == [1, 2, 3]


def test_the_priority_is_not_looked_at(bench):
    assert moved(bench(thp="never"), header=MIGRATE | 255 << 8) == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"reserved0": 1}, "a reserved field is not 0"),
        ({"reserved1": 1}, "a reserved field is not 0"),
        ({"header": MIGRATE | 1 << 48}, "header 0x1800000000000 has bits behind its last field"),
        ({"header": MIGRATE | 1}, "command 1 is not to migrate"),
        ({"header": 1 << 16}, "target 0x1 is not the VRAM"),
        ({"stride": PAGE}, "a stride of 4096 is not supported"),
    ],
)
def test_any_other_request_is_einval(bench, change, why):
    with pytest.raises(KernelError) as raised:
        moved(bench(), **change)
    assert str(raised.value) == f"-EINVAL: SVM_BIND: {why}"
    assert raised.value.errno == errno.EINVAL


def test_no_pages_are_einval(bench):
    b = bench()
    with pytest.raises(KernelError) as raised:
        b.vm.populate(PAGE, PAGE)
    assert str(raised.value) == "-EINVAL: SVM_BIND: 0x1000-0x1000 has no pages"


def test_a_file_that_is_closed_is_einval(bench):
    b = bench()
    b.vm.close()
    with pytest.raises(KernelError) as raised:
        b.vm.bind(SvmBind(va_start=0, va_end=PAGE))
    assert raised.value.errno == errno.EINVAL
