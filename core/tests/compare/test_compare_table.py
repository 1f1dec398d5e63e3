import attrs
import pytest
from gpusvm.compare import METRICS
from gpusvm.errors import InputError


def row(table, path):
    return next(row for row in table.rows if row.metric.path == path)


def test_a_table_has_a_column_for_each_driver_and_a_row_for_each_metric(comparison):
    table = comparison.table("triad")
    assert table.columns == ("xe", "nouveau", "dmirror", "xe:chunk_sizes=64K+4K")
    assert tuple(row.metric for row in table.rows) == METRICS
    assert row(table, "gpu_faults").values == (96, 1363, 3043, 326)
    assert row(table, "fault_latency_ns.mean").values[0] == 141234.5
    assert table.conditions == {
        "vram_bytes": 1 << 30,
        "thp": "always",
        "costs": "h100-pcie5",
        "topology": "single",
        "seed": 0,
    }


def test_fixed_quirks_are_a_condition(comparison):
    runs = [{**run, "spec": {**run["spec"], "quirks": "fixed"}} for run in comparison.document["runs"]]
    fixed = attrs.evolve(comparison, document={**comparison.document, "runs": runs})
    assert fixed.table("triad").conditions["quirks"] == "fixed"


def test_the_least_value_is_best(comparison):
    table = comparison.table("triad")
    assert row(table, "sim_ns").best == (0,)


def test_equal_least_values_are_all_best(comparison):
    assert row(comparison.table("triad"), "migrated_to_device_bytes").best == (1, 2)


def test_nothing_is_best_where_all_are_equal(comparison):
    assert row(comparison.table("triad"), "cpu_faults").best == ()


def test_what_does_not_apply_is_none_and_never_best(comparison):
    awake = row(comparison.table("triad"), "pm.awake_ns")
    assert awake.values == (213000000, 5100000, None, 213000000)
    assert awake.best == (1,)


def test_a_description_has_no_best(comparison):
    assert row(comparison.table("triad"), "wall_s").best == ()


def test_mismatches_of_named_quirks_are_summed(comparison):
    assert row(comparison.table("bfs"), "integrity.known").values == (0, 2, 0, 0)


def test_a_failed_run_leaves_its_column(comparison):
    without = attrs.evolve(comparison, runs=tuple(run for run in comparison.runs if run["driver"] != "nouveau"))
    table = without.table("bfs")
    assert table.failed == (1,)
    assert row(table, "sim_ns").values[1] is None


def test_several_workloads_need_a_name(comparison):
    assert [table.workload for table in comparison.tables()] == ["triad", "bfs"]
    with pytest.raises(InputError) as caught:
        comparison.table()
    assert str(caught.value) == "table(): name one of the workloads: triad, bfs"
    with pytest.raises(InputError) as caught:
        comparison.table("traid")
    assert str(caught.value) == "table(): unknown workload 'traid'; did you mean 'triad'?"


def test_one_run_by_name(comparison):
    assert comparison.run("dmirror", "bfs")["pm"] is None
    with pytest.raises(InputError) as caught:
        comparison.run("kfd", "bfs")
    assert str(caught.value) == "no finished run of 'kfd' on 'bfs'"


def test_a_comparison_says_what_it_is(comparison):
    assert repr(comparison) == ("<Comparison of xe, nouveau, dmirror, xe:chunk_sizes=64K+4K on triad, bfs: 8 runs>")


def test_a_column_with_wrong_reads_is_noted_and_best_at_nothing(comparison):
    table = comparison.table("bfs")
    column = table.columns.index("nouveau")
    assert not any(column in row.best for row in table.rows)
    assert table.notes == (
        "nouveau: reads that saw wrong contents, 2 by the quirk sticky_atomic; the column is marked least in no row.",
    )
    assert comparison.table("triad").notes == ()
