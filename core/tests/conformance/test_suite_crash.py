"""A check that ends its process, and a plugin that pytest loads everywhere."""

import os
import re
import subprocess
import sys

import pytest

CRASHING = """
import os
import attrs
from gpusvm.plugins import hookimpl
from gpusvm_acme.plugin import INFO

def make(host):
    os._exit(3)

@hookimpl
def gpusvm_drivers():
    return attrs.evolve(INFO, name="crashing", make=make)
"""


@pytest.fixture
def command(acme_source, tmp_path):
    """Run a Python module in a process that has acme, and a driver that ends the process of whoever builds it."""
    (tmp_path / "crashing.py").write_text(CRASHING)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        "PYTHONPATH": str(acme_source),
        "GPUSVM_DRIVERS": f"none,acme={acme_source}/gpusvm_acme/plugin.py,crashing={tmp_path / 'crashing.py'}",
    }

    def command(*arguments):
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    return command


def test_a_check_that_ends_its_process_is_an_error_and_the_others_go_on(command):
    main = "from gpusvm.cli import main; main()"
    checks = ["--check", "access.read.cpu-wrote", "--check", "access.unmapped.refused"]
    done = command("-c", main, "conform", "--jobs", "1", *checks)
    assert done.returncode == 1, done.stderr
    reasons = re.findall(r"^error (\S+) crashing: (.*)$", done.stdout, re.MULTILINE)
    assert [(check, re.sub(r"\d+", "N", why)) for check, why in reasons] == [
        ("access.read.cpu-wrote", "its process ended while it ran (gpusvm/conformance/checks/test_access.py:N)"),
        ("access.unmapped.refused", "its process ended while it ran (gpusvm/conformance/checks/test_access.py:N)"),
    ]
    assert "acme: 2 pass" in done.stdout


def test_pytest_loads_no_more_than_it_takes_to_notice_a_check(command, tmp_path):
    (tmp_path / "test_other.py").write_text(
        "import sys\n"
        "def test_what_is_there():\n"
        "    mine = {name for name in sys.modules if name.partition('.')[0] == 'gpusvm'}\n"
        "    assert mine == {'gpusvm', 'gpusvm.conformance', 'gpusvm.conformance.pytest_plugin'}\n"
    )
    done = command("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_other.py")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--driver", "acm"], "driver spec 'acm': unknown driver 'acm'; did you mean 'acme'?"),
        (["--driver", "acme", "--gpusvm-check", "acces.*"], "no check is called 'acces.*'; did you mean 'access.*'?"),
    ],
)
def test_bad_input_is_one_line_of_pytests(command, arguments, said):
    done = command("-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "gpusvm.conformance.checks", *arguments)
    assert (done.returncode, done.stderr.strip()) == (4, f"ERROR: {said}")


def test_bad_input_is_said_by_the_other_processes_too(command):
    checks = ["--pyargs", "gpusvm.conformance.checks", "--driver", "acme", "--gpusvm-check", "acces.*"]
    done = command("-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "1", *checks)
    assert done.returncode == 1
    assert "no check is called 'acces.*'; did you mean 'access.*'?" in done.stdout
