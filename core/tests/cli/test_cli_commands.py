import json
import os
import subprocess
import sys
from importlib import metadata, resources
from types import SimpleNamespace

import gpusvm as package
import jsonschema
import pyarrow.parquet as pq
import pytest
from gpusvm.compare.plan import DEFAULT_VRAM
from gpusvm.workload import bundled
from referencing import Registry, Resource

VERSION = metadata.version("gpusvm-core")


def without_wall(runs):
    return [{**run, "wall_s": None} for run in runs]


class TestHelp:
    def test_it_imports_nothing_heavy(self):
        """0.3 s are allowed; what would spend them is named here, for times depend on the machine."""
        program = (
            "import sys; from gpusvm.cli import run; run(['compare', '--help'])\n"
            "heavy = ['numpy', 'pyarrow', 'pluggy', 'jinja2', 'structlog', 'greenlet', 'cattrs',\n"
            "         'importlib.metadata', 'urllib.request', 'gpusvm.kernel', 'gpusvm.plugins', 'gpusvm.compare',\n"
            "         'gpusvm.report']\n"
            "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stderr == "[]\n"
        assert "Run drivers on workloads and show the results side by side." in done.stdout

    def test_every_command_is_listed(self, gpusvm):
        done = gpusvm("--help")
        assert done.code == 0
        for name in ("compare", "drivers", "new-driver", "trace"):
            assert f" {name} " in done.out

    def test_the_version(self, gpusvm):
        done = gpusvm("--version")
        assert (done.code, done.out, done.err) == (0, f"gpusvm {VERSION}\n", [])


@pytest.fixture(scope="module")
def compared(acme, write_pingpong, tmp_path_factory):
    """One comparison of two specs on one trace with everything on, and what it left."""
    folder = tmp_path_factory.mktemp("compared")
    trace = folder / "tiny.parquet"
    write_pingpong(trace, pages=64, rounds=2)
    arguments = ["compare", "acme", "acme:chunk_sizes=4K", "--workload", str(trace), "--out", str(folder / "out")]
    environment = {
        **os.environ,
        "PYTHONPATH": str(acme),
        "GPUSVM_DRIVERS": f"none,acme={acme / 'gpusvm_acme' / 'plugin.py'}",
    }
    program = "from gpusvm.cli import main; main()"
    options = ["--events", "--vram", "64MiB", "--thp", "never", "--seed", "7", "--log-level", "info", "--jobs", "2"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments, *options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return SimpleNamespace(
        code=done.returncode,
        out=done.stdout,
        err=done.stderr.splitlines(),
        arguments=arguments,
        trace=trace,
        folder=folder / "out",
        options=options,
    )


class TestCompare:
    def test_a_table(self, compared):
        assert compared.code == 0
        lines = [line.strip() for line in compared.out.splitlines()]
        assert lines[:2] == [str(compared.trace), "64.0 MiB VRAM, thp never, costs h100-pcie5, topology single, seed 7"]
        assert lines[3].split() == ["acme", "acme:chunk_sizes=4K"]
        assert lines[-1] == f"Written to {compared.folder}: compare.html, compare.json, run.json and runs/."

    def test_a_log_for_people(self, compared):
        assert [line.split("[info     ] ")[1].split()[:2] for line in compared.err] == [
            ["comparison", "begins"],
            ["run", "finished"],
            ["run", "finished"],
        ]

    def test_a_directory(self, compared):
        document = json.loads((compared.folder / "run.json").read_text())
        keys = [run["key"] for run in document["runs"]]
        expected = ["compare.html", "compare.json", "run.json", "runs"]
        expected += [f"runs/{key}.{ending}" for key in keys for ending in ("events.jsonl", "json")]
        found = [path.relative_to(compared.folder).as_posix() for path in compared.folder.rglob("*")]
        assert sorted(found) == sorted(expected)
        for key in keys:
            events = (compared.folder / "runs" / f"{key}.events.jsonl").read_text().splitlines()
            assert len(events) > 0
            assert all(isinstance(json.loads(line), list) for line in events)

    def test_every_file_keeps_its_schema(self, compared):
        schemas = {
            name: json.loads(resources.files("gpusvm.compare").joinpath("schema", f"{name}.json").read_text())
            for name in ("compare-1", "run-1", "result-1")
        }
        registry = Registry().with_resources(
            (schema["$id"], Resource.from_contents(schema)) for schema in schemas.values()
        )
        files = [("compare-1", compared.folder / "compare.json"), ("run-1", compared.folder / "run.json")]
        files += [
            ("result-1", path)
            for path in (compared.folder / "runs").iterdir()
            if not path.name.endswith(".events.jsonl")
        ]
        assert len(files) == 4
        for name, path in files:
            validator = jsonschema.Draft202012Validator(schemas[name], registry=registry)
            validator.validate(json.loads(path.read_text()))

    def test_what_was_run(self, compared):
        first, second = json.loads((compared.folder / "compare.json").read_text())["runs"]
        assert (first["driver"], second["driver"]) == ("acme", "acme:chunk_sizes=4K")
        for run in (first, second):
            assert (run["name"], run["workload"], run["accesses"]) == ("acme", str(compared.trace), 256)
            assert (run["vram_bytes"], run["thp"], run["seed"]) == (64 << 20, "never", 7)
            assert run["integrity"]["reads_checked"] > 0
            assert run["integrity"]["mismatches"] == 0
        assert first["objects"]["ranges_max"] < second["objects"]["ranges_max"]

    def test_resume_takes_what_is_there(self, compared, gpusvm):
        again = gpusvm(*compared.arguments, *compared.options, "--resume", "--json", "--log-json")
        assert again.code == 0
        assert again.out == (compared.folder / "compare.json").read_text()
        begins = json.loads(again.err[0])
        assert (begins["event"], begins["runs"], begins["finished_before"]) == ("comparison begins", 2, 2)
        assert len(again.err) == 1

    def test_the_call_gives_the_same_but_for_the_time_it_took(self, compared, only_acme):
        """Another process, one after the other instead of side by side: only wall_s may differ."""
        comparison = package.compare(
            ["acme", "acme:chunk_sizes=4096"], compared.trace, vram=64 << 20, thp="never", seed=7
        )
        document = json.loads((compared.folder / "compare.json").read_text())
        assert without_wall(comparison.runs) == without_wall(document["runs"])

    def test_json_alone_and_a_failed_run(self, gpusvm, acme, tiny, tmp_path, monkeypatch):
        source = (acme / "gpusvm_acme" / "plugin.py").read_text()
        broken = source.replace(
            "    return AcmeDriver(host)", "    print('probe')\n    raise RuntimeError('no hardware')"
        )
        (tmp_path / "broken.py").write_text(broken.replace('name="acme"', 'name="broken"'))
        monkeypatch.setenv("GPUSVM_DRIVERS", f"{os.environ['GPUSVM_DRIVERS']},broken={tmp_path / 'broken.py'}")
        done = gpusvm("compare", "--workload", tiny, "--json", "--jobs", "1")
        assert done.code == 1
        document = json.loads(done.out)
        assert [run["driver"] for run in document["runs"]] == ["acme"]
        (failure,) = document["failures"]
        assert (failure["driver"], failure["kind"], failure["message"]) == ("broken", "RuntimeError", "no hardware")
        assert done.err[:3] == [
            "probe",
            f"gpusvm: broken on {tiny}: RuntimeError: no hardware",
            "Traceback (most recent call last):",
        ]
        assert done.err[-1] == "RuntimeError: no hardware"

    def test_the_default_of_the_command_is_that_of_the_call(self, gpusvm):
        assert f"default: {DEFAULT_VRAM}]" in gpusvm("compare", "--help").out


class TestDrivers:
    def test_an_overview(self, gpusvm, acme):
        done = gpusvm("drivers")
        assert (done.code, done.err) == (0, [])
        lines = [line.rstrip() for line in done.out.splitlines()]
        assert lines[0] == f"acme  {acme / 'gpusvm_acme' / 'plugin.py'}, ABI 1.0, 7.3.4"
        assert lines[1] == "  a new driver: a fault maps the memory where it is"
        assert lines[2] == "  embedding          none: no device memory"
        assert "  atomics            yes: in system memory, over a coherent link" in lines
        assert "chunk_sizes" not in done.out

    def test_one_in_full(self, gpusvm):
        lines = [" ".join(line.split()) for line in gpusvm("drivers", "acme").out.splitlines()]
        assert "chunk_sizes=2M+64K+4K Sizes of a range, largest first." in lines

    def test_json(self, gpusvm, acme):
        document = json.loads(gpusvm("drivers", "--json").out)
        (driver,) = document["drivers"]
        assert (document["schema"], document["abi"], document["broken"]) == (1, "1.0", [])
        assert (driver["name"], driver["version"], driver["distribution"]) == ("acme", None, None)
        assert driver["path"] == str(acme / "gpusvm_acme" / "plugin.py")
        assert driver["awake_with_pages"] is False
        assert driver["capabilities"]["atomics"] == {"supported": True, "how": "in system memory, over a coherent link"}
        assert driver["tunables"]["fault_entries"] == {
            "default": "1024",
            "unit": "count",
            "doc": "Faults that the buffer holds.",
        }
        assert driver["quirks"] == {}

    def test_a_broken_one_is_a_row(self, gpusvm, tmp_path, monkeypatch):
        file = tmp_path / "broken.py"
        file.write_text("\n1 / 0\n")
        monkeypatch.setenv("GPUSVM_DRIVERS", f"{os.environ['GPUSVM_DRIVERS']},broken={file}")
        done = gpusvm("drivers")
        assert (done.code, done.err) == (0, [])
        assert done.out.startswith("acme  ")
        assert done.out.splitlines()[-1] == (
            f"broken  broken: driver plugin 'broken': {file}:2: importing {file}: ZeroDivisionError: division by zero"
        )
        assert json.loads(gpusvm("drivers", "broken", "--json").out)["broken"] == [
            {
                "plugin": "broken",
                "distribution": None,
                "version": None,
                "file": str(file),
                "line": 2,
                "problem": f"importing {file}: ZeroDivisionError: division by zero",
            }
        ]

    def test_none(self, gpusvm, monkeypatch):
        monkeypatch.setenv("GPUSVM_DRIVERS", "none")
        assert gpusvm("drivers").out == "No driver plugin is installed.\n"


class TestTraceInfo:
    def test_numbers(self, gpusvm, tiny):
        done = gpusvm("trace", "info", tiny)
        assert (done.code, done.err) == (0, [])
        lines = [" ".join(line.split()) for line in done.out.splitlines()]
        assert lines[0] == "tiny CPU and GPU write the same pages in turn"
        assert "events 256" in lines
        assert f"file_bytes {tiny.stat().st_size / 1024:.2f} KiB" in lines

    def test_json(self, gpusvm, tiny):
        document = json.loads(gpusvm("trace", "info", tiny, "--json").out)
        assert (document["name"], document["events"], document["agent_switches"]) == ("tiny", 256, 3)
        assert document["events"] == pq.read_metadata(tiny).num_rows

    def test_a_bundled_trace_by_name(self, gpusvm):
        name = bundled()[0]
        assert json.loads(gpusvm("trace", "info", name, "--json").out)["name"] == name


class TestNewDriver:
    def test_it_says_how_to_go_on(self, gpusvm, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        done = gpusvm("new-driver", "two-words")
        assert (done.code, done.err) == (0, [])
        assert done.out.splitlines() == [
            "Written to gpusvm-two-words. To try it, in this environment:",
            "    pip install --no-deps --editable gpusvm-two-words",
            "    gpusvm conform --driver two-words",
            "    pytest gpusvm-two-words",
            "pip may be `uv pip`. TODOs in the code lead on; docs/tutorial/your-first-driver.md goes through them.",
        ]
        written = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
        assert written == [
            "gpusvm-two-words/README.md",
            "gpusvm-two-words/pyproject.toml",
            "gpusvm-two-words/src/gpusvm_two_words/__init__.py",
            "gpusvm-two-words/src/gpusvm_two_words/driver.py",
            "gpusvm-two-words/src/gpusvm_two_words/plugin.py",
            "gpusvm-two-words/src/gpusvm_two_words/py.typed",
            "gpusvm-two-words/tests/test_two_words_driver.py",
        ]
        assert "class TwoWordsDriver:" in (tmp_path / written[3]).read_text()

    def test_its_tests_pass(self, acme, only_acme):
        """What is written has to work as it is: the contract cannot move away from it."""
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(acme.parent / "tests")],
            cwd=acme.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "4 passed" in done.stdout
