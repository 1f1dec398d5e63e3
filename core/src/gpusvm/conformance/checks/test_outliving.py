"""Pages on a device that outlive who brought them there: the file, the driver on the device, the module.

Every machine is one in explored order, where what was freed is not used again.
"""

from contextlib import suppress
from errno import EAGAIN, EBUSY

from gpusvm.conformance.scene import PAGE, close, on_device, written
from gpusvm.conformance.suite import Lab, check
from gpusvm.drm import PagemapDevOps
from gpusvm.errors import KernelError

_PAGES = 16
_EXPLORED = {"mode": "explored", "thp": "never"}


@check(
    "outliving.file.page-comes-home",
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate",),
    ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_zdd_alloc",
)
def test_file(lab: Lab) -> None:
    """What is on the device when its file is closed comes home when a CPU touches it, or has come by then."""
    bench, addr = on_device(lab, _PAGES, **_EXPLORED)
    close(bench)
    bench.cpu_read(addr, _PAGES)
    bench.kernel.settle()


@check(
    "outliving.module.page-comes-home",
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate",),
    ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_init",
)
def test_module(lab: Lab) -> None:
    """A drm_pagemap with pages keeps the module; of other pagemaps what a module has comes home before it goes."""
    bench, addr = on_device(lab, _PAGES, **_EXPLORED)
    close(bench)
    by_drm = any(isinstance(pgmap.ops, PagemapDevOps) for pgmap in bench.driver.dev_pagemaps())
    held = by_drm and bench.device_pages(addr, _PAGES) > 0
    error = 0
    try:
        bench.machine.unload(lab.info.name)
    except KernelError as refused:
        error = refused.errno
    assert not held or error in {EAGAIN, EBUSY}, "the module is unloaded though a drm_pagemap of it has pages"
    bench.cpu_read(addr, _PAGES)
    bench.kernel.settle()


@check(
    "outliving.driver.page-comes-home",
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate",),
    ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_release",
)
def test_driver(lab: Lab) -> None:
    """What is on a device that loses its driver comes home with its contents, though another device had it mapped."""
    bench = lab.bench(hardware="dual-p2p", **_EXPLORED)
    addr = written(bench, _PAGES)
    bench.vms[1].populate(addr, addr + _PAGES * PAGE)
    bench.gpu_read(addr, _PAGES)
    bench.machine.close(bench.process, 1)
    bench.kernel.settle()
    with suppress(KernelError):
        bench.machine.remove(1)
    bench.cpu_read(addr, _PAGES)
    bench.machine.close(bench.process, 0)
    bench.kernel.settle()
