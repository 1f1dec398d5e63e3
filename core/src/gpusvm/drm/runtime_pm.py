"""drivers/base/power/runtime.c, as of Linux 7.3.4: a device sleeps while nobody uses it."""

from collections.abc import Callable
from typing import Protocol

from attrs import frozen

from gpusvm.errors import KernelError, ModelError
from gpusvm.kernel import Kernel, Work

D0 = "D0"
D3HOT = "D3hot"
D3COLD = "D3cold"

_BLINK_NS = 1_000_000


class PmCallbacks(Protocol):
    """What a driver does when its device changes state (struct dev_pm_ops, the runtime part)."""

    def runtime_suspend(self, state: str) -> None:
        """Prepare for `state`, D3hot or D3cold; a KernelError keeps the device awake."""

    def runtime_resume(self, state: str) -> None:
        """Bring the device back from `state`; a KernelError leaves it there."""

    @property
    def runtime_idle(self) -> Callable[[], None] | None:
        """Hear, in a worker, that nobody uses the device any more: the moment to decide whether it may go to D3cold
        (`RuntimePm.d3cold_allowed`). None: nothing to decide.
        """


@frozen(kw_only=True)
class PmReference:
    """Say who holds references, how many, and since when; `of` is what a single one is for, where that is known."""

    holder: object
    of: object
    count: int
    since_ns: int


@frozen(kw_only=True)
class PmHeld:
    """Say for how long a holder had references in all, how many at most, and when: [(from, until), …] in ns.

    Times less than a millisecond apart are one, so that `spans_ns` stays short where a holder comes with each fault.
    """

    holder: object
    held_ns: int
    refs_max: int
    spans_ns: list[tuple[int, int]]


class Awake:
    """Hold a reference inside a with block, as `RuntimePm.awake` says."""

    __slots__ = ("_holder", "_pm")

    def __init__(self, pm: "RuntimePm", holder: object) -> None:
        self._pm = pm
        self._holder = holder

    def __enter__(self) -> None:
        self._pm.get(self._holder)

    def __exit__(self, *_: object) -> None:
        self._pm.put(self._holder)


class Hold:
    """Count the references of one holder, and remember since when there has been one; `of_ns` tells them apart.

    `spans_ns` are the times in which there was one, the last of them until now if there is one now.
    """

    __slots__ = ("count", "held_ns", "of_ns", "refs_max", "since_ns", "spans_ns")

    def __init__(self) -> None:
        self.count = 0
        self.refs_max = 0
        self.since_ns = 0
        self.held_ns = 0
        self.of_ns: dict[object, int] = {}
        self.spans_ns: list[list[int]] = []

    def begin(self, now_ns: int) -> None:
        self.since_ns = now_ns
        spans = self.spans_ns
        if not spans or now_ns - spans[-1][1] > _BLINK_NS:
            spans.append([now_ns, now_ns])

    def end(self, now_ns: int) -> None:
        self.held_ns += now_ns - self.since_ns
        self.spans_ns[-1][1] = now_ns


class Inner:
    """Take and drop references of one holder for a moment, inside somebody else's: a job, a fence, a message.

    They are many, and end before the outer one does, so that the ledger is spared them. `get` is
    `RuntimePm.get_noresume`.
    """

    __slots__ = ("_hold", "_holder", "_pm")

    def __init__(self, pm: "RuntimePm", holder: object, hold: Hold) -> None:
        self._pm = pm
        self._holder = holder
        self._hold = hold

    def get(self) -> None:
        pm, hold = self._pm, self._hold
        count = pm.usage_count
        if not count or pm.state is not D0:
            pm._unprotected(self._holder)
        pm.usage_count = count = count + 1
        if count > pm.refs_max:  # noqa: PLR1730 - max() costs several times as much, for every job
            pm.refs_max = count
        if not hold.count:
            hold.since_ns = pm.kernel.current.time_ns
        hold.count += 1

    def put(self, *_: object) -> None:
        pm = self._pm
        self._hold.count -= 1
        pm.usage_count -= 1
        if not pm.usage_count and pm.enabled:
            pm._idle()

    __enter__ = get
    __exit__ = put


