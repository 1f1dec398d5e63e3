import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import structlog
from gpusvm.cli import run
from gpusvm.cli.new_driver import write_driver
from gpusvm.plugins import installed
from gpusvm.workload import CPU, GPU, READ, WRITE, Allocation, write_trace


@pytest.fixture(scope="session")
def acme(tmp_path_factory):
    """What `gpusvm new-driver acme` writes: core can be tested with it where no driver is installed."""
    folder = tmp_path_factory.mktemp("acme") / "gpusvm-acme"
    write_driver("acme", folder)
    return folder / "src"


@pytest.fixture
def only_acme(acme, monkeypatch):
    """Make acme the only driver, in this process and in those that it starts."""
    monkeypatch.syspath_prepend(acme)
    monkeypatch.setenv("PYTHONPATH", str(acme))
    monkeypatch.setenv("GPUSVM_DRIVERS", f"none,acme={acme / 'gpusvm_acme' / 'plugin.py'}")
    _forget_acme()
    yield
    _forget_acme()  # or other tests of this process would find no driver but acme


def _forget_acme():
    installed._load.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "gpusvm_acme"]:
        del sys.modules[name]  # another test's acme is another driver


def _write_pingpong(path, *, pages, rounds):
    """Write a trace in which CPU and GPU write the same pages in turn."""
    turns = np.tile(np.repeat([CPU, GPU], pages), rounds)
    return write_trace(
        path,
        path.stem,
        about="CPU and GPU write the same pages in turn",
        allocations=[Allocation(name="data", start_page=0, pages=pages)],
        time_ns=np.arange(len(turns)) * 1000,
        agent=turns,
        page=np.tile(np.arange(pages), 2 * rounds),
        op=np.where(np.arange(len(turns)) % 3 == 0, READ, WRITE),
    )


@pytest.fixture(scope="session")
def write_pingpong():
    return _write_pingpong


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.parquet"
    _write_pingpong(path, pages=64, rounds=2)
    return path


@pytest.fixture
def slow(tmp_path):
    """A trace that takes seconds where `tiny` takes milliseconds."""
    path = tmp_path / "slow.parquet"
    _write_pingpong(path, pages=1024, rounds=24)
    return path


@pytest.fixture
def gpusvm(only_acme, capfd):
    """Run a command line in this process; returns its exit code, standard output, and lines of standard error."""

    def gpusvm(*arguments):
        code = run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err.splitlines())

    yield gpusvm
    structlog.reset_defaults()


@pytest.fixture
def refused(gpusvm):
    """Run a command line that has to fail as bad input does; returns the one line that it says."""

    def refused(*arguments):
        done = gpusvm(*arguments)
        assert (done.code, done.out) == (2, "")
        (line,) = done.err
        return line

    return refused


@pytest.fixture
def start(only_acme):
    """Start the command line as a process of its own, in a session of its own as a terminal would have it."""
    started = []

    def start(*arguments, **options):
        command = [sys.executable, "-c", "from gpusvm.cli import main; main()", *map(str, arguments)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, 9)
        process.communicate()
