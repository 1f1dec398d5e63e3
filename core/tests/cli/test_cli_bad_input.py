"""What bad input gets: one whole line, exit code 2, nothing on standard output and no directory half written."""

from importlib import resources

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture
def refused_compare(refused, tmp_path):
    """Run `gpusvm compare` into a directory, which must not be there afterwards."""

    def refused_compare(*arguments):
        line = refused("compare", *arguments, "--out", tmp_path / "out" / "deep")
        assert not (tmp_path / "out").exists()
        assert line.startswith("gpusvm: ")
        return line.removeprefix("gpusvm: ")

    return refused_compare


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("acne", "driver spec 'acne': unknown driver 'acne'; did you mean 'acme'?"),
        ("zzz", "driver spec 'zzz': unknown driver 'zzz'; valid: acme"),
        (":a=b", "driver spec ':a=b': expected NAME[:KEY=VALUE[,KEY=VALUE…]], got the name ''"),
        ("acme:", "driver spec 'acme:': expected KEY=VALUE after the colon, got ''"),
        (
            "acme:chunk_size=4K",
            "driver spec 'acme:chunk_size=4K': unknown key 'chunk_size' of driver acme; did you mean 'chunk_sizes'?",
        ),
        (
            "acme:chunk_sizes=3K",
            "driver spec 'acme:chunk_sizes=3K': chunk_sizes: expected a power of two, got '3K'",
        ),
        ("acme:fault_entries=0", "driver spec 'acme:fault_entries=0': fault_entries: expected at least 1, got '0'"),
        (
            "acme:quirk.mm_s2=fixt",
            "driver spec 'acme:quirk.mm_s2=fixt': quirk.mm_s2: unknown value 'fixt'; did you mean 'fixed'?",
        ),
        (
            "acme:populate=explicit",
            (
                "driver spec 'acme:populate=explicit': populate: driver acme has no explicit populate: "
                "there is no device memory to populate"
            ),
        ),
    ],
)
def test_a_spec(refused_compare, spec, line):
    assert refused_compare(spec) == line


def test_an_unknown_quirk(refused_compare):
    assert refused_compare("acme:quirk.mm_s22=fixed") == (
        "driver spec 'acme:quirk.mm_s22=fixed': unknown key 'quirk.mm_s22' of driver acme; did you mean 'quirk.mm_s2'?"
    )


def test_a_driver_named_twice(refused_compare):
    assert refused_compare("acme:chunk_sizes=64K+4K", "acme:chunk_sizes=65536+4096") == (
        "driver spec 'acme:chunk_sizes=64K+4K' is given twice"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--vram", "1MiB"], "--vram: 1MiB is smaller than one range (2MiB); give the device at least that"),
        (["--vram", "2097153"], "--vram: expected whole pages of 4096 bytes, got 2097153"),
        (["--vram", "much"], "--vram: expected a size such as 256MiB, 1GiB, 64K or 4096, got 'much'"),
        (["--vram", "256MB"], "--vram: expected a size such as 256MiB, 1GiB, 64K or 4096, got '256MB'"),
        (["--vram", "-1"], "--vram: expected a size such as 256MiB, 1GiB, 64K or 4096, got '-1'"),
        (["--seed", "-1"], "--seed: expected 0 or more, got -1"),
        (["--seed", "x"], 'Invalid value for --seed: unable to convert "x" into int.'),
        (["--jobs", "0"], "--jobs: expected 1 or more, got 0"),
        (["--thp", "sometimes"], 'Invalid value "sometimes" for --thp. Choose from: "always", "madvise", "never".'),
        (
            ["--quirks", "fix"],
            'Invalid value "fix" for --quirks. Choose from: "as_written", "fixed". Did you mean "fixed"?',
        ),
        (["--topology", "singel"], "unknown topology 'singel', did you mean 'single'? (or the path of a .toml file)"),
        (["--without", "acne"], "--without: unknown driver 'acne', did you mean 'acme'?"),
        (["--sed", "1"], "Unknown option: --sed. Did you mean --seed?"),
    ],
)
def test_an_option(refused_compare, arguments, line):
    assert refused_compare(*arguments) == line


def test_an_unknown_cost_profile(refused_compare):
    assert refused_compare("--costs", "h100-pcie4").startswith(
        "unknown cost profile 'h100-pcie4', did you mean 'h100-pcie5'?"
    )


def test_a_machine_with_two_devices_of_one_name(refused_compare, tmp_path):
    single = resources.files("gpusvm").joinpath("topologies", "single.toml").read_text("utf-8")
    path = tmp_path / "two.toml"
    path.write_text(single + single.partition("\n\n")[2])
    assert refused_compare("--topology", str(path)) == (
        f"{path}: device: two are called 'gpu0'; give each a name of its own"
    )


