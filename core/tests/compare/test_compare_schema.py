import copy
import json
from importlib import resources

import jsonschema
import pytest
from gpusvm.compare.comparing import _finished
from gpusvm.compare.table import METRICS
from gpusvm.run.spec import Pm, PmDevice, PmHolder, PmReferences, PmState, RunResult
from referencing import Registry, Resource

FOLDER = resources.files("gpusvm.compare").joinpath("schema")
SCHEMAS = {name: json.loads(FOLDER.joinpath(f"{name}.json").read_text()) for name in ("compare-1", "run-1", "result-1")}
REGISTRY = Registry().with_resources((schema["$id"], Resource.from_contents(schema)) for schema in SCHEMAS.values())


def validator(name):
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])
    return jsonschema.Draft202012Validator(SCHEMAS[name], registry=REGISTRY)


def test_what_a_comparison_writes_keeps_its_schema(comparison):
    validator("compare-1").validate(comparison.to_dict())
    assert json.loads(comparison.to_json()) == comparison.to_dict()


def test_the_document_of_a_plan_keeps_its_schema(plan):
    validator("run-1").validate(plan.document)


def test_the_file_of_a_finished_run_keeps_its_schema(plan, example):
    validator("result-1").validate(_finished(plan.runs[0], example["runs"][0]))


def test_the_schema_asks_for_exactly_the_keys_of_a_result():
    run = SCHEMAS["compare-1"]["$defs"]["run"]
    assert run["required"] == list(RunResult.__annotations__)
    assert list(run["properties"]) == run["required"]
    for key in ("fault_latency_ns", "stage_ns", "objects", "integrity"):
        assert run["properties"][key]["required"] == list(RunResult.__annotations__[key].__annotations__)
    device = SCHEMAS["compare-1"]["$defs"]["pm_device"]
    for schema, shape in (
        (run["properties"]["pm"], Pm),
        (device, PmDevice),
        (device["properties"]["states"]["items"], PmState),
        (device["properties"]["holders"]["items"], PmHolder),
        (device["properties"]["references"]["items"], PmReferences),
    ):
        assert list(schema["properties"]) == schema["required"] == list(shape.__annotations__)


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("sim_ns",), 1.5, "1.5 is not of type 'integer'"),
        (("thp",), "sometimes", "'sometimes' is not one of ['always', 'madvise', 'never']"),
        (("stage_ns", "warp"), 1, "Additional properties are not allowed ('warp' was unexpected)"),
        (("integrity", "mismatches"), -1, "-1 is less than the minimum of 0"),
        (("pm", "devices", 0, "resumes"), 0.5, "0.5 is not of type 'integer'"),
        (("pm", "devices", 0, "states", 1, "state"), "D1", "'D1' is not one of ['D0', 'D3hot', 'D3cold']"),
    ],
)
def test_the_schema_refuses_a_wrong_result(comparison, path, value, problem):
    document = copy.deepcopy(comparison.to_dict())
    place = document["runs"][0]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    errors = [error.message for error in validator("compare-1").iter_errors(document)]
    assert errors == [problem]


def test_every_number_of_a_result_has_a_row(example):
    """What is measured is shown: a number in compare.json without a row would be one nobody looks at."""
    described = {"driver", "name", "workload", "seed", "vram_bytes", "thp", "topology", "costs"}
    paths = set()
    for key, value in example["runs"][0].items():
        nested = isinstance(value, dict) and key != "known"
        paths |= {f"{key}.{inner}" for inner in value} if nested else {key}
    paths.remove("pm.devices")  # no number: the line and the picture of power
    assert {metric.path for metric in METRICS} == paths - described
