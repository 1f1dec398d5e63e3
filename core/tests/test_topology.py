"""Topologies: which devices there is a path between, and what a file may say of it."""

import pytest
from gpusvm.errors import InputError
from gpusvm.machine import load_topology, topologies

DEVICE = '[[device]]\nname = "gpu{}"\ndiscrete = true\np2p = {}\nd3cold_capable = true\n'


@pytest.fixture
def machine(tmp_path):
    def machine(*p2p):
        path = tmp_path / "machine.toml"
        devices = "".join(DEVICE.format(*each) for each in enumerate(p2p))
        path.write_text(f'name = "mine"\nsummary = "mine"\nram_bytes = 16777216\n{devices}', "utf-8")
        return path

    return machine


def peers(topology):
    return [sorted(topology.peers(index)) for index in range(len(topology.device))]


def test_the_bundled_ones():
    assert {name: peers(load_topology(name)) for name in topologies()} == {
        "discrete-integrated": [[], []],
        "dual": [[], []],
        "dual-p2p": [[1], [0]],
        "single": [[]],
        "triple-p2p": [[1], [0, 2], [1]],
        "two-tiles": [[]],
    }


@pytest.mark.parametrize(
    ("p2p", "found"),
    [
        (["true", "true", "true"], [[1, 2], [0, 2], [0, 1]]),
        (["true", "false", "true"], [[2], [], [0]]),
        (["true", '["gpu0"]', "true"], [[1, 2], [0], [0]]),
        (["[]", "true", "true"], [[], [2], [1]]),
    ],
)
def test_a_path_is_there_if_neither_end_says_otherwise(machine, p2p, found):
    assert peers(load_topology(machine(*p2p))) == found


@pytest.mark.parametrize(
    ("p2p", "problem"),
    [
        (['["gpu0"]'], "device 'gpu0': p2p[0]: 'gpu0' is the device itself; name others"),
        (['["gpu2"]', "true"], "device 'gpu0': p2p[0]: unknown device 'gpu2', did you mean 'gpu1'?"),
        (
            ['["gpu1"]', "false"],
            "device 'gpu0': p2p[0]: 'gpu1' has no path back to 'gpu0'; name it in the p2p of both, or of neither",
        ),
        (
            ['["gpu1"]', '["gpu2"]', '["gpu1"]'],
            "device 'gpu0': p2p[0]: 'gpu1' has no path back to 'gpu0'; name it in the p2p of both, or of neither",
        ),
        (['"gpu1"', "true"], "device[0].p2p: expected true, false or a list, got 'gpu1'"),
        (["1"], "device[0].p2p: expected true, false or a list, got 1"),
        (["[1]"], "device[0].p2p[0]: expected a text, got 1"),
    ],
)
def test_paths_that_cannot_be(machine, p2p, problem):
    path = machine(*p2p)
    with pytest.raises(InputError) as error:
        load_topology(path)
    assert str(error.value) == f"{path}: {problem}"
