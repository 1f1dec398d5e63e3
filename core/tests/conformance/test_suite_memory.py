"""A check leaves nothing of its machines behind, however it ends: hundreds of them run in one process."""

import gc
import sys
from types import SimpleNamespace

CHECKS = """
import weakref
import machines_seen

@check("own.passes", since="1.0", ref="lib/own.c:own")
def test_passes(lab: Lab) -> None:
    \"\"\"It passes.\"\"\"
    bench = lab.bench()
    machines_seen.refs.append(weakref.ref(bench.memory))
    bench.gpu_write(written(bench, 4), 4)

@check("own.fails", since="1.0", ref="lib/own.c:own")
def test_fails(lab: Lab) -> None:
    \"\"\"It fails.\"\"\"
    bench = lab.bench(mode="explored")
    machines_seen.refs.append(weakref.ref(bench.memory))
    wait = bench.kernel.completion("never")
    bench.kernel.spawn(wait.wait, name="waiter", daemon=True)
    bench.kernel.settle()
    assert bench.gpu_write(written(bench, 4), 4) == 0

@check("own.is-expected-to-fail", since="1.0", ref="lib/own.c:own")
def test_expected(lab: Lab) -> None:
    \"\"\"It fails, and that is stated.\"\"\"
    bench = lab.bench()
    machines_seen.refs.append(weakref.ref(bench.memory))
    assert bench.gpu_write(written(bench, 4), 4) == 0

@check("own.skips", since="1.0", ref="lib/own.c:own")
def test_skips(lab: Lab) -> None:
    \"\"\"It skips.\"\"\"
    import pytest

    bench = lab.bench()
    machines_seen.refs.append(weakref.ref(bench.memory))
    pytest.skip("no")

@check("own.last", since="1.0", ref="lib/own.c:own")
def test_last(lab: Lab) -> None:
    \"\"\"Python keeps the last exception that nobody has caught; this one passes.\"\"\"
    import gc

    lab.bench()
    gc.collect()
    machines_seen.alive = [each() is not None for each in machines_seen.refs]
"""

STATED = """
[[expected]]
check = "own.is-expected-to-fail"
kind = "bug"
reason = "it does"
ref = "lib/own.c"
"""


def test_the_machines_of_a_check_are_gone_when_the_next_one_runs(run, registry, monkeypatch):
    seen = SimpleNamespace(refs=[], alive=None)
    monkeypatch.setitem(sys.modules, "machines_seen", seen)
    found = run(CHECKS, drivers=registry(STATED))
    statuses = {name: cell["status"] for name, cell in found.cells.items()}
    assert statuses == {
        "own.passes": "pass",
        "own.fails": "fail",
        "own.is-expected-to-fail": "xfail",
        "own.skips": "error",
        "own.last": "pass",
    }
    assert seen.alive == [False, False, False, False]
    gc.collect()
    assert [each() for each in seen.refs] == [None] * 4
