"""Who gets on when all want the same memory: no livelock, no access that never ends, and nothing lost on the way.

Each program runs in a few random orders of its tasks, with every invariant watched; an access that faults for ever, and
tasks that keep each other from getting on, are failures (IGT's race sections, fault-threads-same-page, MM-01, MM-02).
"""

from collections.abc import Mapping, Sequence
from typing import Final

from gpusvm.conformance.family import every, family
from gpusvm.conformance.story import told
from gpusvm.conformance.suite import Lab, check

_REF: Final = "IGT tests/intel/xe_exec_system_allocator.c: race, threads, same-page; mm/memory.c:do_swap_page"
_SETUP: Final = ("map 0 8", "cpu_write 0 8")

Program = Mapping[str, Sequence[str]]

CONTESTS: Final[Mapping[str, Program]] = {
    "ping-pong-read": {"gpu": ["gpu_read 0 1"] * 4, "cpu": ["cpu_write 0 1"] * 4},
    "ping-pong-write": {"gpu": ["gpu_write 0 1"] * 4, "cpu": ["cpu_write 0 1"] * 4},
    "ping-pong-block": {"gpu": ["gpu_write 0 4"] * 2, "cpu": ["cpu_write 0 4"] * 2},
    "two-gpu-tasks": {"one": ["gpu_write 0 4"], "two": ["gpu_write 0 4"], "cpu": ["cpu_read 0 4"]},
    "four-faulters": {f"gpu{i}": [f"gpu_write {2 * i} 2"] for i in range(4)},
    "four-on-one-page": {f"gpu{i}": ["gpu_write 0 1"] for i in range(4)},
    "warp-against-cpu": {"gpu": ["gpu_together write 0 4"], "cpu": ["cpu_write 0 4"] * 2},
    "readers-one-writer": {
        "gpu": ["gpu_read 0 2"] * 3,
        "reader": ["cpu_read 0 2"] * 3,
        "writer": ["cpu_write 0 2"] * 3,
    },
    "neighbours": {"gpu": ["gpu_write 0 2"] * 3, "cpu": ["cpu_write 2 2"] * 3},
    "storm-dontneed": {"gpu": ["gpu_write 0 4"], "cpu": ["dontneed 0 4"] * 4},
    "storm-mprotect": {"gpu": ["gpu_read 0 4"], "cpu": ["mprotect 0 4 ro", "mprotect 0 4 rw"] * 2},
    "storm-next-door": {"gpu": ["gpu_write 0 4"], "cpu": ["dontneed 4 4"] * 4},
    "storm-unmap": {"gpu": ["gpu_write 0 2"], "cpu": ["munmap 3 1", "map 3 1"] * 3},
    "storm-fork": {
        "gpu": ["gpu_read 0 2"] * 2,
        "cpu": ["fork a", "a.cpu_write 0 1", "fork b", "b.cpu_write 1 1"],
    },
    "munmap": {"gpu": ["gpu_write 0 4"], "cpu": ["munmap 0 4"]},
    "munmap-part": {"gpu": ["gpu_write 0 4"], "cpu": ["munmap 1 2"]},
    "remap": {"gpu": ["gpu_write 0 4"], "cpu": ["map 0 4", "cpu_write 0 4"]},
    "mremap": {"gpu": ["gpu_write 0 4"], "cpu": ["mremap 0 4 8", "cpu_write 8 4"]},
    "fork": {"gpu": ["gpu_write 0 4"], "cpu": ["fork child", "cpu_write 0 2", "child.cpu_write 1 2"]},
    "collapse": {"gpu": ["gpu_write 0 4"], "cpu": ["collapse 0 4", "cpu_write 0 1"]},
    "pin": {"gpu": ["gpu_write 0 4"], "cpu": ["pin 1 1", "cpu_write 1 1", "drop 1 1"]},
    "close": {"gpu": ["gpu_write 0 4"], "cpu": ["cpu_write 0 4"], "hand": ["close"]},
    "exit": {"gpu": ["gpu_write 0 4"], "cpu": ["cpu_write 0 4"], "hand": ["exit"]},
    "oom-kill": {"gpu": ["gpu_write 0 4"], "hand": ["oom_kill"]},
}
"""Programs that every driver runs."""

GOING: Final = frozenset({"munmap", "mremap", "exit", "oom-kill"})
"""Those in which the memory goes at a stroke, mostly before the GPU has got to it: it has a part of it from before."""

