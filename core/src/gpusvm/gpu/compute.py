"""The compute units: they run a launch's accesses in order, SM by SM; each holds a bounded number of faulting pages.

A trace says when a program touched a page on a GPU that never faulted. Here an access whose translation is missing
waits for its fault; the other warps of its streaming multiprocessor (SM) go on until the SM holds `pages_per_sm`
faulting pages, then the whole SM stalls, and what it lost is carried over to its later accesses.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from gpusvm.errors import KernelError, ModelError
from gpusvm.gpu.link import D2H, H2D, Link
from gpusvm.gpu.page_table import ATOMIC, REMOTE, WRITE, GpuPageTable
from gpusvm.kernel import Kernel

__all__ = ["ComputeEngine", "FaultEntry", "RaiseFaults"]

Int64s = npt.NDArray[np.int64]
Uint8s = npt.NDArray[np.uint8]

# While faults are outstanding the SMs advance in steps, so that replies which come close together are taken up
# together: it bounds how late an SM notices a reply. A step is this long, and as much again for each _STEP_PAGES
# pages that wait, for the more wait, the longer each of them does: with a reply a microsecond it stays about a
# fiftieth of the latency.
_STEP_NS: Final = 5_000
_STEP_PAGES: Final = 256
# Faults offered beyond the replies since the buffer was last full.
_OFFERED: Final = 64
# Without faults a step grows or shrinks until a batch has about this many accesses.
_BATCH: Final = 8192
_LONGEST_STEP_NS: Final = 1 << 40
# An access that still faults after so many replies makes no progress.
_MOST_REPLIES: Final = 10_000


class FaultEntry:
    """One page that one SM waits for, as the GPU tells the driver (`gpusvm.driver.GpuFault`), and what waits behind it.

    `addr` is page aligned, `access` 0 read, 1 write, 2 atomic, `inst` the address space (the Vm that takes the fault
    sets it), `time_ns` when it was raised.
    """

    __slots__ = ("access", "addr", "inst", "launch", "replies", "rows", "sm", "time_ns", "vpn")

    def __init__(self, launch: "_Launch", sm: int, vpn: int, access: int, row: int) -> None:
        engine = launch.engine
        self.launch = launch
        self.sm = sm
        self.vpn = vpn
        self.addr = vpn << engine.page_shift
        self.access = access
        self.inst = 0
        self.time_ns = engine.kernel.current.time_ns
        self.rows = [row]
        self.replies = 0

    def complete(self, errno: int) -> None:
        """Take the driver's answer: 0 makes the accesses run again at once, anything else ends the launch."""
        self.launch.replied(self, errno)


RaiseFaults = Callable[[Sequence[FaultEntry]], int]


