"""Bad traces: each gets one clear line that names the file, the place, what was expected and the mend."""

import hashlib
import json
import shutil
from importlib import resources

import attrs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gpusvm.errors import InputError
from gpusvm.workload import CPU, GPU, Allocation, Trace, bundled, load, read_trace, write_trace
from hypothesis import given, settings
from hypothesis import strategies as st

PINGPONG = resources.files("gpusvm.workload").joinpath("traces", "pingpong.parquet")

GOOD_COLUMNS = {
    "time_ns": pa.array([0, 5, 10, 10], pa.int64()),
    "agent": pa.array([1, 1, 0, 0], pa.uint8()),
    "page": pa.array([0, 513, 0, 512], pa.uint32()),
    "op": pa.array([1, 0, 2, 0], pa.uint8()),
    "sm": pa.array([65535, 65535, 0, 131], pa.uint16()),
}
GOOD_METADATA = {
    "workload": "tiny",
    "allocations": [{"name": "a", "start_page": 0, "pages": 1}, {"name": "b", "start_page": 512, "pages": 2}],
    "kernels": [{"name": "k", "blocks": 1, "threads": 32}],
    "launches": [[0, 6, 9, 12]],
    "cpu_phase_names": ["fill"],
    "cpu_phases": [[0, -1, 5]],
    "gpu_ms_logged": 3,
    "gpu_ms_unlogged": 1.5,
    "bucket_ns": 16384,
    "of_no_interest": True,
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "t.parquet"


def put(path, *, drop=(), raw_metadata=None, metadata=None, **columns):
    """Write a good tiny trace with something changed; nothing here goes through write_trace."""
    merged = {name: column for name, column in {**GOOD_COLUMNS, **columns}.items() if name not in drop}
    text = json.dumps({**GOOD_METADATA, **(metadata or {})}) if raw_metadata is None else raw_metadata
    pq.write_table(pa.table(merged).replace_schema_metadata({"trace": text} if text else {}), path)


def message(path):
    with pytest.raises(InputError) as caught:
        read_trace(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


def changed(name, row, value):
    values = GOOD_COLUMNS[name].to_pylist()
    values[row] = value
    return {name: pa.array(values, GOOD_COLUMNS[name].type)}


def test_a_good_trace_is_read(path):
    put(path)
    trace = read_trace(path)
    assert trace.name == "tiny"
    assert trace.about == ""
    assert trace.footprint_pages == 3
    assert trace.kernel_names == ("k",)
    assert trace.unlogged_scale == 0.5
    assert trace.end_ns == 10
    assert trace.page.tolist() == [0, 513, 0, 512]
    assert trace.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert trace.file_bytes == path.stat().st_size


@pytest.mark.parametrize("name", bundled())
def test_every_array_is_read_only_and_of_its_type(name):
    trace = load(name)
    types = {"time_ns": "int64", "agent": "uint8", "page": "uint32", "op": "uint8", "sm": "uint16"}
    for column, dtype in types.items():
        values = getattr(trace, column)
        assert values.dtype == dtype
        assert not values.flags.writeable
        assert len(values) == len(trace)
    for columns in (trace.launches, trace.cpu_phases):
        for field in attrs.fields(type(columns)):
            assert getattr(columns, field.name).dtype == np.int64
            assert not getattr(columns, field.name).flags.writeable


def test_an_address_column_in_bytes_stands_for_page(path):
    put(path, drop=["page"], address=pa.array([0, 513 * 4096, 0, 512 * 4096], pa.int64()))
    trace = read_trace(path)
    assert trace.page.dtype == np.uint32
    assert trace.page.tolist() == [0, 513, 0, 512]


def test_no_file(path):
    assert message(path) == "no such file"


def test_no_file_but_one_of_a_near_name(path):
    put(path.with_name("tt.parquet"))
    assert message(path) == "no such file; did you mean 'tt.parquet'?"


def test_a_directory(tmp_path):
    assert message(tmp_path) == "expected a Parquet file, got a directory; name one file in it"


@pytest.mark.parametrize(
    ("data", "beginning"),
    [
        (b"", "expected a Parquet file, got an empty file: "),
        (b"time,agent,page\n0,0,0\n", "expected a Parquet file, got a file that begins with b'time,age': "),
        (b"PAR1", "expected a Parquet file, got a damaged one: "),
    ],
)
def test_no_parquet_file(path, data, beginning):
    path.write_bytes(data)
    assert message(path).startswith(beginning)


def test_a_truncated_file(path):
    path.write_bytes(PINGPONG.read_bytes()[:100_000])
    assert message(path).startswith(
        "expected a Parquet file, got one cut short after 100000 bytes (copy it again): Parquet magic bytes not found"
    )


@pytest.mark.parametrize("name", GOOD_COLUMNS)
def test_a_missing_column(path, name):
    put(path, drop=[name])
    others = ", ".join(column for column in GOOD_COLUMNS if column != name)
    assert message(path) == f"no column '{name}', the columns are: {others}; add it as {GOOD_COLUMNS[name].type}"


def test_a_misspelt_column(path):
    put(path, drop=["time_ns"], time_us=GOOD_COLUMNS["time_ns"])
    assert message(path) == (
        "no column 'time_ns', the columns are: agent, page, op, sm, time_us; did you mean 'time_us'?"
    )


def test_page_and_address_together(path):
    put(path, address=GOOD_COLUMNS["time_ns"])
    assert message(path) == "expected a column 'page' or a column 'address', got both; drop one"


def test_a_wrong_column_type(path):
    put(path, page=GOOD_COLUMNS["page"].cast(pa.int64()))
    assert message(path) == "column 'page': expected type uint32, got int64; cast it"


def test_a_null(path):
    put(path, **changed("op", 2, None))
    assert message(path) == "row 2: column 'op': expected a value, got null; fill it in or drop the row"


def test_no_rows(path):
    put(path, **{name: column[:0] for name, column in GOOD_COLUMNS.items()})
    assert message(path) == "expected 1 row or more, got none; a trace has events"


def test_no_metadata(path):
    put(path, raw_metadata="")
    assert message(path) == "no metadata key 'trace', the keys are: none; write_trace writes one"


def test_metadata_that_is_no_json(path):
    put(path, raw_metadata="{'workload'")
    assert message(path) == (
        "metadata key 'trace': expected JSON, got Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1); write_trace writes it"
    )


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"workload": 3}, "workload: expected a text, got 3"),
        ({"bucket_ns": True}, "bucket_ns: expected a whole number, got True"),
        ({"bucket_ns": 1.5}, "bucket_ns: expected a whole number, got 1.5"),
        ({"bucket_ns": -1}, "bucket_ns: expected 0 or more, got -1; leave it out if unknown"),
        ({"gpu_ms_logged": 0}, "gpu_ms_logged: expected a positive number, got 0; leave it out if unknown"),
        ({"page_size": 65536}, "page_size: expected 4096, got 65536; convert the trace"),
        ({"allocations": [{"name": "a", "pages": 1}]}, "allocations[0].start_page: missing"),
        (
            {"launches": [[0, 1, "2", 3]], "cpu_phase_names": [None]},
            "launches[0][2]: expected a whole number, got '2'; cpu_phase_names[0]: expected a text, got None",
        ),
        ({"cpu_phase_names": "fill"}, "cpu_phase_names: expected a list, got 'fill'"),
        ({"allocations": 7}, "allocations: expected a list, got 7"),
        ({"kernels": [1]}, "kernels[0]: expected a table, got 1"),
    ],
)
def test_wrong_metadata(path, metadata, expected):
    put(path, metadata=metadata)
    assert message(path) == f"metadata key 'trace': {expected}"


