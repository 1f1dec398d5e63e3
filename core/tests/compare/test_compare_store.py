import json

import pytest
from gpusvm.compare.store import RunDirectory
from gpusvm.errors import InputError

DOCUMENT = {"schema": 1}


def refusal(path, *, resume=False):
    with pytest.raises(InputError) as caught:
        RunDirectory(path).check(resume=resume)
    return str(caught.value)


def test_a_new_and_an_empty_directory_are_taken(tmp_path):
    RunDirectory(tmp_path / "new").check(resume=False)
    RunDirectory(tmp_path).check(resume=False)
    RunDirectory(tmp_path / "new").check(resume=True)
    assert not (tmp_path / "new").exists()


def test_a_file_is_refused(tmp_path):
    file = tmp_path / "out"
    file.touch()
    assert refusal(file) == f"{file}: expected a directory, got a file; name another one"


def test_a_directory_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    for resume in (False, True):
        assert refusal(tmp_path, resume=resume) == (
            f"{tmp_path}: the directory is not empty and holds no comparison; name another one"
        )


def test_a_finished_directory_is_taken_only_to_resume(tmp_path):
    RunDirectory(tmp_path).begin(DOCUMENT)
    assert refusal(tmp_path) == (
        f"{tmp_path}: the directory holds a comparison already; complete it with --resume, or name another one"
    )
    RunDirectory(tmp_path).check(resume=True)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "out"
    with pytest.raises(InputError) as caught:
        RunDirectory(path).begin(DOCUMENT)
    assert str(caught.value) == f"{path}: cannot be written: Not a directory"


def test_a_result_is_kept_whole(tmp_path):
    store = RunDirectory(tmp_path / "deep" / "out")
    store.begin(DOCUMENT)
    assert store.finished("00ff") is None
    store.finish("00ff", {"result": {"sim_ns": 7}})
    assert store.finished("00ff") == {"sim_ns": 7}
    assert sorted(path.name for path in store.path.rglob("*")) == ["00ff.json", "run.json", "runs"]
    assert json.loads((store.path / "run.json").read_text()) == DOCUMENT


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    store = RunDirectory(tmp_path)
    store.begin(DOCUMENT)
    store.write("compare.json", "whole")
    with pytest.raises(UnicodeEncodeError):
        store.write("compare.json", "half \ud800")
    assert (tmp_path / "compare.json").read_text() == "whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compare.json", "run.json", "runs"]


def test_a_write_that_the_system_refuses_is_named(tmp_path):
    store = RunDirectory(tmp_path)
    store.begin(DOCUMENT)
    (tmp_path / "compare.json").mkdir()
    with pytest.raises(InputError) as caught:
        store.write("compare.json", "whole")
    assert str(caught.value) == f"{tmp_path}/compare.json: cannot be written: Is a directory"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compare.json", "run.json", "runs"]


def test_a_damaged_result_is_named(tmp_path):
    store = RunDirectory(tmp_path)
    store.begin(DOCUMENT)
    (tmp_path / "runs" / "00ff.json").write_text("{")
    with pytest.raises(InputError) as caught:
        store.finished("00ff")
    assert str(caught.value) == (
        f"{tmp_path}/runs/00ff.json: expected JSON: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1); delete the file to run it again"
    )


def test_what_was_begun_for_nothing_is_removed(tmp_path):
    store = RunDirectory(tmp_path / "deep" / "out")
    store.begin(DOCUMENT)
    store.discard()
    assert list(tmp_path.iterdir()) == []


def test_what_holds_a_result_is_not_removed(tmp_path):
    store = RunDirectory(tmp_path / "out")
    store.begin(DOCUMENT)
    store.finish("00ff", {"result": {}})
    store.discard()
    assert store.finished("00ff") == {}


def test_a_directory_that_was_there_is_not_removed(tmp_path):
    store = RunDirectory(tmp_path)
    store.begin(DOCUMENT)
    store.discard()
    assert tmp_path.exists()


def test_another_comparison_does_not_replace_the_one_that_is_there(tmp_path):
    def document(*drivers):
        return {"runs": [{"key": driver, "spec": {"driver": driver, "workload": "scan"}} for driver in drivers]}

    RunDirectory(tmp_path).begin(document("xe", "nouveau"))
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(
        InputError,
        match=f"^{tmp_path}: the directory holds a comparison with nouveau on scan, which this one does not have, or "
        "with other options; repeat all of its arguments, or name another directory$",
    ):
        RunDirectory(tmp_path).begin(document("xe", "dmirror"))
    assert (tmp_path / "run.json").read_bytes() == before
    RunDirectory(tmp_path).begin(document("xe", "nouveau", "dmirror"))
