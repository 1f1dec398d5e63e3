"""The matrix is the same in one process and spread over several, by `gpusvm conform` and by pytest alone."""

import json
import os
import subprocess
import sys
import threading

import pytest
from gpusvm.conformance.conforming import conform

# Passes, expected failures, and what dmirror declares to lack.
CHECKS = ("access.*", "capability.*", "change.fork-*", "power.*", "teardown.close-*")

DUMP = """
import json
import pytest
from gpusvm.conformance.pytest_plugin import CELLS

@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    if not hasattr(session.config, "workerinput"):
        with open("cells.json", "w") as file:
            json.dump(list(session.config.stash[CELLS].values()), file)
"""

FORKED = """
import sys
from gpusvm.conformance.conforming import conform

found = conform("dmirror", checks={checks!r}, jobs={jobs})
assert "xdist" not in sys.modules, "it starts interpreters"
print(found.to_json())
"""

ORDER = """
import json
from gpusvm.conformance.conforming import conform

begun = []
found = conform("xe", checks={checks!r}, jobs=1, progress=lambda done, total, last: begun.append(last.split(":")[0]))
print(json.dumps([begun, [each.check for each in found.results]]))
"""


def told(results):
    return {(each["check"], each["driver"]): (each["status"], each["reason"], each["ref"]) for each in results}


@pytest.fixture(scope="module")
def serial():
    found = told(conform("dmirror", checks=CHECKS).to_dict()["results"])
    assert {status for status, _, _ in found.values()} == {"pass", "xfail", "unsupported"}
    return found


@pytest.mark.parametrize("jobs", [1, 2])
def test_by_processes_that_are_forked(serial, jobs):
    done = subprocess.run(
        [sys.executable, "-c", FORKED.format(checks=CHECKS, jobs=jobs)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert told(json.loads(done.stdout)["results"]) == serial


@pytest.mark.parametrize("jobs", [1, 2])
def test_by_new_interpreters_where_another_thread_forbids_to_fork(serial, jobs):
    over = threading.Event()
    other = threading.Thread(target=over.wait)
    other.start()
    try:
        assert told(conform("dmirror", checks=CHECKS, jobs=jobs).to_dict()["results"]) == serial
    finally:
        over.set()
        other.join()


def test_what_takes_long_is_begun_first_and_the_matrix_has_the_order_of_the_catalogue():
    checks = ("access.turns.*", "orders.exit-swap", "rights.zero-page.read")
    begun = subprocess.run(
        [sys.executable, "-c", ORDER.format(checks=checks)], capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(begun) == [
        ["orders.exit-swap", "access.turns.both-see", "rights.zero-page.read"],
        ["access.turns.both-see", "orders.exit-swap", "rights.zero-page.read"],
    ]


def test_from_a_process_that_cannot_be_forked(serial):
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        assert told(conform("dmirror", checks=CHECKS, jobs=1).to_dict()["results"]) == serial
    finally:
        done.set()
        other.join()


@pytest.mark.parametrize("spread", [(), ("-n", "2"), ("-n", "2", "--dist", "loadfile")])
def test_by_pytest(serial, spread, tmp_path):
    (tmp_path / "dump.py").write_text(DUMP)
    checks = [f"--gpusvm-check={glob}" for glob in CHECKS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "dump", "--driver", "dmirror"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, *checks, *spread, "--pyargs", "gpusvm.conformance.checks"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert told(json.loads((tmp_path / "cells.json").read_text())) == serial