def test_metadata_without_a_key(path):
    put(path, raw_metadata=json.dumps({k: v for k, v in GOOD_METADATA.items() if k != "launches"}))
    assert message(path) == "metadata key 'trace': launches: missing"


@pytest.mark.parametrize(
    ("column", "row", "value", "expected"),
    [
        ("time_ns", 0, -1, "expected 0 or more, got -1; count from the first event"),
        ("time_ns", 2, 4, "expected 5 (the row before) or more, got 4; sort the rows by time"),
        ("agent", 1, 2, "expected 0 (GPU) or 1 (CPU), got 2; map it to one"),
        ("op", 3, 3, "expected 0 (read), 1 (write) or 2 (atomic), got 3; map it to one"),
        ("op", 1, 2, "expected 0 or 1 on a CPU row, got 2; make it a write"),
        ("sm", 3, 65535, "expected 0 to 65534 on a GPU row, got 65535; use 0 if it is unknown"),
        ("sm", 0, 4, "expected 65535 on a CPU row, got 4; write 65535"),
        ("page", 2, 1, "expected a page of an allocation, got page 1; the nearest, 'a', has pages 0 to 0"),
        ("page", 3, 514, "expected a page of an allocation, got page 514; the nearest, 'b', has pages 512 to 513"),
    ],
)
def test_a_bad_value_names_its_row_and_column(path, column, row, value, expected):
    put(path, **changed(column, row, value))
    assert message(path) == f"row {row}: column '{column}': {expected}"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (-4096, "expected 0 to 0xfffffffffff (16 TiB), got -0x1000; subtract the base of the address space"),
        (
            0x7F0000000000,
            "expected 0 to 0xfffffffffff (16 TiB), got 0x7f0000000000; subtract the base of the address space",
        ),
        (0x200010, "expected a multiple of 4096, got 0x200010; round it down to 0x200000"),
        (0x300000, "expected a page of an allocation, got page 768; the nearest, 'b', has pages 512 to 513"),
    ],
)
def test_a_bad_address_names_its_row(path, value, expected):
    put(path, drop=["page"], address=pa.array([0, 0, value, 0], pa.int64()))
    assert message(path) == f"row 2: column 'address': {expected}"


