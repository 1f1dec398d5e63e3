import json

import attrs
import pytest
from gpusvm.compare import Failure, InterruptedComparison, SerialExecutor
from gpusvm.compare.comparing import run_plan
from gpusvm.compare.jobs import Outcome
from gpusvm.compare.store import RunDirectory
from gpusvm.errors import InputError


class Backwards:
    """An executor that finishes the last job first, as a pool may."""

    def run(self, function, jobs):
        for index in reversed(range(len(jobs))):
            yield index, function(jobs[index])


@pytest.fixture
def answer(example):
    results = {(run["driver"], run["workload"]): run for run in example["runs"]}
    return lambda job: Outcome(result=results[job.spec.driver, job.spec.workload])


def test_results_stand_in_the_order_asked_for(plan, example, answer):
    for executor in (SerialExecutor(), Backwards()):
        comparison = run_plan(plan, store=None, executor=executor, run=answer)
        assert list(comparison.runs) == example["runs"]
        assert comparison.ok


def test_a_directory_gets_every_file(plan, example, answer, tmp_path):
    comparison = run_plan(plan, store=RunDirectory(tmp_path), executor=SerialExecutor(), run=answer)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["compare.html", "compare.json", "run.json", "runs"]
    assert json.loads((tmp_path / "compare.json").read_text()) == comparison.to_dict()
    assert json.loads((tmp_path / "run.json").read_text()) == plan.document
    for planned, result in zip(plan.runs, example["runs"], strict=True):
        assert json.loads((tmp_path / "runs" / f"{planned.key}.json").read_text())["result"] == result


def test_save_writes_the_same_files(comparison, tmp_path):
    assert comparison.save(tmp_path / "out") == tmp_path / "out"
    assert (tmp_path / "out" / "compare.json").read_text() == comparison.to_json()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "compare.html",
        "compare.json",
        "run.json",
        "runs",
    ]


def test_progress_is_told_from_start_to_end(plan, answer):
    heard = []
    run_plan(plan, store=None, executor=SerialExecutor(), run=answer, progress=heard.append)
    assert [(progress.done, progress.total) for progress in heard] == [(done, 8) for done in range(9)]
    assert heard[0].last is None
    assert heard[0].eta_s is None
    assert heard[1].last == plan.runs[0].spec
    assert heard[1].eta_s == pytest.approx(heard[1].elapsed_s * 7)
    assert heard[8].eta_s == 0


def test_an_interrupt_keeps_what_finished_and_resume_runs_the_rest(plan, example, answer, tmp_path):
    asked = []

    def until_interrupted(job):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(job.spec)
        return answer(job)

    store = RunDirectory(tmp_path)
    with pytest.raises(InterruptedComparison) as caught:
        run_plan(plan, store=store, executor=SerialExecutor(), run=until_interrupted)
    assert str(caught.value) == "interrupted with 3 of 8 runs finished"
    assert list(caught.value.comparison.runs) == example["runs"][:3]
    assert len(list((tmp_path / "runs").iterdir())) == 3
    assert not (tmp_path / "compare.json").exists()

    heard, asked_again = [], []

    def counting(job):
        asked_again.append(job.spec)
        return answer(job)

    comparison = run_plan(plan, store=store, executor=SerialExecutor(), run=counting, progress=heard.append)
    assert list(comparison.runs) == example["runs"]
    assert asked + asked_again == [planned.spec for planned in plan.runs]
    assert (heard[0].done, heard[0].reused) == (3, 3)


def test_a_failed_run_stands_beside_the_others(plan, example, answer, tmp_path):
    failure = Failure(driver="dmirror", workload="triad", kind="LedgerError", message="2 bo left", trace=None)

    def failing(job):
        if (job.spec.driver, job.spec.workload) == ("dmirror", "triad"):
            return Outcome(failure=failure)
        return answer(job)

    comparison = run_plan(plan, store=RunDirectory(tmp_path), executor=Backwards(), run=failing)
    assert comparison.failures == (failure,)
    assert not comparison.ok
    assert len(comparison.runs) == 7
    assert json.loads((tmp_path / "compare.json").read_text())["failures"] == [attrs.asdict(failure)]
    assert len(list((tmp_path / "runs").iterdir())) == 7


def test_a_mismatch_is_a_finding(comparison):
    assert comparison.ok
    wrong = {**comparison.runs[0], "integrity": {"reads_checked": 5, "mismatches": 1, "known": {}}}
    assert not attrs.evolve(comparison, runs=(wrong, *comparison.runs[1:])).ok


def test_a_refused_spec_leaves_no_directory(plan, tmp_path):
    def refusing(job):
        return Outcome(refused="topology 'two': no second GPU")

    with pytest.raises(InputError) as caught:
        run_plan(plan, store=RunDirectory(tmp_path / "out"), executor=SerialExecutor(), run=refusing)
    assert str(caught.value) == "topology 'two': no second GPU"
    assert list(tmp_path.iterdir()) == []


def test_events_go_beside_their_run(plan, answer, tmp_path):
    with_events = attrs.evolve(
        plan, runs=tuple(attrs.evolve(run, spec=attrs.evolve(run.spec, events=True)) for run in plan.runs)
    )
    asked = []

    def noting(job):
        asked.append(job.events_to)
        return answer(job)

    run_plan(with_events, store=RunDirectory(tmp_path), executor=SerialExecutor(), run=noting)
    assert asked == [tmp_path / "runs" / f"{run.key}.events.jsonl" for run in with_events.runs]
