import io

import attrs
from gpusvm.report import print_comparison


def printed(comparison):
    file = io.StringIO()
    print_comparison(comparison, file=file)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_a_pipe_gets_plain_text_with_every_column_whole(comparison):
    lines = printed(comparison)
    assert "\x1b" not in "".join(lines)
    assert lines[0] == "triad"
    assert lines[1] == "1.00 GiB VRAM, thp always, costs h100-pcie5, topology single, seed 0"
    assert lines[3].split() == ["xe", "nouveau", "dmirror", "xe:chunk_sizes=64K+4K"]
    assert lines[5] == " simulated time                  0.21 s *      3.03 s      6.77 s                0.73 s"
    assert lines[-1] == "* marks the least of a row. – does not apply."


def test_power_is_a_line_for_each_device(comparison):
    lines = printed(comparison)
    assert [line for line in lines if ", gpu0: " in line][:2] == [
        (
            "xe, gpu0: D0 88 %, D3cold 12 %; 1 resume; held by vm 88 %, bo 50 %; "
            "when the program ended 1 of vm (since 26.7 ms), 2 of bo (since 160 ms)"
        ),
        "nouveau, gpu0: D0 50 %, D3hot 50 %; 2 resumes; held by ioctl < 1 %; when the program ended by nobody",
    ]


def test_four_drivers_fit_into_80_columns(comparison):
    long, short = comparison.drivers[-1], "svmdev"
    runs = tuple({**run, "driver": short if run["driver"] == long else run["driver"]} for run in comparison.runs)
    renamed = attrs.evolve(comparison, drivers=(*comparison.drivers[:-1], short), runs=runs)
    lines = printed(renamed)
    assert lines[3].split() == ["xe", "nouveau", "dmirror", "svmdev"]
    assert [line for line in lines if line.startswith(" ") and len(line) > 80] == []  # notes wrap as they are


def test_every_workload_has_its_table(comparison):
    lines = printed(comparison)
    assert [line for line in lines if line in comparison.workloads] == ["triad", "bfs"]


def test_a_failed_run_is_marked(comparison):
    failed = attrs.evolve(comparison, runs=tuple(run for run in comparison.runs if run["driver"] != "nouveau"))
    lines = printed(failed)
    assert lines[3].split() == ["xe", "nouveau", "(failed)", "dmirror", "xe:chunk_sizes=64K+4K"]