@pytest.mark.parametrize(
    ("allocations", "expected"),
    [
        (
            [("a", 0, 1), ("b", 500, 2)],
            (
                "allocations[1] ('b'): expected a start_page that is a multiple of 512 (2 MiB), got 500; move the "
                "allocation and its pages up to 512"
            ),
        ),
        ([("a", 0, 0)], "allocations[0] ('a'): expected 1 page or more, got 0; leave it out"),
        (
            [("b", 512, 2), ("a", 0, 513)],
            "allocations: expected no overlap, got 'a' (pages 0 to 512) and 'b' (from page 512); move one",
        ),
        (
            [("a", 2**32 - 512, 513)],
            "allocations[0] ('a'): expected to end by page 4294967296 (16 TiB), got 4294967297; move it down",
        ),
    ],
)
def test_bad_allocations(path, allocations, expected):
    put(
        path,
        metadata={"allocations": [dict(zip(("name", "start_page", "pages"), row, strict=True)) for row in allocations]},
    )
    assert message(path) == expected


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (
            {"launches": [[1, 6, 9, 12]]},
            "launches[0][0]: expected an index into kernels, got 1, and kernels has 1; add it there",
        ),
        (
            {"launches": [[0, 6, 9]]},
            "launches[0]: expected kernel, launch_ns, start_ns, end_ns, got 3 numbers; correct it",
        ),
        ({"launches": [[0, 10, 9, 12]]}, "launches[0]: expected launch_ns <= start_ns <= end_ns, got 10, 9, 12"),
        ({"cpu_phases": [[0, 6, 5]]}, "cpu_phases[0]: expected start_ns <= end_ns, got 6, 5"),
        (
            {"launches": [[0, 3, 4, 12]]},
            (
                "launches[0]: expected a start at or after the end of cpu_phases[0] (5 ns), got 4 ns; a replay runs "
                "them one after the other"
            ),
        ),
        (
            {"launches": [[0, 6, 9, 9]]},
            "row 2: expected a GPU row to lie in a launch, got 10 ns, in none; widen its launch",
        ),
        (
            {"cpu_phases": [[0, 0, 4]]},
            "row 1: expected a CPU row to lie in a CPU phase, got 5 ns, in none; widen its CPU phase",
        ),
        ({"launches": []}, "row 2: expected a GPU row to lie in a launch, got 10 ns, in none; widen its launch"),
        ({"launches": [[0, 0, 2**70, 2**70]]}, "launches, cpu_phases: expected times that fit 64 bits; count from 0"),
    ],
)
def test_a_trace_without_a_program_order(path, metadata, expected):
    put(path, metadata=metadata)
    assert message(path) == expected


