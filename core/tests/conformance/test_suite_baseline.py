"""Two runs of the suite, one beside the other."""

import json

import attrs
import pytest
from gpusvm.conformance.conforming import conform
from gpusvm.conformance.suite import Status
from gpusvm.conformance.suite.baseline import read_baseline
from gpusvm.conformance.suite.conformance import check_directory
from gpusvm.errors import InputError


@pytest.fixture
def found(registry):
    return conform(registry=registry(), checks=["access.*"])


def changed(found, **statuses):
    """Return the run with other statuses, by the last word of the check."""
    results = [
        attrs.evolve(each, status=Status(statuses[each.check.rpartition(".")[2].replace("-", "_")]), reason="it is")
        if each.check.rpartition(".")[2].replace("-", "_") in statuses
        else each
        for each in found.results
    ]
    return attrs.evolve(found, results=tuple(results))


def test_nothing_is_otherwise(found, tmp_path):
    assert read_baseline(found.save(tmp_path / "a") / "conform.json").changes(found) == ()
    found.save(tmp_path / "a")  # in place of the first


def test_what_is_otherwise(found, tmp_path):
    old = changed(found, cpu_wrote="fail", cpu_reads="xfail", both_see="xpass", refused="pass", not_written="xfail")
    now = changed(
        found, cpu_wrote="pass", cpu_reads="unsupported", both_see="error", refused="fail", not_written="pass"
    )
    changes = read_baseline(old.save(tmp_path / "a") / "conform.json").changes(now)
    assert [str(each) for each in changes] == [
        "REGRESSION access.write.cpu-reads acme: xfail -> unsupported: it is",
        "REGRESSION access.unmapped.refused acme: pass -> fail: it is",
        "FIX access.read.cpu-wrote acme: fail -> pass: it is",
        "FIX access.read-only.not-written acme: xfail -> pass: it is",
    ]


def test_what_is_new_and_what_is_gone(found, tmp_path):
    fewer = attrs.evolve(found, results=found.results[1:])
    path = tmp_path / "fewer.json"
    path.write_text(fewer.to_json(), "utf-8")
    assert [str(each) for each in read_baseline(path).changes(found)] == ["NEW access.read.cpu-wrote acme: pass"]
    path = found.save(tmp_path / "b") / "conform.json"
    assert read_baseline(path).changes(fewer) == ()  # not all checks were asked for
    whole = attrs.evolve(fewer, complete=True)
    assert [str(each) for each in read_baseline(path).changes(whole)] == ["GONE access.read.cpu-wrote acme: pass"]


def test_what_is_no_baseline(found, tmp_path):
    path = found.save(tmp_path / "a") / "conform.json"
    document = json.loads(path.read_text())

    def said(text):
        path.write_text(text if isinstance(text, str) else json.dumps({**document, **text}))
        with pytest.raises(InputError) as problem:
            read_baseline(path).changes(found)
        return str(problem.value).removeprefix(f"{path}: ")

    assert said("{") == "no JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    assert said({"schema": 2}) == "schema: expected one of 1, got 2"
    assert said({"spec": "2.0"}) == "it is of spec 2.0, whose checks mean something else than 1.0's"
    assert said({"quirks": "fixed"}) == "it was run with quirks fixed, and this is to be with as_written"
    with pytest.raises(InputError, match=r"none\.json: cannot be read: No such file or directory"):
        read_baseline(tmp_path / "none.json")


def test_where_a_run_cannot_be_kept(found, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as problem:
        found.save(tmp_path / "file")
    assert str(problem.value) == f"{tmp_path / 'file'}: expected a directory, got a file; name another one"
    with pytest.raises(InputError) as problem:
        found.save(tmp_path)
    assert str(problem.value) == (
        f"{tmp_path}: the directory is not empty and holds no run of the suite; name another one"
    )
    with pytest.raises(InputError) as problem:
        check_directory(tmp_path / "file" / "run")  # before anything runs
    assert str(problem.value) == f"{tmp_path / 'file' / 'run'}: cannot be written: Not a directory"
