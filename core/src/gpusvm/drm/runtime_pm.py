"""drivers/base/power/runtime.c, as of Linux 7.3.4: a device sleeps while nobody uses it."""

from typing import Protocol

from gpusvm.errors import KernelError, ModelError
from gpusvm.kernel import Kernel, Work

D0 = "D0"
D3HOT = "D3hot"
D3COLD = "D3cold"


class PmCallbacks(Protocol):
    """What a driver does when its device changes state (struct dev_pm_ops, the runtime part)."""

    def runtime_suspend(self, state: str) -> None:
        """Prepare for `state`, D3hot or D3cold; a KernelError keeps the device awake."""

    def runtime_resume(self, state: str) -> None:
        """Bring the device back from `state`; a KernelError leaves it there."""

    def vram_used_bytes(self) -> int:
        """Return how much memory would have to be saved for D3cold."""


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


class RuntimePm:
    """Count who needs the device awake, and suspend it when nobody has for `autosuspend_ms`.

    A suspended device goes to D3cold if less than `d3cold_threshold_bytes` of its memory are in use (0: never), else
    to D3hot. `state`, `resumes`, `awake_ns`, `refs_max`, `usage_count` and `history` [(ns, state), …] are for
    reading. `holders` says who holds how many references. Charges pm_resume_d3hot and pm_resume_d3cold to whoever
    resumes the device, pm_suspend to a worker. Ledger kind "pm".
    """

    __slots__ = (
        "_awake_before_ns",
        "_awake_since_ns",
        "_last_busy_ns",
        "_timer",
        "_transition",
        "_wait",
        "_work",
        "_workqueue",
        "autosuspend_ns",
        "callbacks",
        "d3cold_threshold_bytes",
        "enabled",
        "history",
        "holders",
        "kernel",
        "missing_outer_protection",
        "name",
        "refs_max",
        "resumes",
        "state",
        "suspends",
        "usage_count",
    )

    def __init__(
        self,
        kernel: Kernel,
        name: str,
        *,
        autosuspend_ms: int,
        d3cold_threshold_bytes: int,
        callbacks: PmCallbacks | None = None,
    ) -> None:
        self.kernel = kernel
        self.name = name
        self.autosuspend_ns = autosuspend_ms * 1_000_000
        self.d3cold_threshold_bytes = d3cold_threshold_bytes
        self.callbacks = callbacks
        self.enabled = False
        self.state = D0
        self.usage_count = 0
        self.refs_max = 0
        self.resumes = 0
        self.suspends = 0
        self.missing_outer_protection = 0
        self.history = [(kernel.now_ns, D0)]
        self.holders: dict[object, int] = {}
        self._awake_since_ns = kernel.now_ns
        self._awake_before_ns = 0
        self._last_busy_ns = 0
        self._transition = False
        self._wait = kernel.waitqueue("runtime_pm")
        self._timer = kernel.timer("autosuspend", self._expired)
        self._workqueue = kernel.workqueue("pm")
        self._work = Work(self._suspend, "pm_runtime_work")

    def enable(self) -> None:
        """Allow suspending from now on: the end of probe. Without this the device stays in D0."""
        self.enabled = True
        if self.usage_count == 0:
            self._idle()

    def disable(self) -> None:
        """Resume and forbid suspending: the begin of remove."""
        self.enabled = False
        self._timer.cancel()
        self._work.cancel_sync()
        if self.state is not D0:
            self._resume()

    def get(self, holder: object = "pm") -> None:
        """Take a reference and wait until the device is awake (pm_runtime_get_sync).

        What the driver's resume raises comes out, and the reference is taken nevertheless: it has to be put.
        """
        self._get(holder)
        if self.state is not D0 or self._transition:
            self._resume()

    def get_noresume(self, holder: object = "pm") -> None:
        """Take a reference where somebody else already keeps the device awake (xe_pm_runtime_get_noresume).

        Nobody does: `missing_outer_protection` counts it, where xe warns.
        """
        if self.usage_count == 0 or self.state is not D0:
            self.missing_outer_protection += 1
            if self.kernel.tracer.on:
                self.kernel.tracer.emit("pm_missing_outer_protection", self.name, str(holder))
        self._get(holder)

    def get_if_active(self, holder: object = "pm") -> bool:
        """Take a reference only if the device is awake (pm_runtime_get_if_active)."""
        if self.state is not D0 or self._transition:
            return False
        self._get(holder)
        return True

    def get_if_in_use(self, holder: object = "pm") -> bool:
        """Take a reference only if the device is awake and somebody holds it so (pm_runtime_get_if_in_use)."""
        return self.usage_count > 0 and self.get_if_active(holder)

    def put(self, holder: object = "pm") -> None:
        """Drop a reference; with the last the autosuspend delay begins (pm_runtime_put_autosuspend). Never sleeps."""
        held = self.holders.get(holder, 0)
        if held <= 1:
            if not held:
                raise ModelError(f"{self.name}: {holder!r} puts a runtime PM reference and holds none")
            del self.holders[holder]
        else:
            self.holders[holder] = held - 1
        self.kernel.ledger.put("pm", holder)
        self.usage_count -= 1
        if self.usage_count == 0 and self.enabled:
            self._idle()

    def awake(self, holder: object = "pm") -> Awake:
        """Return a context that resumes the device and holds a reference. One serves all tasks and may be kept."""
        return Awake(self, holder)

    @property
    def awake_ns(self) -> int:
        """Return how long the device has been in D0 until now."""
        if self.state is D0:
            return self._awake_before_ns + self.kernel.now_ns - self._awake_since_ns
        return self._awake_before_ns

    def _get(self, holder: object) -> None:
        self.usage_count += 1
        self.refs_max = max(self.refs_max, self.usage_count)
        self.holders[holder] = self.holders.get(holder, 0) + 1
        self.kernel.ledger.get("pm", holder)

    def _idle(self) -> None:
        # As in the kernel, the timer stays armed while the device is used again; when it fires it looks at the time
        # of last use.
        self._last_busy_ns = self.kernel.now_ns
        if not self._timer.pending:
            self._timer.arm(self._last_busy_ns + self.autosuspend_ns)

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
        used = callbacks.vram_used_bytes() if callbacks is not None else 0
        state = D3COLD if used < self.d3cold_threshold_bytes else D3HOT
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
        now = self.kernel.now_ns
        self._awake_before_ns += now - self._awake_since_ns
        self.suspends += 1
        self._enter(state, now)
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
        self.resumes += 1
        now = kernel.now_ns
        self._awake_since_ns = now
        self._enter(D0, now)
        self._end_transition()

    def _enter(self, state: str, now_ns: int) -> None:
        self.state = state
        self.history.append((now_ns, state))
        if self.kernel.tracer.on:
            self.kernel.tracer.emit("pm_state", self.name, state)

    def _end_transition(self) -> None:
        self._transition = False
        self._wait.wake_up_all()
