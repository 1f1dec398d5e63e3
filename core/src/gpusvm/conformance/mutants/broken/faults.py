"""Mistakes with faults: whose they are, how many answers they get and which, and what is done for them."""

import errno
from typing import Any, Final

from gpusvm.conformance.mutants.broken.driver import BrokenDriver
from gpusvm.conformance.mutants.mutant import Swap, gone, instead
from gpusvm.driver import ACCESS_ATOMIC, ACCESS_PREFETCH
from gpusvm.errors import KernelError
from gpusvm.gpu import READ, REMOTE, WRITE
from gpusvm.mm.api import HMM_PFN_REQ_FAULT

__all__ = ["FAULTS"]

_RESPOND: Final = "gpusvm_nouveau.faults:NouveauPipeline.respond"


def _first_there_is(guard: Any) -> Any:
    def find(device: Any, faults: Any) -> Any:
        found = guard(device, faults)
        first = next(iter(device.svmms.values()), None)
        return dict.fromkeys(found, first)

    return find


def _twice(guard: Any) -> Any:
    def respond(pipeline: Any, job: Any, answer: int) -> None:
        guard(pipeline, job, answer)
        job.fault.complete(answer)

    return respond


def _as_the_first(_pipeline: Any, _job: Any, _answer: int, _other: Any) -> bool:
    return True


def _one_for_each_address(guard: Any) -> Any:
    def take(pipeline: Any, buffer: Any) -> Any:
        return list({(fault.inst, fault.addr): fault for fault in guard(pipeline, buffer)}.values())

    return take


def _all_taken(guard: Any) -> Any:
    def submit(faults: Any, some: Any) -> int:
        guard(faults, some)
        return len(some)

    return submit


def _not_accounted(pipeline: Any, job: Any, answer: int) -> None:
    pipeline.respond(job, answer)


def _forgets_the_wait(guard: Any) -> Any:
    # The clock of a fault's stages started when it is served, and not when it was raised.
    def serve(pipeline: Any, job: Any) -> int:
        job._mark_ns = pipeline.kernel.current.time_ns
        return int(guard(pipeline, job))

    return serve


def _mapped_is_an_error(guard: Any) -> Any:
    def lookup(pipeline: Any, job: Any) -> bool:
        if job.vm.is_mapped(job.fault):
            raise KernelError(errno.EEXIST, f"{job.fault.addr:#x} is mapped")
        return bool(guard(pipeline, job))

    return lookup


def _prefetch_needs_no_answer(guard: Any) -> Any:
    def respond(pipeline: Any, job: Any, answer: int) -> None:
        if job.fault.access != ACCESS_PREFETCH:
            guard(pipeline, job, answer)

    return respond


def _scratch_page(guard: Any) -> Any:
    def respond(pipeline: Any, job: Any, answer: int) -> None:
        svmm = job.vm
        if answer and svmm is not None and not svmm.closed:
            with svmm.mutex:
                svmm.vmm.map_leaf(job.fault.addr >> 12, pipeline.memory.zero_pfn, 1, READ | REMOTE)
            answer = 0
        guard(pipeline, job, answer)

    return respond


def _busy_is_an_answer(guard: Any) -> Any:
    def serve(pipeline: Any, job: Any) -> int:
        from gpusvm.driver import Restart

        bind = pipeline.bind

        def once(job: Any) -> bool:
            try:
                return bool(bind(job))
            except Restart:
                raise KernelError(errno.EBUSY, "invalidated meanwhile") from None

        pipeline.bind = once
        try:
            return int(guard(pipeline, job))
        finally:
            del pipeline.bind

    return serve


def _reads_only(_guard: Any) -> Any:
    return (HMM_PFN_REQ_FAULT, HMM_PFN_REQ_FAULT, 0, 0)


def _looks_only(_guard: Any) -> Any:
    return (0, 0, 0, 0)


def _atomics_are_writes(guard: Any) -> Any:
    def begin(pipeline: Any, job: Any) -> bool:
        done = bool(guard(pipeline, job))
        pipeline._atomic = False
        job.scratch.atomic = False
        return done

    return begin


def _read_only(guard: Any) -> Any:
    def map_leaf(vmm: Any, vpn: int, pfn: int, pages: int, perm: int) -> None:
        guard(vmm, vpn, pfn, pages, perm & ~WRITE)

    return map_leaf


def _bound_without_entries(_pipeline: Any, _job: Any) -> bool:
    return True


def _no_atomics(guard: Any) -> Any:
    def begin(pipeline: Any, job: Any) -> bool:
        done = bool(guard(pipeline, job))
        if job.fault.access == ACCESS_ATOMIC:
            raise KernelError(errno.EOPNOTSUPP, "no atomics")
        return done

    return begin


def _leaves_on_faults(guard: Any) -> Any:
    # The mirror is looked up by the address of the first fault of all.
    def find(device: Any, faults: Any) -> Any:
        found = guard(device, faults)
        for fault in faults[1:]:
            fault.addr = faults[0].addr & -(1 << 16) | fault.addr & 0xFFFF
        return found

    return find