class TestTrace:
    def test_an_unknown_name(self, refused_compare):
        assert refused_compare("--workload", "traid") == (
            "unknown workload 'traid', did you mean 'triad'? (or the path of a .parquet file)"
        )

    def test_a_name_twice(self, refused_compare):
        assert refused_compare("--workload", "all", "--workload", "triad") == "workload 'triad' is given twice"

    def test_a_missing_file(self, refused_compare, tiny):
        path = tiny.with_name("tyny.parquet")
        assert refused_compare("--workload", path) == f"{path}: no such file; did you mean 'tiny.parquet'?"

    def test_a_truncated_file(self, refused_compare, tiny):
        tiny.write_bytes(tiny.read_bytes()[:500])
        assert refused_compare("--workload", tiny) == (
            f"{tiny}: expected a Parquet file, got one cut short after 500 bytes (copy it again): "
            "Parquet magic bytes not found in footer. "
            "Either the file is corrupted or this is not a parquet file"
        )

    def test_a_file_of_another_kind(self, refused_compare, tiny):
        tiny.write_text("time_ns,agent\n0,1\n")
        assert refused_compare("--workload", tiny) == (
            f"{tiny}: expected a Parquet file, got a file that begins with b'time_ns,': "
            "Parquet magic bytes not found in footer. "
            "Either the file is corrupted or this is not a parquet file"
        )

    def test_a_missing_column(self, refused_compare, tiny):
        pq.write_table(pq.read_table(tiny).drop_columns(["op"]), tiny)
        assert refused_compare("--workload", tiny) == (
            f"{tiny}: no column 'op', the columns are: time_ns, agent, page, sm; add it as uint8"
        )

    @pytest.mark.parametrize(
        ("address", "line"),
        [
            (-4096, "expected 0 to 0xfffffffffff (16 TiB), got -0x1000; subtract the base of the address space"),
            (4097, "expected a multiple of 4096, got 0x1001; round it down to 0x1000"),
        ],
    )
    def test_an_address(self, refused_compare, tiny, address, line):
        table = pq.read_table(tiny)
        pages = table.column("page").to_pylist()
        addresses = pa.array([page * 4096 for page in pages[:-1]] + [address], pa.int64())
        table = table.drop_columns(["page"]).append_column("address", addresses)
        pq.write_table(table, tiny)
        assert refused_compare("--workload", tiny) == f"{tiny}: row {len(pages) - 1}: column 'address': {line}"

    def test_trace_info_says_the_same(self, refused, tiny):
        tiny.write_bytes(b"")
        assert refused("trace", "info", tiny) == (
            f"gpusvm: {tiny}: expected a Parquet file, got an empty file: Parquet file size is 0 bytes"
        )


class TestDirectory:
    def test_resume_needs_one(self, refused):
        assert refused("compare", "--resume") == "gpusvm: --resume: say which directory to complete with --out DIR"

    def test_events_need_one(self, refused):
        assert refused("compare", "--events") == "gpusvm: --events: the events are files; say where to with --out DIR"

    def test_a_file(self, refused, tiny):
        assert (
            refused("compare", "--out", tiny) == f"gpusvm: {tiny}: expected a directory, got a file; name another one"
        )

    def test_a_directory_with_other_things(self, refused, tiny):
        assert refused("compare", "--out", tiny.parent) == (
            f"gpusvm: {tiny.parent}: the directory is not empty and holds no comparison; name another one"
        )


class TestPlugin:
    def test_a_broken_one(self, refused_compare, tmp_path, monkeypatch):
        file = tmp_path / "broken.py"
        file.write_text("import attrs\nraise RuntimeError('no hardware')\n")
        monkeypatch.setenv("GPUSVM_DRIVERS", f"none,broken={file}")
        assert refused_compare() == (f"driver plugin 'broken': {file}:2: importing {file}: RuntimeError: no hardware")

    def test_two_broken_ones_get_a_line_each(self, gpusvm, tmp_path, monkeypatch):
        for name in ("one", "two"):
            (tmp_path / f"{name}.py").write_text("x = 1\n")
        monkeypatch.setenv("GPUSVM_DRIVERS", f"none,one={tmp_path}/one.py,two={tmp_path}/two.py")
        done = gpusvm("compare", "--out", tmp_path / "out")
        said = "it implements no hook: expected a function gpusvm_drivers marked with @hookimpl"
        assert done.code == 2
        assert done.err == [f"gpusvm: driver plugin {name!r}: {tmp_path}/{name}.py: {said}" for name in ("one", "two")]
        assert not (tmp_path / "out").exists()

    def test_none_installed(self, refused_compare, monkeypatch):
        monkeypatch.setenv("GPUSVM_DRIVERS", "none")
        assert refused_compare() == (
            "no driver plugin is installed; install one (gpusvm-xe, for example), or name a file in GPUSVM_DRIVERS"
        )

    def test_a_wrong_variable(self, refused_compare, monkeypatch):
        monkeypatch.setenv("GPUSVM_DRIVERS", "acme")
        assert refused_compare() == "GPUSVM_DRIVERS: expected 'none' or NAME=FILE.py, got 'acme'"


class TestNewDriver:
    @pytest.mark.parametrize("name", ["Acme", "1st", "a_b", "a/b", "ä"])
    def test_a_name(self, refused, name):
        assert refused("new-driver", name) == (
            "gpusvm: new-driver: expected lower-case letters, digits and '-', beginning with a letter, "
            f"got the name {name!r}"
        )

    def test_a_name_that_is_taken(self, refused, acme):
        assert refused("new-driver", "acme") == (
            f"gpusvm: new-driver: {acme}/gpusvm_acme/plugin.py has a driver 'acme' already; choose another name"
        )

    def test_a_directory_that_is_not_empty(self, refused, tiny):
        assert refused("new-driver", "mine", "--dir", tiny.parent) == (
            f"gpusvm: {tiny.parent}: expected a new or empty directory; name another one with --dir DIR"
        )

    def test_a_place_that_cannot_be_written(self, refused, tiny):
        assert refused("new-driver", "mine", "--dir", tiny / "mine") == (
            f"gpusvm: {tiny / 'mine'}: cannot be written: File exists"
        )


def test_a_command(refused):
    assert refused("comapre") == (
        'gpusvm: Unknown command "comapre". Did you mean "compare"? '
        "Available commands: compare, characterize, conform, drivers, explain, explore, inject, replay, ..."
    )


def test_an_unknown_driver_to_show(refused):
    assert refused("drivers", "acne") == "gpusvm: unknown driver 'acne'; did you mean 'acme'?"