class ComputeEngine:
    """Run launches, one at a time, in the task that calls `run`.

    `raise_faults` hands faulting pages to the fault source in order and returns how many it took (its buffer may be
    full; the rest is offered again). Accesses to system memory occupy `link`, as much as the costs say of a row: what
    the link cannot carry in time delays every SM, and a launch is not over before its last access is through. The errno
    of a refused fault is raised as a KernelError.
    """

    def __init__(
        self,
        kernel: Kernel,
        page_table: GpuPageTable,
        link: Link,
        raise_faults: RaiseFaults,
        *,
        pages_per_sm: int,
    ) -> None:
        self.kernel = kernel
        self.page_table = page_table
        self.link = link
        self.raise_faults = raise_faults
        self.pages_per_sm = pages_per_sm
        self.page_shift = page_table.memory.geometry.page_shift
        self.accesses = 0
        self._step_ns = 10_000
        self._replies: list[FaultEntry] = []
        self._failed: tuple[FaultEntry, int] | None = None
        self._replied = kernel.waitqueue("gpu_replies")

    def replied(self, page: FaultEntry, errno: int) -> None:
        """Note the driver's answer and wake the engine."""
        if errno and self._failed is None:
            self._failed = (page, errno)
        self._replies.append(page)
        self._replied.wake_up_all()

    def run(self, time_ns: Int64s, vpns: Int64s, need: Uint8s, sm: npt.NDArray[np.uint16]) -> None:
        """Run one launch to its end, which is when its last access is done.

        Four columns of equal length, a row an access: ns since the launch began (not decreasing within an SM), virtual
        page, needed permissions, SM.
        """
        if len(vpns):
            _Launch(self, time_ns, vpns, need, sm).run()
            self.accesses += len(vpns)

    @property
    def remote_latency_ns(self) -> int:
        """Return how long one access to system memory takes on a link that is free."""
        costs = self.kernel.costs
        return 0 if costs is None else costs.remote_access_latency

    def charge_remote(self, reads: int, writes: int) -> int:
        """Occupy the link for a batch's accesses to system memory; the time in ns when it will have carried them."""
        kernel = self.kernel
        costs = kernel.costs
        through = kernel.now_ns
        if costs is None:
            return through
        row = costs.remote_bytes_per_row
        read_ns, write_ns = costs.remote_ns(reads * row), costs.remote_ns(writes * row)
        kernel.stats.remote_bytes += (reads + writes) * row
        kernel.stats.remote_ns += read_ns + write_ns
        kernel.account("remote_ns_per_byte", read_ns + write_ns)
        if read_ns:
            through = max(through, self.link.occupy(H2D, read_ns))
        if write_ns:
            through = max(through, self.link.occupy(D2H, write_ns))
        return through

    def wait_for_reply(self) -> None:
        """Sleep until the driver has answered something."""
        self._replied.wait_event(lambda: bool(self._replies))

    def take_replies(self) -> list[FaultEntry]:
        """Return the pages answered since the last call; raise for one that was refused."""
        if self._failed is not None:
            page, errno = self._failed
            self._failed = None
            raise KernelError(
                errno,
                f"the driver refused the {('read', 'write', 'atomic')[page.access]} fault of SM {page.sm} on "
                f"page {page.vpn:#x}; the GPU context is lost",
            )
        replies, self._replies = self._replies, []
        return replies


