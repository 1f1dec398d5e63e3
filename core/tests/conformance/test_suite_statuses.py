"""How a check ends, and what that is counted as."""

import re
import sys

import pytest
from gpusvm.conformance.suite import Status, verdict
from gpusvm.conformance.suite import defects as defects_module
from gpusvm.driver import no, yes

# `suite.check` is the decorator.
check_module = sys.modules["gpusvm.conformance.suite.check"]


def outcome(run, body, *arguments, statement="", registry=None, name="own.rule", options='since="1.0", ref="x.c:f"'):
    """Run one check whose body this is; its cell."""
    source = f"""
@check("{name}", {options})
def test_it(lab: Lab) -> None:
    \"\"\"The rule.\"\"\"
{body}
"""
    done = run(source, *arguments, drivers=registry(statement) if registry is not None else None)
    (cell,) = done.cells.values()
    return done, cell


def test_a_check_that_ends_is_a_pass(run):
    done, cell = outcome(run, "    lab.bench()")
    assert (done.code, cell["status"], cell["reason"], cell["ref"], cell["trace"]) == (0, "pass", "", "x.c:f", [])
    assert "acme: 1 pass" in done.out


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ("    assert 1 + 1 == 3", "fail", "assert (1 + 1) == 3 (test_own_1.py:9)"),
        ("    assert False, 'no room'", "fail", "no room (test_own_1.py:9)"),
        (
            "    lab.bench().gpu_read(1 << 40)",
            "fail",
            "-ENOENT: GPU fault on 0x10000000000 (test_own_1.py:9)",
        ),
        ("    {}['key']", "error", "KeyError: 'key' (test_own_1.py:9)"),
        ("    raise SystemExit(3)", "error", "SystemExit: 3 (test_own_1.py:9)"),
        (
            "    import pytest\n    pytest.skip('not today')",
            "error",
            "the check skips (not today): only what a driver declares leaves a check out",
        ),
        (
            "    import pytest\n    with pytest.raises(ValueError):\n        pass",
            "fail",
            "DID NOT RAISE ValueError (*)",
        ),
    ],
)
def test_what_a_check_ends_in(run, body, status, reason):
    done, cell = outcome(run, body)
    assert (done.code, cell["status"]) == (1, status)
    assert re.fullmatch(re.escape(reason).replace(r"\*", ".*"), cell["reason"])


def test_what_is_left_in_a_machine_is_a_failure(run):
    body = """
    bench = lab.bench()
    bench.kernel.ledger.get("dma_mapping", "somebody")
"""
    _, cell = outcome(run, body)
    assert cell["status"] == "fail"
    assert cell["reason"] == (
        "ledger: not given back 'dma_mapping' held by 'somebody': 1 (when its machines were taken down)"
    )
    assert cell["trace"][0].startswith("machine 0: ")


def test_a_page_that_is_held_when_the_check_ends_is_a_failure(run):
    body = """
    bench = lab.bench()
    addr = written(bench, 16)
    bench.memory.pin_user_pages_fast(bench.mm, addr, 1)
"""
    _, cell = outcome(run, body)
    assert cell["status"] == "fail"
    assert cell["reason"].startswith("invariant 3 (expected-refcount): the folio has 1025 references: 1 mappings ")


def test_a_check_that_does_not_end_is_an_error_with_the_place(run):
    done, cell = outcome(run, "    while True:\n        pass", "--gpusvm-limit-s", "0.2")
    assert (done.code, cell["status"]) == (1, "error")
    assert cell["reason"] in {f"no end after 0.2 s, at test_own_1.py:{line}" for line in (9, 10)}


def test_a_task_that_does_not_end_is_an_error_with_the_place(run):
    body = """
    bench = lab.bench()
    def turn():
        while True:
            pass
    bench.kernel.spawn(turn, name="turn")
    bench.kernel.settle()
"""
    _, cell = outcome(run, body, "--gpusvm-limit-s", "3")
    assert cell["status"] == "error"
    assert re.fullmatch(r"no end after 3 s, at test_own_1\.py:1[23]", cell["reason"])


def test_a_capability_that_is_declared_to_be_missing_leaves_a_check_out(run):
    options = 'since="1.0", ref="x.c:f", profile="device-memory", requires=("atomics", "eviction")'
    done, cell = outcome(run, "    assert False", options=options)
    assert (done.code, cell["status"]) == (0, "unsupported")
    assert cell["reason"] == ("device_memory: nothing migrates yet; eviction: there is no device memory to evict from")


STATED = """
[[expected]]
check = "own.rule"
kind = "not-yet"
reason = "it is on the list"
ref = "https://example.org/7"
"""


def test_a_stated_failure_is_an_xfail(run, registry):
    done, cell = outcome(run, "    assert False", statement=STATED, registry=registry)
    assert (done.code, cell["status"]) == (0, "xfail")
    assert (cell["reason"], cell["ref"]) == ("not-yet: it is on the list", "https://example.org/7")
    assert "assert False" in cell["details"]


def test_a_stated_failure_that_is_not_there_is_an_xpass(run, registry):
    done, cell = outcome(run, "    pass", statement=STATED, registry=registry)
    assert (done.code, cell["status"]) == (1, "xpass")
    assert (
        cell["reason"]
        == "it passes, and is stated to fail (not-yet): it is on the list; take the entry out (acme.conformance.toml:3)"
    )


def test_a_stated_failure_hides_no_error(run, registry):
    done, cell = outcome(run, "    {}[1]", statement=STATED, registry=registry)
    assert (done.code, cell["status"]) == (1, "error")


def test_a_check_that_is_newer_than_the_driver_is_not_run(run, registry, monkeypatch):
    monkeypatch.setattr(check_module, "SPEC_VERSION", "1.1")
    options = 'since="1.1", ref="x.c:f"'
    done, cell = outcome(run, "    assert False", statement='spec = "1.0"', registry=registry, options=options)
    assert (done.code, cell["status"]) == (0, "not-run")
    assert cell["reason"] == "since spec 1.1, and the driver targets 1.0"


def test_a_check_that_judges_wrongly_is_not_run(run, monkeypatch):
    monkeypatch.setattr(verdict, "DEFECTS", {"own.rule": "it asks for too much, issue 12"})
    done, cell = outcome(run, "    assert False")
    assert (done.code, cell["status"]) == (0, "not-run")
    assert cell["reason"] == "a defect of the suite: it asks for too much, issue 12"
    assert dict(defects_module.DEFECTS) == {}


def test_which_statuses_are_failures():
    assert [status.value for status in Status if status.is_failure] == ["fail", "error", "xpass"]


def test_a_capability_is_used_whether_it_is_declared_or_not(run, registry, with_capabilities):
    source = """
from gpusvm.conformance.checks.test_capabilities import test_atomics, test_eviction
"""
    drivers = registry(info=with_capabilities(atomics=no("none"), eviction=yes("always")))
    cells = run(source, drivers=drivers).cells
    assert {name: cell["status"] for name, cell in cells.items()} == {
        "capability.atomics": "fail",
        "capability.eviction": "fail",
    }
    assert cells["capability.atomics"]["reason"].startswith("atomics: it is there, and declared as 'no: none'")
    assert cells["capability.eviction"]["reason"].startswith("eviction: it is not there, and declared as 'always'")
