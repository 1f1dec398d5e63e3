"""How far a comparison is, on a terminal; a pipe gets nothing, as every other test of the command line shows."""

import io
import os
import subprocess
import sys

import pytest
from gpusvm.cli.progress import eta_text, progress_shown


@pytest.mark.parametrize(
    ("eta_s", "text"),
    [
        (None, ""),
        (0.2, "about 0 s left"),
        (99.4, "about 99 s left"),
        (100, "about 2 min left"),
        (3601, "about 60 min left"),
    ],
)
def test_the_time_that_is_left(eta_s, text):
    assert eta_text(eta_s) == text


def test_a_pipe_gets_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_shown(quiet=False) as listener:
        assert listener is None


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("compare", "--workload", "TINY"), (b"0/1", b"runs")),
        (("conform", "--check", "access.unmapped.refused"), (b"1/1", b"checks")),
    ],
    ids=["compare", "conform"],
)
def test_a_terminal_gets_a_bar(only_acme, tiny, arguments, shown):
    terminal, end = os.openpty()
    command = [sys.executable, "-c", "from gpusvm.cli import main; main()", *arguments, "--json"]
    command = [str(tiny) if each == "TINY" else each for each in command]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=end)
    os.close(end)
    drawn = b""
    while True:
        try:
            drawn += os.read(terminal, 4096)
        except OSError:  # the last process that had the terminal open has ended
            break
    os.close(terminal)
    process.communicate()
    assert process.returncode == 0
    assert [each for each in shown if each not in drawn] == []
