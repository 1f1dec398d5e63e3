"""benchmarks/survey.py goes on where it was interrupted, and keeps what campaigns came to."""

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def survey(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("survey")


def run(survey, monkeypatch, out, *more):
    monkeypatch.setattr("sys.argv", ["survey.py", "--out", str(out), *more])
    survey.main()


ONE = ("fault-munmap", "--driver", "dmirror", "--scheduler", "pct", "--quirks", "fixed", "--schedules", "3")


def test_it_goes_on_where_it_ended(survey, monkeypatch, tmp_path, capsys):
    run(survey, monkeypatch, tmp_path, *ONE, "--failures", "0")
    run(survey, monkeypatch, tmp_path, *ONE, "--failures", "0", "--failures", "1")
    rows = [json.loads(line) for line in (tmp_path / "survey.jsonl").read_text("utf-8").splitlines()]
    assert [(row["failures"], row["schedules"], row["findings"]) for row in rows] == [(0, 3, []), (1, 3, [])]
    assert all(row["cpu_seconds"] > 0 for row in rows)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "fixed, pct, failures 0: 3 schedules of 1 pairs",
        "fixed, pct, failures 1: 3 schedules of 1 pairs",
    ]


def row(scenario, *findings, seed=0, schedules=5):
    way = {"driver": "xe", "quirks": "fixed", "scheduler": "pct", "failures": 0, "seed": seed, "first": 0, "asked": 5}
    found = [{"kind": kind, "invariant": name, "times": times} for kind, name, times in findings]
    spent = {"schedules": schedules, "steps": 100, "cpu_seconds": 0.25}
    return {"scenario": scenario, **way, **spent, "findings": found}


def test_what_is_kept_of_campaigns(survey, monkeypatch, tmp_path):
    kept = tmp_path / "campaigns.json"
    log = tmp_path / "survey.jsonl"
    rows = [
        row("a", ("invariant", "54", 2)),
        row("b", ("invariant", "54", 1), ("errno", "I-ERRNO", 4)),
        row("a", seed=1),
        {**row("c"), "error": "Traceback"},
    ]
    log.write_text("".join(json.dumps(each) + "\n" for each in rows), "utf-8")
    run(survey, monkeypatch, tmp_path, "--record", str(kept), "--commit", "98250ac")
    way = {"driver": "xe", "quirks": "fixed", "scheduler": "pct", "failures": 0, "seed": 0, "first": 0, "asked": 5}
    first = {
        **way,
        "scenarios": 2,
        "schedules": 10,
        "steps": 200,
        "cpu_seconds": 0.5,
        "findings": [
            {"kind": "errno", "invariant": "I-ERRNO", "times": 4, "scenarios": ["b"]},
            {"kind": "invariant", "invariant": "54", "times": 3, "scenarios": ["a", "b"]},
        ],
        "commit": "98250ac",
    }
    spent = {"schedules": 5, "steps": 100, "cpu_seconds": 0.2, "findings": []}
    second = {**way, "seed": 1, "scenarios": 1, **spent, "commit": "98250ac"}
    assert json.loads(kept.read_text("utf-8")) == {"schema": 1, "campaigns": [first, second]}
    log.write_text(json.dumps(row("a", schedules=1)) + "\n", "utf-8")
    run(survey, monkeypatch, tmp_path, "--record", str(kept))
    again = {**first, **spent, "scenarios": 1, "schedules": 1, "commit": ""}
    assert json.loads(kept.read_text("utf-8"))["campaigns"] == [again, second]
