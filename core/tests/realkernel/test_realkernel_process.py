"""What a process does by itself, operation by operation, in the words of recordings."""

import pytest
from gpusvm.driver.operations import PROCESS_OPERATIONS, PageWords
from gpusvm.errors import InputError, KernelError
from gpusvm.kernel import Kernel
from gpusvm.mm import MemoryManager
from gpusvm.realkernel.operations import read_operation
from gpusvm.realkernel.process import ProcessOperations

EFAULT, ENOMEM = 14, 12


class Process:
    def __init__(self, mode="timed"):
        self.memory = MemoryManager(Kernel(mode=mode), ram_pages=1 << 14, thp="madvise")
        self.words = PageWords(self.memory)
        self.operations = ProcessOperations(self.memory, self.memory.mm_alloc("p"), self.words)

    def __call__(self, text):
        operation = read_operation(text, PROCESS_OPERATIONS, devices=1)
        try:
            return str(self.operations.execute(operation.name, operation.numbers))
        except KernelError as error:
            return f"-1 {error.errno}"

    def child(self):
        """Keep a child that is asked in the same way."""
        child = Process.__new__(Process)
        child.operations = ProcessOperations(self.memory, self.operations.mm.fork(), self.words)
        return child


@pytest.fixture
def do():
    process = Process()
    yield process
    process.operations.mm.exit()
    process.memory.kernel.ledger.assert_empty()


def test_the_cpu_reads_what_it_wrote(do):
    assert do("mmap 0 0 4 3 0") == "0 0 0 0"
    assert do("w 0 1 2 254") == "0 0 2 0"
    assert do("r 0 0 4") == "0 0 4 0 0,fe,ff,0"
    assert do("w 0 2 1 4294967296") == "0 0 1 0"  # a word has 32 bits
    assert do("r 0 2 1") == "0 0 1 0 0"


@pytest.mark.parametrize("mode", ["timed", "explored"])
def test_accesses_of_an_explored_process_answer_alike(mode):
    do = Process(mode)
    assert do("mmap 0 0 3 3 0") == "0 0 0 0"
    assert do("w 0 1 2 254") == "0 0 2 0"
    assert do("r 0 0 3") == "0 0 3 0 0,fe,ff"
    assert do("w 0 2 2 7") == "-2 11 1 0"
    assert do("r 0 2 2") == "-2 11 1 0 7"
    do.operations.mm.exit()
    do.memory.kernel.ledger.assert_empty()
    do.memory.kernel.close()


def test_an_access_stops_at_a_signal(do):
    do("mmap 0 0 4 3 0")
    do("w 0 0 4 1")
    do("mprot 0 2 1 1")
    assert do("w 0 0 4 9") == "-2 11 2 0"
    assert do("r 0 0 6") == "-2 11 4 0 9,a,3,4"
    assert do("munmap 0 0 1") == "0 0 0 0"
    assert do("r 0 0 2") == "-2 11 0 0 "


def test_files_are_mapped_written_and_cut(do):
    assert do("ft 0 4") == "0 0 0 0"
    assert do("pw 0 3 3 40") == "0 0 3 0"
    assert do("pr 0 2 9") == "0 0 4 0 0,28,29,2a"
    assert do("mapf 0 0 4 3 1 0 2") == "0 0 0 0"
    assert do("r 0 0 4") == "0 0 4 0 0,28,29,2a"
    assert do("w 0 1 1 9") == "0 0 1 0"
    assert do("mapf 1 0 4 3 0 0 2") == "0 0 0 0"
    assert do("w 1 2 1 7") == "0 0 1 0"
    assert do("pr 0 3 2") == "0 0 2 0 9,29"
    assert do("ft 0 4") == "0 0 0 0"
    assert do("r 1 0 4") == "-2 7 2 0 0,9"
    assert do("pr 1 0 4") == "0 0 0 0 "
    do.operations.close_files()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ft 2 4", "file of 'ft 2 4': expected 0 (a tmpfs object) or 1 (a ramfs file), got 2"),
        ("pr 0 0 4097", "pages of 'pr 0 0 4097': expected 0 to 4096 pages, got 4097"),
    ],
)
def test_what_a_file_cannot_be_is_refused(text, message):
    with pytest.raises(InputError) as refused:
        read_operation(text, PROCESS_OPERATIONS, devices=1)
    assert str(refused.value) == message


def test_slots_lie_16_mib_apart(do):
    do("mmap 0 4095 1 3 0")
    do("mmap 1 0 1 3 0")
    do("w 0 4095 1 5")
    assert do.operations.mm.vmas[0].end == do.operations.mm.vmas[0].start + 2 * 4096  # adjacent: they merged
    assert do("r 1 0 1") == "0 0 1 0 0"


