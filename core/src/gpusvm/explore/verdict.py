"""Judge outcomes: whether the errno or signal that an operation got, or its success, can be right.

An outcome needs a reason, something that was so at some moment while the operation ran: a page was not mapped, its area
did not allow the access, the address space was being closed, a failure was injected. Which errno a reason allows is the
contract of the system call (`Kind.errnos`), or of the driver (`gpusvm.driver.Refusals`).
"""

from __future__ import annotations

from errno import ECANCELED, ENXIO
from typing import TYPE_CHECKING, Final

from gpusvm.errors import CpuSignal, KernelError, ModelError, errno_name
from gpusvm.explore.permissions import NONE, READ_ONLY, READ_WRITE, UNMAPPED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from gpusvm.explore.attempt import Attempt
    from gpusvm.explore.place import Actor
    from gpusvm.explore.world import World

__all__ = ["OutcomeError", "check_change", "check_success", "judge"]

SIGBUS: Final = 7
SIGKILL: Final = 9
SIGSEGV: Final = 11

_CPU_ACCESSES: Final = frozenset({"cpu_read", "cpu_write"})
_WANT_PAGES: Final = _CPU_ACCESSES | {"gpu_read", "gpu_write", "gpu_atomic", "gpu_together", "populate"}
_ALLOWS: Final = {"read": frozenset({READ_ONLY, READ_WRITE}), "write": frozenset({READ_WRITE})}


class OutcomeError(ModelError):
    """Report an errno, a signal or a success that nothing allowed, with all that happened meanwhile."""


def judge(world: World, actor: Actor, attempt: Attempt, error: KernelError | CpuSignal) -> None:
    """Raise OutcomeError if there was no reason for an outcome."""
    attempt.again(list(attempt.seen))
    world.heed(attempt)
    true = _reasons(world, actor, attempt)
    allowed: Mapping[str, Iterable[int]]
    if isinstance(error, CpuSignal):
        got, number, who = str(error).split(maxsplit=1)[0], error.signal, "the CPU"
        allowed = {
            "unmapped": (SIGSEGV,),
            "forbidden": (SIGSEGV,),
            "failed": (SIGBUS, SIGKILL),
            "killed": (SIGBUS, SIGKILL),
        }
    else:
        got, number = errno_name(error.errno), error.errno
        who, allowed = _contract(world, attempt)
    if any(number in numbers and reason in true for reason, numbers in allowed.items()):
        return
    reasons = sorted(reason for reason, numbers in allowed.items() if number in numbers)
    may = f"it answers so where {' or '.join(reasons)}" if reasons else "it never answers so"
    page = f" for page {attempt.page}" if attempt.page >= 0 else ""
    raise OutcomeError(
        f"{attempt}: {who} answered {got}{page} without a reason ({may}; {error}). {_story(world, attempt)}"
    )


def check_success(attempt: Attempt, how: str) -> None:
    """Raise OutcomeError if an access was done though its page never allowed it while it was under way."""
    page = attempt.page
    attempt.again((page,))
    seen = attempt.seen[page]
    if seen & _ALLOWS["read" if how == "read" else "write"]:
        return
    raise OutcomeError(
        f"{attempt}: the {how} of page {page} was done though the page was {_list(seen)} all the while; "
        f"meanwhile: {_list(attempt.met) or 'nothing else'}"
    )


def check_change(attempt: Attempt, actor: Actor, pages: Iterable[int], to: Collection[str]) -> None:
    """Raise OutcomeError if a change that has succeeded, and that none met, did not leave its pages as it should."""
    if actor.exiting or any(other.permissions is attempt.permissions for other in attempt.met):
        return
    for page in pages:
        state = actor.permissions.state(page)
        if state not in to:
            raise OutcomeError(f"{attempt}: it succeeded, and page {page} is {state}, not {_list(to)}")


def _contract(world: World, attempt: Attempt) -> tuple[str, Mapping[str, Iterable[int]]]:
    """Return who answered, and with which errnos it may, by reason."""
    step = attempt.step
    name = step.kind.name
    info = world.info_of(step.file)
    refusals = info.refusals
    if step.kind.by == "gpu":
        atomic = "atomic" in (name.removeprefix("gpu_"), *step.args)
        stated = [refusals.atomic if atomic else refusals.access]
    elif name == "populate":
        stated = [refusals.populate]
    elif name == "ioctl":
        stated = [refusals.access, refusals.atomic, refusals.populate, refusals.ioctl]
    else:
        return "the kernel", step.kind.errnos
    reasons: dict[str, set[int]] = {}
    for errnos in stated:
        for reason, numbers in errnos.items():
            reasons.setdefault(reason, set()).update(numbers)
    reasons.setdefault("context_gone", set()).update((ECANCELED, ENXIO))
    return info.name, reasons


def _reasons(world: World, actor: Actor, attempt: Attempt) -> set[str]:
    """Find out what was so while an operation ran."""
    step = attempt.step
    info = world.info_of(step.file)
    true = set()
    states = frozenset().union(*attempt.seen.values()) if attempt.seen else frozenset()
    if UNMAPPED in states:
        true.add("unmapped")
    reads = step.kind.name in ("cpu_read", "gpu_read", "hold") or "read" in step.args
    if step.kind.by == "gpu" and info.refusals.read_needs_write:
        reads = False
    if NONE in states or (READ_ONLY in states and not reads):
        true.add("forbidden")
    space = actor.spaces.get(step.file)
    if space is None or not space.open or space.closing:
        true |= {"closed", "context_gone"}
    if actor.exiting:
        true.add("exited")
    if actor.killed:
        true.add("killed")
    if world.is_unplugged(step.file):
        true.add("unplugged")
    if world.is_peer_unplugged(step.file):
        true.add("peer_unplugged")
    if attempt.in_use or world.is_in_use(step.file):
        true.add("in_use")
    if world.is_unloaded:
        true.add("unloaded")
    elif world.info.unload == "never":
        true.add("no_exit")
    if step.kind.name == "unload" and (attempt.met or world.is_module_held):
        true.add("held")
    if len(world.kernel.injector.failed) > attempt.failures:
        true.add("failed")
    # Whoever touches memory at all may keep a driver that evicts from making room.
    evicts = bool(info.capabilities.eviction)
    for other in attempt.met:
        if _touches(other, attempt) or (evicts and other.step.kind.name in _WANT_PAGES):
            true.add("touched" if other.step.kind.name in _CPU_ACCESSES else "contended")
    if world.holds_pages:
        true.add("contended")
    if world.is_crowded:
        true.add("crowded")
        if attempt.met:
            # What has to leave the device to make room may be what somebody else is busy with.
            true.add("contended")
    if attempt.met and world.machine.memory.quirks.mm_q12 == "as_written":
        true.add("locked_exclusive")
    return true


def _touches(other: Attempt, attempt: Attempt) -> bool:
    """Tell whether what the one does may reach what the other wants."""
    return not attempt.touched or not other.touched or not other.touched.isdisjoint(attempt.seen)


def _story(world: World, attempt: Attempt) -> str:
    failed = world.kernel.injector.failed[attempt.failures :]
    pages = ", ".join(f"{page} {_list(states)}" for page, states in sorted(attempt.seen.items()))
    return (
        f"Pages in reach meanwhile: {pages or 'none'}. At the same time: {_list(attempt.met) or 'nothing else'}. "
        f"Made to fail: {_list(failed) or 'nothing'}."
    )


def _list(things: Iterable[object]) -> str:
    return "; ".join(sorted(map(str, things))) if not isinstance(things, frozenset) else "/".join(sorted(things))
