"""gpusvm explain: what a run went through, read back."""

import io
import json
import re
from collections import Counter
from importlib import resources

import jsonschema
import pytest
from gpusvm.cli.main import run
from gpusvm.errors import InputError
from gpusvm.report import explained_document, print_explained, sequence_diagram
from gpusvm.report.call_graph_text import rows_of_graph
from gpusvm.report.explained import OPERATIONS, explain

DRIVERS = ("xe", "nouveau", "dmirror")
CASES = [
    *((operation, driver) for operation in ("fault", "cpu-fault", "populate", "munmap") for driver in DRIVERS),
    ("evict", "xe"),
    ("unplug", "xe"),
]


def calls(explained):
    return [line.text for line in explained.graph.lines if line.kind == "call"]


def in_order(found, expected):
    """Return the first of `expected` that does not follow the one before it in `found`, None if all do."""
    rest = iter(found)
    return next((each for each in expected if each not in rest), None)


# reference/drivers.md §2.3 and §2.6, core §1.4
XE_FAULT = [
    "xe_pagefault_service",
    "xe_svm_garbage_collector",
    "drm_gpusvm_range_find_or_insert",
    "xe_svm_alloc_vram",
    "drm_gpusvm_scan_mm",
    "drm_pagemap_populate_mm",
    "xe_drm_pagemap_populate_mm",
    "drm_dev_enter",
    "pm_runtime_get_sync",
    "xe_validation_guard",
    "ttm_bo_init_reserved",
    "xe_pm_runtime_get_noresume",
    "drm_pagemap_migrate_to_devmem",
    "migrate_vma_setup",
    "__mmu_notifier_invalidate_range_start",
    "xe_svm_invalidate",
    "xe_svm_populate_devmem_pfn",
    "drm_pagemap_migrate_sys_to_dev",
    "migrate_vma_pages",
    "migrate_vma_finalize",
    "drm_dev_exit",
    "drm_gpusvm_range_get_pages",
    "xe_pt_stage_bind",
]
XE_CPU_FAULT = [
    "do_user_addr_fault",
    "drm_pagemap_migrate_to_ram",
    "migrate_vma_setup",
    "xe_svm_invalidate",
    "migrate_vma_pages",
    "migrate_vma_finalize",
    "drm_pagemap_folio_free",
    "xe_svm_devmem_release",
]


POPULATE = "drm_pagemap_populate_mm"


def test_a_fault_of_xe_goes_the_way_that_the_kernel_goes():
    (explained,) = explain("fault", ["xe"])
    assert explained.answer == "ok"
    assert in_order(calls(explained), XE_FAULT) is None


def test_a_cpu_fault_of_xe_goes_the_way_that_the_kernel_goes():
    (explained,) = explain("cpu-fault", ["xe"])
    assert in_order(calls(explained), XE_CPU_FAULT) is None


def test_drivers_go_ways_of_their_own():
    xe, nouveau, dmirror = explain("fault", DRIVERS)
    assert "drm_gpusvm_range_get_pages" in calls(xe)
    assert "nouveau_range_fault" in calls(nouveau)
    assert "dmirror_range_fault" in calls(dmirror)
    assert not {"drm_gpusvm_range_get_pages"} & {*calls(nouveau), *calls(dmirror)}


@pytest.mark.parametrize(("operation", "driver"), CASES)
def test_whatever_begins_ends(operation, driver):
    (explained,) = explain(operation, [driver])
    lines = explained.graph.lines
    depth = Counter()
    last_ns = {}
    for line in lines:
        depth[line.task] += {"call": 1, "return": -1}.get(line.kind, 0)
        expected = depth[line.task] - (line.kind == "call")
        assert line.depth == expected
        assert line.time_ns >= last_ns.get(line.task, 0)
        last_ns[line.task] = line.time_ns
    assert set(depth.values()) == {0}
    locks = Counter(line.text.removesuffix(" read").removesuffix(" write") for line in lines if line.kind == "lock")
    assert locks == Counter(line.text for line in lines if line.kind == "unlock")
    assert sum(locks.values()) > 1