def test_mremap_moves_to_the_other_place(do):
    do("mmap 0 0 4 3 0")
    do("w 0 0 4 1")
    assert do("mremap 0 1 2 2 1") == "0 0 0 0"
    assert do("r 2 1 2") == "0 0 2 0 2,3"
    assert do("r 0 1 1") == "-2 11 0 0 "
    assert do("mremap 0 1 2 2 1") == f"-1 {EFAULT}"


def test_madvise_and_mprotect_over_gaps(do):
    do("mmap 0 0 2 3 0")
    do("mmap 0 3 1 3 0")
    do("w 0 0 2 1")
    do("w 0 3 1 7")
    assert do("madv 0 0 4 4") == f"-1 {ENOMEM}"
    assert do("r 0 3 1") == "0 0 1 0 0"  # what is behind the gap was discarded as well
    assert do("mprot 0 0 4 1") == f"-1 {ENOMEM}"
    assert do("w 0 0 1 1") == "-2 11 0 0"
    assert do("w 0 3 1 1") == "0 0 1 0"


def test_a_child_sees_what_the_parent_has_and_keeps_what_it_writes(do):
    do("mmap 0 0 2 3 0")
    do("mmap 1 0 2 3 1")
    do("w 0 0 2 16")
    assert do("fr 0 0 2") == "0 0 2 0 10,11"
    assert do("fw 0 0 2 32") == "0 0 2 0"
    assert do("r 0 0 2") == "0 0 2 0 10,11"
    assert do("fw 1 0 2 32") == "0 0 2 0"
    assert do("r 1 0 2") == "0 0 2 0 20,21"  # shared memory stays written


def test_a_child_that_a_signal_stops_reports_no_data(do):
    do("mmap 0 0 2 3 0")
    assert do("fr 0 0 3") == "-2 11 2 0"
    assert do("fw 0 1 2 1") == "-2 11 1 0"


def test_where_pages_are(do):
    do("mmap 0 0 4 3 0")
    do("r 0 0 1")
    do("w 0 1 1 1")
    do("mprot 0 1 1 0")
    assert do("pm 0 0 5") == "0 0 5 0 PXnnn"


def test_where_the_pages_of_huge_folios_are(do):
    do("mmap 0 0 1024 3 0")
    do("madv 0 0 1024 14")
    do("r 0 3 1")  # the huge zero page
    do("w 0 600 1 1")
    assert do("pm 0 511 2") == "0 0 2 0 PX"
    do("mprot 0 700 1 1")  # mapped by PTEs from now on
    assert do("pm 0 699 3") == "0 0 3 0 XXX"


def test_a_page_that_a_child_maps_too_is_not_exclusive(do):
    do("mmap 0 0 1024 3 0")
    do("madv 0 0 1024 14")
    do("w 0 0 1 1")
    do("w 0 512 1 1")
    do("mprot 0 600 1 1")
    child = do.child()
    assert do("pm 0 0 1") == child("pm 0 0 1") == "0 0 1 0 P"
    assert do("pm 0 598 1") == "0 0 1 0 P"
    assert child("w 0 598 2 5") == "0 0 2 0"
    assert (do("pm 0 597 4"), child("pm 0 597 4")) == ("0 0 4 0 PXXP", "0 0 4 0 PXXP")
    child.operations.mm.exit()
    assert do("pm 0 597 4") == "0 0 4 0 XXXX"


def test_a_child_that_stays_has_its_own_copy(do):
    do("mmap 0 0 4 3 0")
    do("w 0 0 2 10")
    assert do("kf") == "0 0 0 0"
    assert do("kp 0 0 3") == "0 0 3 0 PPn"
    assert do("kw 0 0 1 20") == "0 0 1 0"
    assert do("w 0 1 1 30") == "0 0 1 0"
    assert do("kr 0 0 2") == "0 0 2 0 14,b"
    assert do("r 0 0 2") == "0 0 2 0 a,1e"
    assert do("kr 0 3 2") == "-2 11 1 0 0"
    assert do("ke") == "0 0 0 0"


def test_a_child_ends_with_the_next(do):
    do("mmap 0 0 1 3 0")
    do("w 0 0 1 10")
    do("kf")
    do("kw 0 0 1 20")
    do("kf")
    assert do("kr 0 0 1") == "0 0 1 0 a"
    do("ke")
    for operation in ("kr 0 0 1", "kw 0 0 1 5", "kp 0 0 1"):
        assert do(operation) == "-9 0 0 0 nochild"
    assert do("ke") == "0 0 0 0"


def test_nothing_warns(do):
    assert do("warn") == "0 0 0 0"