class RuntimePm:
    """Count who needs the device awake, and suspend it when nobody has for `autosuspend_ms`.

    A suspended device is in D3cold if that was allowed, else in D3hot. `state`, `resumes`, `suspends`, `awake_ns`,
    `refs_max`, `usage_count`, `history` [(ns, state), …], `holders` {holder: references}, `references`, `held` and
    `powered_off` (with the system) are for reading. `promised`: its driver promises that the device is awake while one
    of its pages is in an address space. Charges pm_resume_d3hot and pm_resume_d3cold to whoever resumes the device,
    pm_suspend to a worker. Ledger kind "pm".
    """

    __slots__ = (
        "_awake_before_ns",
        "_awake_since_ns",
        "_holds",
        "_idle_work",
        "_last_busy_ns",
        "_timer",
        "_transition",
        "_wait",
        "_work",
        "_workqueue",
        "autosuspend_ns",
        "callbacks",
        "d3cold_allowed",
        "enabled",
        "excuse",
        "history",
        "kernel",
        "missing_outer_protection",
        "name",
        "powered_off",
        "promised",
        "refs_max",
        "resumes",
        "state",
        "suspends",
        "usage_count",
        "watcher",
    )

    def __init__(
        self,
        kernel: Kernel,
        name: str,
        *,
        autosuspend_ms: int,
        d3cold_allowed: bool = False,
        callbacks: PmCallbacks | None = None,
    ) -> None:
        self.kernel = kernel
        self.name = name
        self.autosuspend_ns = autosuspend_ms * 1_000_000
        self.d3cold_allowed = d3cold_allowed
        self.callbacks = callbacks
        self.enabled = False
        self.state = D0
        self.usage_count = 0
        self.refs_max = 0
        self.resumes = 0
        self.suspends = 0
        self.missing_outer_protection = 0
        self.history = [(kernel.now_ns, D0)]
        self.promised = False
        self.powered_off = False
        # The quirk, as written, by which a device page may be there nevertheless.
        self.excuse: str | None = None
        # Whoever checks the promise: called when the device has fallen asleep and when it is about to wake.
        self.watcher: Callable[[RuntimePm], None] | None = None
        self._holds: dict[object, Hold] = {}
        self._awake_since_ns = kernel.now_ns
        self._awake_before_ns = 0
        self._last_busy_ns = 0
        self._transition = False
        self._wait = kernel.waitqueue("runtime_pm")
        self._timer = kernel.timer("autosuspend", self._expired)
        self._workqueue = kernel.workqueue("pm")
        self._work = Work(self._suspend, "pm_runtime_work")
        self._idle_work = Work(self._idle_notify, "pm_runtime_idle")

    def enable(self) -> None:
        """Allow suspending from now on: the end of probe. Without this the device stays in D0."""
        self.enabled = True
        if self.usage_count == 0:
            self._idle()

    def disable(self) -> None:
        """Resume and forbid suspending: the begin of remove. ModelError while an `inner` one is held."""
        left = [f"{holder}: {hold.count}" for holder, hold in self._holds.items() if hold.count and not hold.spans_ns]
        if left:
            raise ModelError(f"{self.name} is removed and held by {', '.join(left)}")
        self.enabled = False
        self._timer.cancel()
        self._idle_work.cancel_sync()
        self._timer.cancel()  # which the idle notification may have armed
        self._work.cancel_sync()
        if self.state is not D0:
            self._resume()

    def get(self, holder: object = "pm", of: object = None) -> None:
        """Take a reference and wait until the device is awake (pm_runtime_get_sync).

        `of` is what it is for, if the holder has several. What the driver's resume raises comes out, and the reference
        is taken nevertheless: it has to be put.
        """
        self._get(holder, of)
        if self.state is not D0 or self._transition:
            self._resume()

    def get_noresume(self, holder: object = "pm", of: object = None) -> None:
        """Take a reference where somebody else already keeps the device awake (xe_pm_runtime_get_noresume).

        Nobody does: that is a warning, "pm_runtime_get_noresume", and `missing_outer_protection` counts it.
        """
        if not self.usage_count or self.state is not D0:
            self._unprotected(holder)
        self._get(holder, of)

    def get_if_active(self, holder: object = "pm") -> bool:
        """Take a reference only if the device is awake (pm_runtime_get_if_active)."""
        if self.state is not D0 or self._transition:
            return False
        self._get(holder, None)
        return True

    def get_if_in_use(self, holder: object = "pm") -> bool:
        """Take a reference only if the device is awake and somebody holds it so (pm_runtime_get_if_in_use)."""
        return self.usage_count > 0 and self.get_if_active(holder)

    def put(self, holder: object = "pm", of: object = None) -> None:
        """Drop a reference; with the last the autosuspend delay begins (pm_runtime_put_autosuspend). Never sleeps."""
        hold = self._holds.get(holder)
        if hold is None or not hold.count:
            raise ModelError(
                f"{self.name}: {holder!r} puts a runtime PM reference and holds none{self.kernel.blame('pm-put')}"
            )
        hold.count -= 1
        if of is not None:
            del hold.of_ns[of]
        kernel = self.kernel
        if not hold.count:
            hold.end(kernel.current.time_ns)
        kernel.ledger.put("pm", holder)
        self.usage_count -= 1
        if self.usage_count == 0 and self.enabled:
            self._idle()

    def inner(self, holder: object) -> Inner:
        """Return a context for references inside somebody else's, cheap enough for one per job. It may be kept."""
        return Inner(self, holder, self._holds.setdefault(holder, Hold()))

    def awake(self, holder: object = "pm") -> Awake:
        """Return a context that resumes the device and holds a reference. One serves all tasks and may be kept."""
        return Awake(self, holder)

    @property
    def awake_ns(self) -> int:
        """Return how long the device has been in D0 until now."""
        if self.state is D0:
            return self._awake_before_ns + self.kernel.now_ns - self._awake_since_ns
        return self._awake_before_ns

    @property
    def holders(self) -> dict[object, int]:
        """Return who holds references now, and how many."""
        return {holder: hold.count for holder, hold in self._holds.items() if hold.count}

    @property
    def references(self) -> list[PmReference]:
        """Return who holds references now and since when, the oldest first: each with what it is for, where that is
        known, else all of a holder together.
        """
        found = []
        for holder, hold in self._holds.items():
            found += [PmReference(holder=holder, of=of, count=1, since_ns=ns) for of, ns in hold.of_ns.items()]
            if hold.count > len(hold.of_ns):
                count = hold.count - len(hold.of_ns)
                found.append(PmReference(holder=holder, of=None, count=count, since_ns=hold.since_ns))
        return sorted(found, key=lambda reference: reference.since_ns)

    @property
    def held(self) -> list[PmHeld]:
        """Return who has held references so far, whoever did so first before others. Those of `inner` are not followed:
        what they are inside of says as much.
        """
        now = self.kernel.current.time_ns
        found = []
        for holder, hold in self._holds.items():
            if not hold.spans_ns:
                continue
            spans = [(began, ended) for began, ended in hold.spans_ns]
            held = hold.held_ns
            if hold.count:
                spans[-1] = (spans[-1][0], now)
                held += now - hold.since_ns
            found.append(PmHeld(holder=holder, held_ns=held, refs_max=hold.refs_max, spans_ns=spans))
        return sorted(found, key=lambda each: each.spans_ns[0])

    @property
    def is_asleep(self) -> bool:
        """Tell whether the device is suspended, or powered off with the system."""
        return self.state is not D0

    @property
    def is_out(self) -> bool:
        """Tell whether nothing on the device runs: it sleeps, and no callback is about to wake it."""
        return self.state is not D0 and not self._transition

    # ---- system sleep --------------------------------------------------------------------------------------------

    def power_off(self, state: str) -> None:
        """Let the device sleep with the system, whoever holds references (pci_set_power_state in its suspend op).

        The caller holds one, as the core does from device_prepare to device_complete, so it is awake and stays so.
        """
        self.kernel.charge("pm_suspend")
        self.powered_off = True
        self._sleep(state)

    def power_on(self) -> None:
        """Wake it with the system."""
        self.kernel.charge("pm_resume_d3cold" if self.state is D3COLD else "pm_resume_d3hot")
        self.powered_off = False
        self._wake()
        self._wait.wake_up_all()

    def wait_for_power(self) -> None:
        """Stand still, as hardware does, while the device is powered off with the system."""
        self._wait.wait_event(lambda: not self.powered_off)

    # ---- inside --------------------------------------------------------------------------------------------------

    def _get(self, holder: object, of: object) -> None:
        self.usage_count = count = self.usage_count + 1
        if count > self.refs_max:  # noqa: PLR1730 - as above
            self.refs_max = count
        hold = self._holds.get(holder)
        if hold is None:
            hold = self._holds[holder] = Hold()
        now = self.kernel.current.time_ns
        if not hold.count:
            hold.begin(now)
        hold.count = count = hold.count + 1
        if count > hold.refs_max:  # noqa: PLR1730 - as above
            hold.refs_max = count
        if of is not None:
            hold.of_ns[of] = now
        self.kernel.ledger.get("pm", holder)

    def _unprotected(self, holder: object) -> None:
        if self._transition:
            return  # xe_pm_suspending_or_resuming: whoever suspends or resumes the device may use it
        self.missing_outer_protection += 1
        what = "nobody holds a reference" if not self.usage_count else f"it is in {self.state}"
        self.kernel.warn(
            "pm_runtime_get_noresume", f"{self.name}: {holder} relies on a device that is awake, and {what}"
        )

    def _idle(self) -> None:
        self._last_busy_ns = self.kernel.now_ns
        if self.callbacks is not None and self.callbacks.runtime_idle is not None:
            self._workqueue.queue(self._idle_work)
        else:
            self._arm()

    def _idle_notify(self) -> None:
        # rpm_idle with RPM_ASYNC: what the callback decides holds until the device is used and idle again.
        if self.usage_count or not self.enabled or self.state is not D0 or self._transition:
            return
        assert self.callbacks is not None
        assert self.callbacks.runtime_idle is not None
        self.callbacks.runtime_idle()
        self._arm()

    def _arm(self) -> None:
        # As in the kernel, the timer stays armed while the device is used again; when it fires it looks at the time
        # of last use.
        if not self._timer.pending:
            self._timer.arm(max(self._last_busy_ns + self.autosuspend_ns, self.kernel.now_ns))

    def _expired(self) -> None:
        if self.usage_count or not self.enabled or self.state is not D0:
            return
        due_ns = self._last_busy_ns + self.autosuspend_ns
        if due_ns > self.kernel.now_ns:
            self._timer.arm(due_ns)
        else:
            self._workqueue.queue(self._work)

    def _suspend(self) -> None:
        if self.usage_count or not self.enabled or self.state is not D0 or self._transition:
            return
        callbacks = self.callbacks
        state = D3COLD if self.d3cold_allowed else D3HOT
        self._transition = True
        try:
            self.kernel.charge("pm_suspend")
            if callbacks is not None:
                callbacks.runtime_suspend(state)
        except KernelError:
            self._end_transition()
            if self.usage_count == 0:
                self._idle()
            return
        self._sleep(state)
        self._end_transition()

    def _resume(self) -> None:
        kernel = self.kernel
        kernel.might_sleep()
        if self._transition:
            self._wait.wait_event(lambda: not self._transition)
        if self.state is D0:
            return
        self._transition = True
        state = self.state
        kernel.charge("pm_resume_d3cold" if state is D3COLD else "pm_resume_d3hot")
        if self.callbacks is not None:
            try:
                self.callbacks.runtime_resume(state)
            except KernelError:
                self._end_transition()
                raise
        self._wake()
        self._end_transition()

    def _sleep(self, state: str) -> None:
        now = self.kernel.now_ns
        self._awake_before_ns += now - self._awake_since_ns
        self.suspends += 1
        self._enter(state, now)

    def _wake(self) -> None:
        if self.watcher is not None and self.promised:
            self.watcher(self)
        now = self.kernel.now_ns
        self.resumes += 1
        self._awake_since_ns = now
        self._enter(D0, now)

    def _enter(self, state: str, now_ns: int) -> None:
        self.state = state
        self.history.append((now_ns, state))
        if self.kernel.tracer.on:
            self.kernel.tracer.emit("pm_state", self.name, state)
        if self.kernel.observer is not None and self.promised and state is not D0:
            listen = getattr(self.kernel.observer, "device_sleeps", None)
            if listen is not None:
                listen(self)
        if self.watcher is not None and self.promised and state is not D0:
            self.watcher(self)

    def _end_transition(self) -> None:
        self._transition = False
        self._wait.wake_up_all()
