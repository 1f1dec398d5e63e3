"""The fault pipeline: order of stages, restarts, answers, accounts, and the two ways that faults come in."""

import contextlib
import errno

import pytest
from gpusvm.driver import STAGES, CallerFaults, FaultAccounts, FaultPipeline, FaultQueues, QueueFaults, Restart
from gpusvm.errors import KernelError
from gpusvm.kernel import Kernel

PAGE = 4096


class Fault:
    def __init__(self, kernel, addr, access=0):
        self.kernel = kernel
        self.addr = addr
        self.access = access
        self.sm = 0
        self.inst = 0
        self.time_ns = kernel.now_ns
        self.answers = []

    def complete(self, number):
        self.answers.append(number)


class Recorded(FaultPipeline):
    """Take 10 ns in gc, 20 in lookup, 30 in migrate, 40 in get_pages, 50 in bind; do per page what `script` says."""

    def __init__(self, kernel, script=None):
        super().__init__(kernel, FaultAccounts())
        self.script = dict(script or {})
        self.log = []

    def _stage(self, name, ns, job):
        self.kernel.sleep_ns(ns)
        self.log.append((name, job.fault.addr // PAGE))
        todo = self.script.get((name, job.fault.addr // PAGE), [])
        step = todo.pop(0) if todo else True
        if isinstance(step, Exception):
            raise step
        return step

    def begin(self, job):
        self.log.append(("begin", job.fault.addr // PAGE))
        return True

    def end(self, job):
        self.log.append(("end", job.fault.addr // PAGE))

    def collect_garbage(self, job):
        return self._stage("gc", 10, job)

    def lookup(self, job):
        return self._stage("lookup", 20, job)

    def migrate(self, job):
        return self._stage("migrate", 30, job)

    def get_pages(self, job):
        return self._stage("get_pages", 40, job)

    def bind(self, job):
        return self._stage("bind", 50, job)

    def replay(self, batch):
        self.log.append(("replay", len(batch)))


def serve(pipeline, *pages):
    faults = [Fault(pipeline.kernel, page * PAGE) for page in pages]
    pipeline.run(faults)
    return faults


def names(pipeline):
    return [name for name, _ in pipeline.log]


def test_a_fault_passes_every_stage_once_and_each_stage_has_its_time():
    pipeline = Recorded(Kernel())
    (fault,) = serve(pipeline, 7)
    assert names(pipeline) == ["begin", "gc", "lookup", "migrate", "get_pages", "bind", "end", "replay"]
    assert fault.answers == [0]
    assert pipeline.accounts.stages() == dict(zip(STAGES, (0, 10, 20, 30, 40, 50, 0), strict=True))
    assert list(pipeline.accounts.latency_ns) == [150]


def test_the_second_fault_of_a_batch_waits_in_the_queue_stage():
    pipeline = Recorded(Kernel())
    serve(pipeline, 1, 2)
    assert pipeline.accounts.stages()["queue"] == 150
    assert list(pipeline.accounts.latency_ns) == [150, 300]


def test_restart_begins_again_at_gc_and_is_counted():
    kernel = Kernel()
    pipeline = Recorded(kernel, {("bind", 1): [Restart()]})
    (fault,) = serve(pipeline, 1)
    assert names(pipeline) == ["begin", *["gc", "lookup", "migrate", "get_pages", "bind"] * 2, "end", "replay"]
    assert fault.answers == [0]
    assert kernel.stats.retries == 1
    assert pipeline.accounts.stages()["bind"] == 100


def test_a_stage_that_answers_false_leaves_with_success():
    pipeline = Recorded(Kernel(), {("lookup", 1): [False]})
    (fault,) = serve(pipeline, 1)
    assert names(pipeline) == ["begin", "gc", "lookup", "end", "replay"]
    assert fault.answers == [0]


@pytest.mark.parametrize("stage", ["gc", "lookup", "migrate", "get_pages", "bind"])
def test_an_error_of_any_stage_is_the_answer_and_ends_only_its_fault(stage):
    pipeline = Recorded(Kernel(), {(stage, 1): [KernelError(errno.EPERM, "no")]})
    first, second = serve(pipeline, 1, 2)
    assert first.answers == [errno.EPERM]
    assert second.answers == [0]
    assert pipeline.accounts.failed == 1
    assert names(pipeline).count("end") == 2


def test_a_bounded_pipeline_gives_up_with_ebusy():
    class Bounded(Recorded):
        restart_limit = 2

    pipeline = Bounded(Kernel(), {("bind", 1): [Restart(), Restart(), Restart()]})
    (fault,) = serve(pipeline, 1)
    assert fault.answers == [errno.EBUSY]


def test_faults_that_the_first_one_covers_get_its_answer_without_stages():
    class Sorted(Recorded):
        def covers(self, job, answer, other):
            return other.addr == job.fault.addr

    pipeline = Sorted(Kernel())
    faults = serve(pipeline, 1, 1, 1, 2)
    assert names(pipeline).count("bind") == 2
    assert [fault.answers for fault in faults] == [[0]] * 4
    assert list(pipeline.accounts.latency_ns) == [150, 150, 150, 300]


def queues_of(kernel, pipeline, *, slice_ms=0, capacity=4):
    return FaultQueues(
        kernel,
        pipeline,
        workqueue=kernel.workqueue("pf", max_active=2),
        queues=2,
        capacity=capacity,
        slice_ms=slice_ms,
        guard=contextlib.nullcontext,
    )


def test_queued_faults_are_served_by_a_worker_in_order_and_marked_with_their_space():
    kernel = Kernel()
    pipeline = Recorded(kernel)
    source = QueueFaults(queues_of(kernel, pipeline), inst=5, queue=1)
    faults = [Fault(kernel, page * PAGE) for page in (3, 1, 2)]
    assert source.submit(faults) == 3
    assert pipeline.log == []
    kernel.settle()
    assert [page for name, page in pipeline.log if name == "begin"] == [3, 1, 2]
    assert [fault.inst for fault in faults] == [5, 5, 5]
    assert [fault.answers for fault in faults] == [[0], [0], [0]]
    assert kernel.stats.gpu_faults == 3


def test_a_full_queue_takes_no_more():
    kernel = Kernel()
    source = QueueFaults(queues_of(kernel, Recorded(kernel), capacity=2), inst=0, queue=0)
    assert source.submit([Fault(kernel, page * PAGE) for page in range(3)]) == 2


def test_queues_are_served_side_by_side():
    kernel = Kernel()
    pipeline = Recorded(kernel)
    queues = queues_of(kernel, pipeline)
    for queue in (0, 1):
        QueueFaults(queues, inst=queue, queue=queue).submit([Fault(kernel, queue * PAGE)])
    kernel.settle()
    assert list(pipeline.accounts.latency_ns) == [150, 150]


def test_a_worker_ends_its_slice_and_comes_back_for_the_rest():
    kernel = Kernel()
    turns = []

    @contextlib.contextmanager
    def turn():
        turns.append(kernel.now_ns)
        yield

    pipeline = Recorded(kernel)
    queues = queues_of(kernel, pipeline, slice_ms=1)
    queues.slice_ns = 200
    queues.guard = turn
    QueueFaults(queues, inst=0, queue=0).submit([Fault(kernel, page * PAGE) for page in range(4)])
    kernel.settle()
    assert turns == [0, 300]
    assert len(pipeline.accounts.latency_ns) == 4


def test_faults_of_the_callers_thread_are_answered_when_submit_returns():
    kernel = Kernel()
    replays = []
    source = CallerFaults(Recorded(kernel), inst=3)
    source.on_replay(lambda: replays.append(kernel.now_ns))
    fault = Fault(kernel, PAGE)
    assert source.submit([fault]) == 1
    assert (fault.answers, fault.inst, replays) == ([0], 3, [150])