def test_a_fault_leaves_the_references_of_its_allocation():
    (explained,) = explain("fault", ["xe"])
    refs = Counter()
    for line in explained.graph.lines:
        refs[line.text] += {"get": 1, "put": -1}.get(line.kind, 0)
    left = {text: count for text, count in refs.items() if count}
    assert left == {
        "notifier gpu0 svm": 1,
        "range gpu0 svm": 1,
        "bo creator": 1,
        "pm bo": 1,
        "dpagemap zdd": 1,
        "zdd folio": 1,
        "dpagemap gpusvm_pages": 1,
    }


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_same_run_twice_is_the_same(driver):
    once, again = (explained_document(explain("munmap", [driver])) for _ in range(2))
    assert once == again


def test_what_is_charged_adds_up():
    (explained,) = explain("fault", ["xe"])
    rows = rows_of_graph(explained.graph)
    populate = next(line for line in explained.graph.lines if (line.kind, line.text) == ("return", POPULATE))
    assert rows[0].time_ns == 0
    assert 0 < populate.ns < explained.sim_ns


def test_a_call_without_anything_in_it_is_one_row():
    (explained,) = explain("munmap", ["dmirror"])
    texts = [str(row).strip() for row in rows_of_graph(explained.graph)]
    assert "mmu_interval_set_seq();" in texts
    assert "dmirror_interval_invalidate() {" in texts
    assert "} /* dmirror_interval_invalidate */" in texts


def test_two_drivers_stand_side_by_side_with_what_they_share_in_one_row():
    text = io.StringIO()
    print_explained(explain("munmap", ["xe", "dmirror"]), file=text)
    shared = [line for line in text.getvalue().splitlines() if line.count("unmap_vmas() {") == 2]
    assert len(shared) == 1


def test_full_shows_what_follows_no_function_of_linux():
    plain, full = (explain("munmap", ["dmirror"], full=each)[0] for each in (False, True))
    assert set(calls(plain)) < set(calls(full))


@pytest.mark.parametrize(("operation", "driver"), CASES)
def test_the_diagram_ends_every_call_that_it_begins(operation, driver):
    diagram = sequence_diagram(explain(operation, [driver])[0])
    lines = diagram.splitlines()
    assert lines[0] == "sequenceDiagram"
    assert any(": " in line for line in lines)
    assert sum("->>+" in line for line in lines) == sum("-->>-" in line for line in lines)


def test_what_a_driver_cannot_do_is_refused_with_its_reason():
    with pytest.raises(InputError) as error:
        explain("evict", ["nouveau"])
    assert str(error.value) == (
        "evict cannot be explained on nouveau: eviction: the chunks are pinned; "
        "without room pages stay in system memory"
    )


def test_an_unknown_operation_is_refused():
    with pytest.raises(InputError) as error:
        explain("falt", ["xe"])
    assert str(error.value) == "unknown operation 'falt'; did you mean 'fault'?"


def test_the_command_line_prints_it(capsys):
    assert run(["explain", "munmap", "--driver", "dmirror"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "dmirror, munmap: memory that the GPU has mapped is unmapped; ok after 0.7 us"
    assert lines[4] == "     0.000           | main"


def test_json_follows_its_schema(capsys):
    assert run(["explain", "fault", "--driver", "xe", "--driver", "dmirror", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    schema = resources.files("gpusvm.report").joinpath("schema", "explain-1.json").read_text("utf-8")
    jsonschema.validate(document, json.loads(schema))
    assert [each["driver"] for each in document["explained"]] == ["xe", "dmirror"]


def test_the_schema_and_the_command_line_know_all_operations(capsys):
    schema = json.loads(resources.files("gpusvm.report").joinpath("schema", "explain-1.json").read_text("utf-8"))
    assert schema["$defs"]["explained"]["properties"]["operation"]["enum"] == list(OPERATIONS)
    assert run(["explain", "--help"]) == 0
    described = " ".join(capsys.readouterr().out.split()).partition("2 MiB of memory: ")[2]
    assert [name for name in OPERATIONS if not re.search(rf"\b{name}\b", described)] == []


def test_out_writes_a_new_file_and_no_old_one(tmp_path, capsys):
    file = tmp_path / "fault.md"
    assert run(["explain", "fault", "--diagram", "--out", str(file)]) == 0
    assert file.read_text("utf-8").startswith("sequenceDiagram\n")
    assert run(["explain", "fault", "--out", str(file)]) == 2
    assert capsys.readouterr().err == f"gpusvm: --out: {file} exists; name a new file\n"
