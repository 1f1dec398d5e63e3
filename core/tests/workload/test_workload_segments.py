"""Program order: on the bundled traces, and on made-up ones."""

import itertools

import numpy as np
import pytest
from gpusvm.workload import CPU, GPU, Allocation, CpuPhase, Kernel, Launch, bundled, load, segments, write_trace
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize("name", bundled())
def test_every_row_is_in_exactly_one_segment_of_its_agent(name):
    trace = load(name)
    found = segments(trace)
    seen = np.concatenate([np.arange(segment.rows.start, segment.rows.stop) for segment in found])
    assert np.array_equal(seen, np.arange(len(trace)))
    for segment in found:
        agent = GPU if isinstance(segment, Launch) else CPU
        assert (trace.agent[segment.rows] == agent).all()
        assert (trace.time_ns[segment.rows] >= segment.start_ns).all()
        assert (trace.time_ns[segment.rows] <= segment.end_ns).all()
        assert segment.rows.start < segment.rows.stop  # the captures have no phase or launch without rows


@pytest.mark.parametrize("name", bundled())
def test_the_order_is_the_host_s(name):
    found = segments(load(name))
    on_host = [segment.call_ns if isinstance(segment, Launch) else segment.start_ns for segment in found]
    assert on_host == sorted(on_host)
    assert [segment.index for segment in found if isinstance(segment, Launch)] == list(
        range(sum(isinstance(segment, Launch) for segment in found))
    )


def test_jacobi_alternates_ten_launches_with_host_work():
    found = segments(load("jacobi"))
    launches = [segment for segment in found if isinstance(segment, Launch)]
    assert len(launches) == 10
    for launch, following in itertools.pairwise(found):
        if isinstance(launch, Launch):
            assert isinstance(following, CpuPhase)


def test_bfs_follows_its_frontiers():
    found = segments(load("bfs"))
    assert found[0] == CpuPhase(index=0, name="load graph", start_ns=-341, end_ns=13668286, rows=slice(0, 17409))
    kernels = [(s.kernel, s.blocks) for s in found if isinstance(s, Launch)]
    assert kernels == [("fill_i32", 4096), *(("bfs_level", blocks) for blocks in (1, 2112, 2112, 2112, 58, 1))]


@pytest.mark.parametrize("name", ["bfs", "llm-decode"])
def test_rows_by_sm_part_a_launch_and_keep_the_order(name):
    trace = load(name)
    for launch in segments(trace):
        if isinstance(launch, Launch):
            by_sm = launch.rows_by_sm(trace)
            assert list(by_sm) == sorted(by_sm)
            for sm, rows in by_sm.items():
                assert (trace.sm[rows] == sm).all()
                assert (np.diff(rows) > 0).all()
            rows = np.sort(np.concatenate(list(by_sm.values())))
            assert np.array_equal(rows, np.arange(launch.rows.start, launch.rows.stop))


def test_a_launch_without_rows_keeps_its_place(tmp_path):
    trace = write_trace(
        tmp_path / "t.parquet",
        "t",
        allocations=[Allocation(name="a", start_page=0, pages=4)],
        time_ns=[0, 10, 40],
        agent=[CPU, GPU, CPU],
        page=[0, 1, 2],
        op=[1, 0, 0],
        kernels=[Kernel(name="k", blocks=1, threads=32), Kernel(name="empty", blocks=2, threads=32)],
        launches=[(0, 5, 10, 12), (1, 6, 20, 25)],
        cpu_phase_names=["fill", "check"],
        cpu_phases=[(0, 0, 0), (1, 40, 41)],
    )
    found = segments(trace)
    assert [(type(s).__name__, s.rows) for s in found] == [
        ("CpuPhase", slice(0, 1)),
        ("Launch", slice(1, 2)),
        ("Launch", slice(2, 2)),
        ("CpuPhase", slice(2, 3)),
    ]
    assert found[2].kernel == "empty"
    assert found[2].rows_by_sm(trace) == {}


@settings(max_examples=60, deadline=None)
@given(
    runs=st.lists(st.tuples(st.sampled_from([GPU, CPU]), st.integers(1, 5)), min_size=1, max_size=8),
    gaps=st.lists(st.integers(0, 3), min_size=40, max_size=40),
    sms=st.lists(st.integers(0, 3), min_size=40, max_size=40),
)
def test_derived_segments_cover_any_trace_in_order(tmp_path_factory, runs, gaps, sms):
    agent = [who for who, length in runs for _ in range(length)]
    time_ns = np.cumsum([0, *gaps])[: len(agent)]
    trace = write_trace(
        tmp_path_factory.mktemp("segments") / "t.parquet",
        "t",
        allocations=[Allocation(name="a", start_page=512, pages=40)],
        time_ns=np.maximum.accumulate(time_ns + np.cumsum(np.diff(agent, prepend=agent[0]) != 0)),
        agent=agent,
        page=512 + np.arange(len(agent)),
        op=[0] * len(agent),
        sm=[65535 if who == CPU else sm for who, sm in zip(agent, sms, strict=False)],
    )
    found = segments(trace)
    assert [row for segment in found for row in range(segment.rows.start, segment.rows.stop)] == list(range(len(agent)))
    merged = [who for i, who in enumerate(agent) if i == 0 or agent[i - 1] != who]
    assert [GPU if isinstance(segment, Launch) else CPU for segment in found] == merged
    for launch in found:
        if isinstance(launch, Launch):
            for sm, rows in launch.rows_by_sm(trace).items():
                assert (trace.sm[rows] == sm).all()
