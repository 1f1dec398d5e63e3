"""No sequence of operations may lose, move or invent what was written (invariant 23)."""

import pytest
from gpusvm.errors import CpuSignal
from gpusvm.kernel import SeededChoices
from gpusvm.mm.api import (
    MIGRATE_VMA_SELECT_COMPOUND,
    MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
    MIGRATE_VMA_SELECT_SYSTEM,
    PROT_READ,
    PROT_WRITE,
)
from gpusvm.mm.quirks import MmQuirks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

RW = PROT_READ | PROT_WRITE


class SecondModel:
    """What a process believes about its memory: per page the protection, and the token that it wrote last."""

    def __init__(self, pages: int) -> None:
        self.prot = dict.fromkeys(range(pages), RW)
        self.token = dict.fromkeys(range(pages), 0)

    def vma_of(self, page: int) -> tuple[int, int]:
        """The widest range around a page that has one protection: no less than the kernel's VMA."""
        start = end = page
        while self.prot.get(start - 1) == self.prot[page]:
            start -= 1
        while self.prot.get(end) == self.prot[page]:
            end += 1
        return start, end


def pages_strategy(pages):
    return st.tuples(st.integers(0, pages - 1), st.integers(1, pages)).map(lambda t: (t[0], min(t[0] + t[1], pages)))


def operations(pages):
    span = pages_strategy(pages)
    page = st.integers(0, pages - 1)
    one = st.one_of(
        st.tuples(st.just("write"), page),
        st.tuples(st.just("read"), page),
        st.tuples(st.just("to_device"), span, st.booleans(), st.booleans(), st.booleans()),
        st.tuples(st.just("to_ram"), span, st.booleans()),
        st.tuples(st.just("evict"), st.integers(0, 7), st.integers(1, 8)),
        st.tuples(st.just("munmap"), span),
        st.tuples(st.just("mmap"), span),
        st.tuples(st.just("mprotect"), span, st.sampled_from([0, PROT_READ, RW])),
        st.tuples(st.just("fail_copy"), st.just(0)),
        st.tuples(st.just("home_small"), st.booleans()),
        st.tuples(st.just("window"), st.sampled_from([0, 1, 2, 4])),
    )
    return st.one_of(st.lists(one, max_size=20), st.lists(one, min_size=12, max_size=40))  # Hypothesis likes short ones


def run(make, ops, *, pages, **options):
    lab = make(**options)
    lab.watch()
    lab.map(pages, write=False)
    mm, device = lab.mm, lab.device
    model = SecondModel(pages)
    for op in ops:
        kind = op[0]
        if kind in {"read", "write"}:
            page = op[1]
            prot = model.prot.get(page, 0)
            if not prot & (PROT_WRITE if kind == "write" else PROT_READ):
                with pytest.raises(CpuSignal):
                    (lab.write if kind == "write" else lab.read)(page)
                continue
            try:
                if kind == "read":
                    assert lab.read(page) == [model.token[page]]
                else:
                    model.token[page] = lab.write(page)[0]
            except CpuSignal:
                assert device.fail_copies == 0  # SIGBUS: the copy failed, as asked
        elif kind == "to_device":
            (start, end), compound, small, system = op[1], op[2], op[3], op[4]
            if start in model.prot:
                flags = MIGRATE_VMA_SELECT_COMPOUND * compound
                flags |= MIGRATE_VMA_SELECT_SYSTEM if system else MIGRATE_VMA_SELECT_DEVICE_PRIVATE
                vma = mm.vma_lookup(lab.va(start))
                device.migrate(mm, lab.va(start), min(lab.va(end), vma.end), flags=flags, small=small)
        elif kind == "to_ram":
            (start, end), compound = op[1], op[2]
            if start in model.prot:
                flags = MIGRATE_VMA_SELECT_DEVICE_PRIVATE | MIGRATE_VMA_SELECT_COMPOUND * compound
                with mm.mmap_lock.read():
                    vma = mm.vma_lookup(lab.va(start))
                    device.bring_home(mm, lab.va(start), min(lab.va(end), vma.end), flags=flags)
        elif kind == "evict":
            heads = sorted(device.live)[op[1] : op[1] + op[2]]
            device.compound_home = True  # without a VMA nothing is split
            words = []
            for head in heads:
                words += list(range(head, head + (1 << device.live[head])))
            if words:
                device.evict(words)
        elif kind == "munmap":
            start, end = op[1]
            mm.munmap(lab.va(start), (end - start) * 4096)
            for page in range(start, end):
                model.prot.pop(page, None)
                model.token[page] = 0
        elif kind == "mmap":
            start, end = op[1]
            mm.mmap(lab.va(start), (end - start) * 4096, RW)
            for page in range(start, end):
                model.prot[page] = RW
                model.token[page] = 0
        elif kind == "mprotect":
            start, end = op[1]
            if all(page in model.prot for page in range(start, end)):
                mm.mprotect(lab.va(start), (end - start) * 4096, op[2])
                for page in range(start, end):
                    model.prot[page] = op[2]
        elif kind == "fail_copy":
            device.fail_copies = 1
        elif kind == "home_small":
            device.compound_home = not op[1]
        elif kind == "window":
            device.window = op[1] * 4096
        lab.check_quiescent()
    device.fail_copies = 0
    for page, prot in model.prot.items():
        if prot:
            assert lab.read(page) == [model.token[page]]
    lab.check_quiescent()
    assert lab.memory.contents.mismatch_count == 0
    lab.finish()


# A fault on a tail of a large folio that cannot be copied leaves its head locked for ever (MM-S3): the kernel's defect,
# tested in test_mm_migrate_split.py.
FIXED = MmQuirks(mm_s3="fixed")
RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(RELAXED, max_examples=400)
@given(ops=operations(20), thp=st.sampled_from(["always", "never"]), pmd_order=st.sampled_from([2, 3]))
def test_random_operations_conserve_data(lab, ops, thp, pmd_order):
    run(lab, ops, pages=20, pmd_order=pmd_order, thp=thp, quirks=FIXED)


@settings(RELAXED, max_examples=200)
@given(ops=operations(12), thp=st.sampled_from(["always", "never"]), seed=st.integers(0, 1 << 20))
def test_random_operations_conserve_data_page_by_page(lab, ops, thp, seed):
    run(lab, ops, pages=12, pmd_order=2, thp=thp, mode="explored", choices=SeededChoices(seed), quirks=FIXED)


@settings(RELAXED, max_examples=25)
@given(ops=operations(1200), thp=st.sampled_from(["always", "never"]))
def test_random_operations_conserve_data_at_the_real_sizes(lab, ops, thp):
    run(lab, ops, pages=1200, pmd_order=9, thp=thp, quirks=FIXED)
