"""drivers/dma-buf/dma-fence.c, as of Linux 7.3.4: work that a device will have done."""

from collections.abc import Callable

from gpusvm.errors import ModelError
from gpusvm.kernel import Completion, Kernel


class Fence:
    """Say once that something is done, and tell whoever waits. `error` is 0 or a positive errno; `signaled_ns` is
    when.
    """

    __slots__ = ("_callbacks", "_done", "error", "kernel", "name", "signaled", "signaled_ns")

    def __init__(self, kernel: Kernel, name: str = "fence") -> None:
        self.kernel = kernel
        self.name = name
        self.signaled = False
        self.signaled_ns = 0
        self.error = 0
        self._callbacks: list[Callable[[Fence], None]] = []
        self._done: Completion | None = None  # most fences are signaled before anybody waits

    def signal(self, error: int = 0) -> None:
        """Mark as done (dma_fence_signal), wake the waiters, call the callbacks in order. Signaling twice is an
        error.
        """
        if self.signaled:
            raise ModelError(f"fence {self.name!r} is signaled twice")
        self.signaled = True
        self.signaled_ns = self.kernel.now_ns
        self.error = error
        if self._done is not None:
            self._done.complete_all()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def add_callback(self, callback: Callable[["Fence"], None]) -> bool:
        """Have `callback` called on signaling (dma_fence_add_callback); False, and no call, if that is past."""
        if self.signaled:
            return False
        self._callbacks.append(callback)
        return True

    def wait(self) -> int:
        """Sleep until signaled (dma_fence_wait) and return the error."""
        self.kernel.might_sleep()
        if not self.signaled:
            if self._done is None:
                self._done = self.kernel.completion("dma_fence")
            self._done.wait()
        return self.error
