"""hmm-tests.c, as of Linux 7.3.4: somebody takes pages that a device has, or makes them while it asks for them."""

from gpusvm.mm.api import FOLL_LONGTERM, FOLL_WRITE
from gpusvm.mm.userfaultfd import Userfaultfd
from gpusvm_dmirror import HMM_DMIRROR_READ_UNLOCKED, HMM_DMIRROR_SNAPSHOT, uapi
from hmm_harness import PAGE, same


def test_hmm_gup_test(hmm):
    # What lib/test_gup.c does for the four commands that the test gives it, one page each.
    buffer = hmm.buffer(4)
    values = hmm.fill(buffer.ptr, 4)
    assert hmm.migrate_to_dev(hmm.fd, buffer, 4) == 0
    assert buffer.cpages == 4
    assert same(buffer.mirror, values)
    memory, mm = hmm.memory, hmm.mm
    with mm.mmap_lock.read():
        pages = memory.get_user_pages(mm, buffer.ptr, 1, flags=FOLL_WRITE)
    memory.folios_put(pages)
    pages = memory.get_user_pages_fast(mm, buffer.ptr + PAGE, 1, flags=FOLL_WRITE)
    memory.folios_put(pages)
    pages = memory.pin_user_pages_fast(mm, buffer.ptr + 2 * PAGE, 1, flags=FOLL_WRITE | FOLL_LONGTERM)
    memory.unpin_user_pages(pages)
    with mm.mmap_lock.read():
        pages = memory.pin_user_pages(mm, buffer.ptr + 3 * PAGE, 1, flags=FOLL_WRITE | FOLL_LONGTERM)
    memory.unpin_user_pages(pages)
    assert hmm.cmd(hmm.fd, HMM_DMIRROR_SNAPSHOT, buffer, 4) == 0
    assert buffer.cpages == 4
    # Coherent pages have to leave the device only for those who keep them long.
    short = (uapi.PROT_DEV_COHERENT_LOCAL if hmm.coherent else 0) | uapi.PROT_WRITE
    assert buffer.m.tolist() == [short, short, uapi.PROT_WRITE, uapi.PROT_WRITE]
    assert same(hmm.read(buffer.ptr, 4), values)
    mm.munmap(buffer.ptr, buffer.size)


def test_userfaultfd_read(hmm):
    buffer = hmm.buffer(4)
    uffd = Userfaultfd(hmm.memory, hmm.mm)
    uffd.register(buffer.ptr, buffer.size)
    ab = hmm.new_data(1)  # a page full of 0xAB
    asked = []

    def handler():
        while (msg := uffd.read()) is not None:
            asked.append((msg.address - buffer.ptr) // PAGE)
            uffd.copy(msg.address, ab)

    thread = hmm.kernel.spawn(handler, name="uffd_handler_thread")
    assert hmm.cmd(hmm.fd, HMM_DMIRROR_READ_UNLOCKED, buffer, 4) == 0
    assert buffer.cpages == 4
    assert buffer.mirror.tolist() == [ab[0]] * 4
    assert asked == [0, 1, 2, 3]
    uffd.close()
    thread.join()
    hmm.mm.munmap(buffer.ptr, buffer.size)