class _Launch:
    """The state of one running launch; rows are sorted by SM, then time, and an SM is named by its rank."""

    def __init__(
        self, engine: ComputeEngine, time_ns: Int64s, vpns: Int64s, need: Uint8s, sm: npt.NDArray[np.uint16]
    ) -> None:
        self.engine = engine
        self.kernel = engine.kernel
        order = np.argsort(sm, kind="stable")
        self.sms, first, counts = np.unique(sm[order], return_index=True, return_counts=True)
        self.time = time_ns[order]
        self.vpns = vpns[order]
        self.need = need[order]
        self.m_need = self.need.data  # for one row at a time
        self.sm_numbers: list[int] = self.sms.tolist()
        self.rank = np.repeat(np.arange(len(self.sms)), counts)
        # One ascending key over all rows, so that one search finds every SM's place in time.
        self.stride = int(self.time.max()) + 2
        self.key = self.rank * self.stride + self.time
        self.next = first.astype(np.int64)
        self.end = first + counts
        self.started_ns = self.kernel.now_ns
        self.delay = np.zeros(len(self.sms), np.int64)
        self.stalled = np.zeros(len(self.sms), np.bool_)
        self.held = [0] * len(self.sms)
        self.pages: dict[tuple[int, int], FaultEntry] = {}
        self.unsent: list[FaultEntry] = []
        self.remote_reads = self.remote_writes = 0  # of accesses that replies let through, not charged yet
        self.link_ns = 0  # when the link will have carried what the launch accessed so far
        self.through_ns = 0  # when the last of those accesses will be through
        self.may_send: int | None = None  # how many to offer; None while the buffer has not been full

    @property
    def step_ns(self) -> int:
        """Return how far the SMs go at once while pages wait."""
        return _STEP_NS * (1 + len(self.pages) // _STEP_PAGES)

    def run(self) -> None:
        """Step until no access is left and none waits."""
        while True:
            if self.engine._replies:
                self._retry(self.engine.take_replies())
            self._send()
            running = (self.next < self.end) & ~self.stalled
            if running.any():
                self._step(running)
            elif self.pages:
                if not self.engine._replies:
                    self.engine.wait_for_reply()
                    self.kernel.sleep_ns(self.step_ns)
            else:
                break
        left_ns = self.through_ns - self.kernel.now_ns
        if left_ns > 0:
            self.kernel.account("remote_access_latency", min(left_ns, self.engine.remote_latency_ns))
            self.kernel.sleep_ns(left_ns)

    def _due_ns(self, running: npt.NDArray[np.bool_]) -> int:
        """Return when the next access of a running SM is due."""
        ranks = np.flatnonzero(running)
        return int((self.time[self.next[ranks]] + self.delay[ranks]).min()) + self.started_ns

    def _step(self, running: npt.NDArray[np.bool_]) -> None:
        """Run what is due until a horizon, and sleep up to it."""
        kernel = self.kernel
        due = self._due_ns(running)
        now = kernel.now_ns
        if self.pages:
            # Replies come at any time: go no further than one step.
            step_ns = self.step_ns
            if due > now + step_ns:
                kernel.sleep_ns(step_ns)
                return
            horizon = now + step_ns
        else:
            horizon = max(due, now) + self.engine._step_ns
        rows, stop = self._due_rows(running, horizon)
        missing = self.engine.page_table.missing(self.vpns[rows], self.need[rows])
        if missing.any():
            if not self.pages:
                # The first fault ends a long step: from here on replies may change what the others find.
                due_ns = self.time[rows] + self.delay[self.rank[rows]] + self.started_ns
                first_ns = int(due_ns[missing].min())
                if first_ns + _STEP_NS < horizon:
                    horizon = first_ns + _STEP_NS
                    kept = due_ns <= horizon
                    rows, missing = rows[kept], missing[kept]
                    stop = np.searchsorted(self.key, self._horizon_key(horizon), side="right")
                    stop = np.where(running, np.maximum(stop, self.next), self.next)
            rows = self._fault(rows, missing, stop)
        else:
            self._adapt(len(rows))
        self.next = np.where(running, stop, self.next)
        remote = False
        if len(rows):
            reads, writes = self.engine.page_table.access(self.vpns[rows], self.need[rows])
            remote = self._occupy_link(reads, writes)
        self._send()
        horizon = self._sleep_until(horizon)
        if remote:
            self.through_ns = max(self.through_ns, horizon + self.engine.remote_latency_ns)

    def _adapt(self, rows: int) -> None:
        if rows < _BATCH // 2 and self.engine._step_ns < _LONGEST_STEP_NS:
            self.engine._step_ns *= 2
        elif rows > _BATCH * 2:
            self.engine._step_ns = max(1000, self.engine._step_ns // 2)

    def _occupy_link(self, reads: int, writes: int) -> bool:
        """Let the link carry accesses to system memory that are made now; False if there are none."""
        if not reads and not writes:
            return False
        self.link_ns = max(self.link_ns, self.engine.charge_remote(reads, writes))
        self.through_ns = max(self.through_ns, self.link_ns, self.kernel.now_ns + self.engine.remote_latency_ns)
        return True

    def _sleep_until(self, horizon: int) -> int:
        """Sleep to the horizon, or until the link has carried what was accessed: that delay is everybody's.

        Returns the time that the launch has come to.
        """
        if not self.pages and not bool((self.next < self.end).any()):
            # The last access of the launch ends it, not the step.
            last = int((self.time[self.end - 1] + self.delay).max()) + self.started_ns
            horizon = min(horizon, max(last, self.kernel.now_ns))
        if self.link_ns > horizon:
            self.delay += self.link_ns - horizon
            horizon = self.link_ns
        now = self.kernel.now_ns
        if horizon > now:
            self.kernel.sleep_ns(horizon - now)
        return horizon

    def _horizon_key(self, horizon: int) -> Int64s:
        past = np.clip(horizon - self.started_ns - self.delay, -1, self.stride - 1)
        return np.arange(len(self.sms)) * self.stride + past

    def _due_rows(self, running: npt.NDArray[np.bool_], horizon: int) -> tuple[Int64s, Int64s]:
        """Return the rows of the running SMs that are due by `horizon`, and where each SM then stands."""
        stop = np.searchsorted(self.key, self._horizon_key(horizon), side="right")
        stop = np.where(running, np.maximum(stop, self.next), self.next)
        counts = stop - self.next
        ends = np.cumsum(counts)
        rows = np.repeat(self.next - (ends - counts), counts) + np.arange(int(ends[-1]))
        return rows, stop

    def _fault(self, rows: Int64s, missing: npt.NDArray[np.bool_], stop: Int64s) -> Int64s:
        """Hold the rows that miss, stall the SMs that can hold no more (in `stop`); the rows that run."""
        limit = self.engine.pages_per_sm
        pages, held, unsent, sms = self.pages, self.held, self.unsent, self.sm_numbers
        faulting = rows[missing]
        stalled: dict[int, int] = {}
        for row, rank, vpn, need in zip(
            faulting.tolist(),
            self.rank[faulting].tolist(),
            self.vpns[faulting].tolist(),
            self.need[faulting].tolist(),
            strict=True,
        ):
            if rank in stalled:
                continue
            page = pages.get((rank, vpn))
            if page is not None:
                page.rows.append(row)
            elif held[rank] >= limit:
                stalled[rank] = row
            else:
                held[rank] += 1
                pages[rank, vpn] = page = FaultEntry(self, sms[rank], vpn, _access(need), row)
                unsent.append(page)
        hits = ~missing
        if stalled:
            ranks = np.fromiter(stalled, np.int64, len(stalled))
            stop[ranks] = np.fromiter(stalled.values(), np.int64, len(stalled))
            self.stalled[ranks] = True
            hits &= rows < stop[self.rank[rows]]
        return rows[hits]

    def replied(self, page: FaultEntry, errno: int) -> None:
        """Run the accesses behind an answered page, in the driver's task: before it does anything else, as on a GPU.

        What they free (a stalled SM, a place in the buffer) is taken up in the launch's own task.
        """
        if not errno:
            access_one, m_need = self.engine.page_table.access_one, self.m_need
            missing = []
            for row in page.rows:
                need: int = m_need[row]
                perm = access_one(page.vpn, need)
                if not perm:
                    missing.append(row)
                elif perm & REMOTE:
                    if need & WRITE:
                        self.remote_writes += 1
                    else:
                        self.remote_reads += 1
            page.rows = missing
        self.engine.replied(page, errno)

    def _send(self) -> None:
        """Offer the driver the faults it has not been told of; behind a full buffer, only as many as may fit."""
        offered = self.unsent if self.may_send is None else self.unsent[: self.may_send]
        if offered:
            taken = self.engine.raise_faults(offered)
            self.may_send = None if taken == len(self.unsent) else 0 if taken < len(offered) else _OFFERED
            del self.unsent[:taken]

    def _retry(self, replies: list[FaultEntry]) -> None:
        """Go on behind each answered page; the accesses that still miss there fault again."""
        if self.may_send is not None:
            self.may_send += len(replies) + _OFFERED
        self._occupy_link(self.remote_reads, self.remote_writes)
        self.remote_reads = self.remote_writes = 0
        ranks = np.searchsorted(self.sms, [page.sm for page in replies]).tolist()
        now = self.kernel.now_ns
        for page, rank in zip(replies, ranks, strict=True):
            if page.rows:
                page.access = max(_access(int(need)) for need in self.need[page.rows])
                page.replies += 1
                page.time_ns = now
                if page.replies > _MOST_REPLIES:
                    raise ModelError(
                        f"livelock: SM {page.sm} page {page.vpn:#x} still faults after {page.replies} replies"
                    )
                self.unsent.append(page)
                continue
            del self.pages[rank, page.vpn]
            self.held[rank] -= 1
            if self.stalled[rank]:
                self.stalled[rank] = False
                due = int(self.time[self.next[rank]] + self.delay[rank]) + self.started_ns
                self.delay[rank] += max(0, now - due)


def _access(need: int) -> int:
    return 2 if need & ATOMIC else 1 if need & WRITE else 0