DEVICE_CONTESTS: Final[Mapping[str, Program]] = {
    "cpu-same-page": {f"cpu{i}": ["cpu_read 0 1"] for i in range(4)},
    "cpu-neighbours": {f"cpu{i}": [f"cpu_write {i} 1"] for i in range(4)},
    "cpu-and-gpu": {"gpu": ["gpu_write 0 4"], "cpu": ["cpu_write 0 4"]},
    "populate-and-cpu": {"hand": ["populate 0 4"], "cpu": ["cpu_write 0 4"]},
    "populate-and-gpu": {"hand": ["populate 4 4"], "gpu": ["gpu_write 4 4"]},
    "storm-populate": {
        "hand": ["populate 0 4"] * 3,
        "gpu": ["gpu_write 0 2"] * 2,
        "cpu": ["cpu_write 1 2"] * 3,
    },
    "populate-twice": {"one": ["populate 4 4"], "two": ["populate 4 4"]},
    "populate-and-munmap": {"hand": ["populate 4 4"], "cpu": ["munmap 5 2"]},
    "populate-and-fork": {"hand": ["populate 4 4"], "cpu": ["fork child", "child.cpu_write 4 2"]},
    "munmap-and-cpu": {"one": ["cpu_read 0 4"], "two": ["munmap 1 2"]},
    "mremap-and-cpu": {"one": ["cpu_read 0 4"], "two": ["mremap 0 4 8"]},
    "dontneed-and-cpu": {"one": ["cpu_write 0 4"], "two": ["dontneed 0 4"]},
    "fork-and-gpu": {"gpu": ["gpu_write 0 4"], "cpu": ["fork child", "child.cpu_read 0 4", "cpu_write 0 4"]},
    "close-and-cpu": {"cpu": ["cpu_read 0 4"], "hand": ["close"]},
    "exit-and-cpu": {"cpu": ["cpu_read 0 4"], "hand": ["exit"]},
}
"""Programs on memory whose first block is on the device."""

ATOMIC_CONTESTS: Final[Mapping[str, Program]] = {
    "cpu-writers": {"gpu": ["gpu_atomic 0 1"], "one": ["cpu_write 0 1"] * 3, "two": ["cpu_write 0 1"] * 3},
    "in-turns": {"gpu": ["gpu_atomic 0 1"] * 3, "cpu": ["cpu_write 0 1"] * 3},
    "two-streams": {"one": ["gpu_atomic 0 1"], "two": ["gpu_atomic 0 1"], "cpu": ["cpu_read 0 1"] * 2},
    "and-a-write": {"one": ["gpu_atomic 0 1"] * 2, "two": ["gpu_write 0 2"], "cpu": ["cpu_write 0 1"]},
}
"""Programs that do atomics on a page that others want as well."""


@family("progress.{contest}", every(contest=CONTESTS), since="1.0", ref=_REF)
def test_contest(lab: Lab, contest: str) -> None:
    """In {contest}, whatever the order, every access ends, with a reason if it is refused, and nothing is lost."""
    setup = (*_SETUP, "gpu_write 0 2") if contest in GOING else _SETUP
    told(lab, setup=setup, tasks=CONTESTS[contest])


@family(
    "progress.on-device.{contest}.{size}",
    every(contest=DEVICE_CONTESTS, size=("small", "huge")),
    since="1.0",
    ref=_REF,
    profile="device-memory",
    requires=("explicit_populate",),
)
def test_contest_on_device(lab: Lab, contest: str, size: str) -> None:
    """In {contest} on {size} device pages, whatever the order, every access ends and nothing is lost."""
    told(
        lab,
        setup=(*_SETUP, "populate 0 4"),
        tasks=DEVICE_CONTESTS[contest],
        thp="always" if size == "huge" else "never",
    )


@family(
    "progress.atomic.{contest}",
    every(contest=ATOMIC_CONTESTS),
    since="1.0",
    ref="mm/rmap.c:make_device_exclusive; drivers/gpu/drm/xe/xe_svm.c:xe_svm_handle_pagefault",
    profile="atomics",
)
def test_atomic(lab: Lab, contest: str) -> None:
    """In {contest}, whatever the order, atomics and all other accesses of their page end, and nothing is lost."""
    told(lab, setup=_SETUP, tasks=ATOMIC_CONTESTS[contest], end=("cpu_read 0 4",))


@check("progress.two-processes", since="1.0", ref="mm/mmu_notifier.c:mmu_interval_read_begin")
def test_two_processes(lab: Lab) -> None:
    """Two processes whose GPU work faults at one address at the same time are both served, each with its own."""
    told(
        lab,
        setup=(*_SETUP, "process q", "q.open", "q.map 0 8", "q.cpu_write 0 8"),
        tasks={"one": ["gpu_write 0 2"] * 2, "two": ["q.gpu_write 0 2"] * 2, "cpu": ["cpu_write 0 1"] * 2},
        end=("cpu_read 0 4", "q.cpu_read 0 4"),
    )


@family(
    "progress.without-room.{contest}",
    every(contest=("gpu", "populate", "cpu")),
    since="1.0",
    ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_evict_to_ram; IGT evict-malloc",
    profile="device-memory",
    requires=("explicit_populate",),
)
def test_without_room(lab: Lab, contest: str) -> None:
    """With less device memory than is wanted, {contest} included, all get on, in VRAM or outside of it."""
    tasks = {
        "gpu": {"gpu": ["gpu_write 0 12"], "cpu": ["cpu_read 0 4"]},
        "populate": {"one": ["populate 0 8"], "two": ["populate 4 8"]},
        "cpu": {"hand": ["populate 8 4"], "cpu": ["cpu_write 0 8"]},
    }[contest]
    told(lab, setup=("map 0 12", "cpu_write 0 12", "populate 0 8"), tasks=tasks, vram_pages=8, end=("cpu_read 0 12",))
