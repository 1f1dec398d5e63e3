"""Ctrl-C: what had finished stays readable, and the same command with --resume completes it."""

import json
import os
import signal
import subprocess
import sys

LOG = ("--jobs", "1", "--log-level", "info", "--log-json")


def wait_for(process, event):
    """Read the log until `event`; the process runs on meanwhile."""
    for line in process.stderr:
        if json.loads(line)["event"] == event:
            return
    raise AssertionError(f"{event!r} never happened")


def interrupt(process):
    """Press Ctrl-C: a terminal sends the signal to the workers as well."""
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err.splitlines()


def test_with_a_directory(start, gpusvm, tiny, slow, tmp_path):
    out = tmp_path / "out"
    arguments = ["compare", "acme:chunk_sizes=4K", "--workload", tiny, "--workload", slow, "--out", out, *LOG]
    process = start(*arguments)
    wait_for(process, "run finished")
    code, said, err = interrupt(process)
    assert code == 130
    command = " ".join(["gpusvm", *map(str, arguments), "--resume"])
    assert err == [f"gpusvm: interrupted: 1 of 2 runs finished and are in {out / 'runs'}; to complete them: {command}"]
    assert said.startswith(str(tiny))  # the table of what there is
    (file,) = (out / "runs").iterdir()
    finished = json.loads(file.read_text())
    assert finished["spec"]["workload"] == str(tiny)
    assert not (out / "compare.json").exists()

    resumed = gpusvm(*arguments, "--resume", "--json")
    assert resumed.code == 0
    runs = json.loads(resumed.out)["runs"]
    assert [run["workload"] for run in runs] == [str(tiny), str(slow)]
    assert runs[0] == finished["result"]


def test_without_a_directory(start, tiny, slow):
    process = start("compare", "acme:chunk_sizes=4K", "--workload", tiny, "--workload", slow, "--json", *LOG)
    wait_for(process, "run finished")
    code, said, err = interrupt(process)
    assert code == 130
    assert err == [
        "gpusvm: interrupted: 1 of 2 runs finished; with --out DIR they are kept, and --resume completes them"
    ]
    assert [run["workload"] for run in json.loads(said)["runs"]] == [str(tiny)]


def test_before_anything_finished(start, slow, tmp_path):
    process = start("compare", "acme:chunk_sizes=4K", "--workload", slow, "--out", tmp_path / "out", *LOG)
    wait_for(process, "comparison begins")
    code, said, err = interrupt(process)
    assert (code, said) == (130, "")
    assert err[-1].startswith("gpusvm: interrupted: 0 of 1 runs finished and are in ")


def test_no_worker_outlives_a_parent_that_was_killed(start, slow):
    process = start("compare", "acme:chunk_sizes=4K", "--workload", slow, *LOG)
    wait_for(process, "comparison begins")
    process.kill()
    process.communicate(timeout=60)  # the workers hold standard error open until they end
    assert process.returncode == -signal.SIGKILL


def test_a_reader_that_goes_away(only_acme, tiny):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", "from gpusvm.cli import main; main()", "trace", "info", str(tiny)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
