"""hmm-tests.c, as of Linux 7.3.4: a device reads memory that another thread unmaps meanwhile."""

from gpusvm.kernel import SeededChoices
from gpusvm_dmirror import HMM_DMIRROR_READ
from hmm_harness import NPAGES, PAGE, Hmm, same

SCHEDULES = 30
# Upstream sleeps up to 32 us. Here a step takes 1 us, and the whole read 200.
SLEEP_US = 256


def unmap_while_read(minor, choices):
    """Do one round under one order of the two threads; what the device's read returned."""
    hmm = Hmm(minor, mode="explored", choices=choices)
    buffer = hmm.buffer()
    values = hmm.fill(buffer.ptr, NPAGES)
    half = buffer.size // 2

    def unmap_buffer():
        hmm.kernel.sleep_ns(choices.pick(SLEEP_US, "sleep") * 1000)
        hmm.mm.munmap(buffer.ptr + half, half)

    thread = hmm.kernel.spawn(unmap_buffer, name="unmap_buffer")
    rc = hmm.cmd(hmm.fd, HMM_DMIRROR_READ, buffer, NPAGES)
    if rc == 0:
        assert (buffer.cpages, buffer.faults) == (NPAGES, 1)
        assert same(buffer.mirror, values)
    thread.join()
    # What is left is still there.
    assert same(hmm.read(buffer.ptr, half // PAGE), values[: half // PAGE])
    hmm.mm.munmap(buffer.ptr, half)
    hmm.teardown()
    return rc


def test_anon_teardown(hmm):
    # Upstream does ten rounds and takes the orders that come; here they are chosen.
    minor = hmm.module.devices.index(hmm.fd.device)
    answers = {unmap_while_read(minor, SeededChoices(seed)) for seed in range(SCHEDULES)}
    assert answers == {0, -14}
