"""S32 to S37: runtime PM, sleep and the device's end while its pages are in use."""

from gpusvm.conformance.probes.probe import Lab, applies, probe
from gpusvm.conformance.scene import (
    PMD,
    PMD_PAGES,
    able_to_sleep,
    answer,
    close,
    falls_asleep,
    on_device,
    populated,
    rpm,
    written,
)

_A_SECOND_NS = 1_000_000_000


@probe(
    "S32",
    "references on the device for three resident allocations, and for an address space",
    reference="xe_drm_pagemap_populate_mm and xe_vm_create: xe_pm_runtime_get_noresume; nouveau_drm_ioctl",
    capability="runtime_pm",
    shows=applies,
)
def _references(lab: Lab) -> str:
    bench = able_to_sleep(lab)
    blocks = [written(bench) for _ in range(3)]
    empty = rpm(bench).usage_count
    for addr in blocks:
        bench.vm.populate(addr, addr + PMD)
    bench.kernel.settle()
    full = rpm(bench).usage_count
    close(bench)
    return f"{full - empty} and {full - rpm(bench).usage_count}"


@probe(
    "S33",
    "a device that nobody uses while it holds pages, its file open",
    reference="xe_drm_pagemap_populate_mm: a reference for each object; nouveau_pmops_runtime_suspend",
    capability="runtime_pm",
    shows=applies,
)
def _pages_resident(lab: Lab) -> str:
    bench = able_to_sleep(lab)
    populated(bench)
    return "falls asleep" if falls_asleep(bench) else "stays awake"


@probe(
    "S34",
    "a device that holds pages of a process that has closed it",
    reference="xe_svm_devmem_release: xe_pm_runtime_put",
    capability="runtime_pm",
    shows=applies,
)
def _pages_left(lab: Lab) -> str:
    bench = able_to_sleep(lab)
    addr = populated(bench)
    close(bench)
    if falls_asleep(bench):
        return "falls asleep"
    bench.mm.munmap(addr, PMD)
    bench.kernel.settle()
    return "stays awake until they are freed" if falls_asleep(bench) else "stays awake"


@probe(
    "S35",
    "whom a CPU fault on a device page wakes",
    reference="drm_pagemap_migrate_to_ram; nouveau_dmem_migrate_to_ram",
    capability="runtime_pm",
    shows=applies,
)
def _whom_a_fault_wakes(lab: Lab) -> str:
    bench = able_to_sleep(lab)
    addr = populated(bench)
    close(bench)
    asleep = falls_asleep(bench)
    before = rpm(bench).resumes
    bench.cpu_read(addr)
    if rpm(bench).resumes > before:
        return "the device"
    return "nobody, and the device sleeps" if asleep else "nobody, as it is awake"


@probe(
    "S36",
    "where pages are after the system slept",
    reference="xe_pm_notifier_callback, xe_pm_suspend: xe_bo_evict_all_user; nouveau_do_suspend",
    capability="runtime_pm",
    shows=applies,
)
def _asleep(lab: Lab) -> str:
    bench = able_to_sleep(lab)
    addr = populated(bench)
    bench.machine.sleep(1_000)
    in_ram = bench.where(addr) == "system"
    bench.cpu_read(addr, PMD_PAGES)
    return "in RAM, and mapped there" if in_ram else "still the device's for the process, which finds them"


@probe(
    "S37",
    "a device that goes away while it holds pages",
    reference="xe_device_remove: xe_bo_pci_dev_remove_all; nouveau_dmem_fini; dmirror_device_remove",
    capability="unplug",
    shows=lambda seen: not seen.startswith("only") if applies(seen) else None,
)
def _goes_away(lab: Lab) -> str:
    bench, addr = on_device(lab)
    other = written(bench)
    unplug = getattr(bench.driver, "unplug", None)
    if unplug is not None:
        unplug()
        told = f"new populates get {answer(lambda: bench.vm.populate(other, other + PMD))}"
    else:
        close(bench)
        removal = bench.kernel.spawn(bench.driver.shutdown, name="removal")
        bench.kernel.sleep_ns(_A_SECOND_NS)
        bench.machine.drivers.clear()
        told = "only once it is closed"
        if not removal.done:
            bench.mm.munmap(addr, PMD)
            removal.join()
            return f"{told}; it waits for its pages until the process lets go of them"
    return f"{told}; its pages {'come home' if bench.where(addr) == 'system' else 'stay'}"