FAULTS: Final = (
    BrokenDriver(
        id="first-address-space",
        rule="it serves every fault in the first address space of the device",
        driver="nouveau",
        swaps=(Swap("gpusvm_nouveau.device:NouveauDevice.find", _first_there_is),),
    ),
    BrokenDriver(
        id="finds-the-closed",
        rule="it leaves an address space that is closed where faults find it",
        driver="nouveau",
        swaps=(Swap("gpusvm_nouveau.device:NouveauDevice.part", gone),),
    ),
    BrokenDriver(
        id="answers-twice", rule="it answers each fault twice", driver="nouveau", swaps=(Swap(_RESPOND, _twice),)
    ),
    BrokenDriver(
        id="answers-as-the-first",
        rule="it gives all faults of a batch the answer of the first",
        driver="nouveau",
        swaps=(Swap("gpusvm_nouveau.faults:NouveauPipeline.covers", instead(_as_the_first)),),
    ),
    BrokenDriver(
        id="drops-duplicates",
        rule="it answers one fault of those on one address",
        driver="nouveau",
        swaps=(Swap("gpusvm_nouveau.faults:NouveauPipeline.take", _one_for_each_address),),
    ),
    BrokenDriver(
        id="wrong-block",
        rule="it serves the faults of a batch in the block of the first",
        driver="nouveau",
        swaps=(Swap("gpusvm_nouveau.device:NouveauDevice.find", _leaves_on_faults),),
    ),
    BrokenDriver(
        id="loses-overflow",
        rule="it takes more faults than fit, and loses them",
        driver="nouveau",
        swaps=(Swap("gpusvm.driver.source:QueueFaults.submit", _all_taken),),
    ),
    BrokenDriver(
        id="no-accounts",
        rule="it answers faults past the accounts",
        driver="svmdev",
        swaps=(Swap("gpusvm.driver.pipeline:FaultPipeline.acknowledge", instead(_not_accounted)),),
    ),
    BrokenDriver(
        id="accounts-no-queue",
        rule="it does not count the time that faults wait",
        driver="nouveau",
        swaps=(Swap("gpusvm.driver.pipeline:FaultPipeline.serve", _forgets_the_wait),),
    ),
    BrokenDriver(
        id="refuses-what-is-mapped",
        rule="it refuses a fault on what is mapped",
        driver="svmdev",
        swaps=(Swap("gpusvm_svmdev.faults:SvmdevFaults.lookup", _mapped_is_an_error),),
    ),
    BrokenDriver(
        id="prefetch-unanswered",
        rule="it does not answer prefetches",
        driver="nouveau",
        swaps=(Swap(_RESPOND, _prefetch_needs_no_answer),),
    ),
    BrokenDriver(
        id="scratch-page",
        rule="it maps a page of zeros where an access is refused, and lets it go on",
        driver="nouveau",
        swaps=(Swap(_RESPOND, _scratch_page),),
    ),
    BrokenDriver(
        id="busy-is-an-answer",
        rule="it refuses a fault whose memory changed meanwhile with EBUSY",
        driver="nouveau",
        swaps=(Swap("gpusvm.driver.pipeline:FaultPipeline.serve", _busy_is_an_answer),),
    ),
    BrokenDriver(
        id="asks-for-reading",
        rule="it has pages made present for reading, whatever the access",
        driver="nouveau",
        swaps=(Swap("gpusvm_nouveau.faults:_REQUEST", _reads_only),),
    ),
    BrokenDriver(
        id="asks-for-nothing",
        rule="it looks at the CPU's page table, and has nothing made present",
        driver="nouveau",
        swaps=(Swap("gpusvm_nouveau.faults:_REQUEST", _looks_only),),
    ),
    BrokenDriver(
        id="atomics-are-writes",
        rule="it serves an atomic as a write",
        driver="nouveau",
        swaps=(Swap("gpusvm_nouveau.faults:NouveauPipeline.begin", _atomics_are_writes),),
    ),
    BrokenDriver(
        id="no-atomics",
        rule="it declares atomics, and refuses them",
        driver="nouveau",
        swaps=(Swap("gpusvm_nouveau.faults:NouveauPipeline.begin", _no_atomics),),
    ),
    BrokenDriver(
        id="maps-read-only",
        rule="it maps everything for reading only",
        driver="nouveau",
        swaps=(Swap("gpusvm_nouveau.vmm:Vmm.map_leaf", _read_only),),
    ),
    BrokenDriver(
        id="binds-nothing",
        rule="it acknowledges faults for which it has written no entry",
        driver="nouveau",
        swaps=(Swap("gpusvm_nouveau.faults:NouveauPipeline.bind", instead(_bound_without_entries)),),
    ),
)
"""Drivers that do not serve faults as they have to."""