def test_rows_of_one_time_against_the_program_order(path):
    put(
        path,
        time_ns=pa.array([0, 5, 5, 10], pa.int64()),
        agent=pa.array([1, 0, 1, 0], pa.uint8()),
        op=pa.array([1, 0, 0, 0], pa.uint8()),
        sm=pa.array([65535, 0, 65535, 0], pa.uint16()),
        metadata={"launches": [[0, 5, 5, 12]]},
    )
    assert message(path) == (
        "row 2: expected rows of one time (5 ns) in program order, got one of cpu_phases[0] after one of launches[0]; "
        "swap them"
    )


def test_load_takes_names_and_paths(path):
    put(path)
    assert load(path).name == "tiny"
    assert load(str(path)).name == "tiny"
    assert load("gups").name == "gups"


def test_load_suggests_the_nearest_name():
    with pytest.raises(InputError) as caught:
        load("trida")
    assert str(caught.value) == "unknown workload 'trida', did you mean 'triad'? (or the path of a .parquet file)"


def test_load_of_a_name_near_none():
    with pytest.raises(InputError) as caught:
        load("zzz")
    assert str(caught.value) == (
        f"unknown workload 'zzz', valid: {', '.join(bundled())} (or the path of a .parquet file)"
    )


ONE = [Allocation(name="a", start_page=0, pages=512)]


def test_write_trace_writes_what_read_trace_reads(path):
    written = write_trace(
        path,
        "mine",
        about="three rows",
        allocations=ONE,
        time_ns=[0, 7, 9],
        agent=[CPU, GPU, GPU],
        address=[0, 4096, 8192],
        op=[1, 0, 2],
    )
    again = read_trace(path)
    assert written.sha256 == again.sha256
    assert again.page.tolist() == [0, 1, 2]
    assert again.sm.tolist() == [65535, 0, 0]
    assert [again.launches.start_ns.tolist(), again.launches.end_ns.tolist()] == [[7], [9]]
    assert sorted(other.name for other in path.parent.iterdir()) == ["t.parquet"]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"page": [0, -1]}, "row 1: column 'page': expected 0 to 4294967295, got -1; correct it"),
        (
            {"page": [0, 600]},
            (
                "row 1: column 'page': expected a page of an allocation, got page 600; the nearest, "
                "'a', has pages 0 to 511"
            ),
        ),
        ({"page": [0, 1], "agent": [0, 257]}, "row 1: column 'agent': expected 0 to 255, got 257; correct it"),
        ({"page": [0, 0.5]}, "column 'page': expected whole numbers, got float64; convert them"),
        ({}, "no column 'page', the columns are: time_ns, agent, op, sm; add it as uint32"),
    ],
)
def test_write_trace_refuses_what_read_trace_refuses_and_leaves_the_old_file(path, columns, expected):
    path.write_bytes(b"old")
    with pytest.raises(InputError) as caught:
        write_trace(path, "mine", **{"allocations": ONE, "time_ns": [0, 1], "agent": [0, 0], "op": [0, 0], **columns})
    assert str(caught.value) == f"{path}: {expected}"
    assert path.read_bytes() == b"old"
    assert sorted(other.name for other in path.parent.iterdir()) == ["t.parquet"]


def test_write_trace_into_no_directory(tmp_path):
    path = tmp_path / "none" / "t.parquet"
    with pytest.raises(InputError, match=r"t\.parquet: cannot be written: .*No such file or directory"):
        write_trace(path, "mine", allocations=ONE, time_ns=[0], agent=[0], op=[0], page=[0])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    good, path = folder / "good.parquet", folder / "bad.parquet"
    put(good)
    content = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    outcome = read_or_refuse(path)
    shutil.rmtree(folder)
    assert isinstance(outcome, Trace) or (outcome.startswith(f"{path}: ") and "\n" not in outcome)


def read_or_refuse(path):
    try:
        return read_trace(path)
    except InputError as exc:
        return str(exc)
