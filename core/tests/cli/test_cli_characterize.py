"""gpusvm characterize on what `gpusvm new-driver` writes: all it is asked it answers, and it is what it declares."""

import json


def test_a_driver_without_device_memory(gpusvm):
    done = gpusvm("characterize", "--json")
    assert (done.code, done.err) == (0, [])
    probes = json.loads(done.out)["probes"]
    assert [each["id"] for each in probes] == [f"S{number}" for number in range(1, 46)]
    assert {each["driver"] for each in probes} == {"acme"}
    assert {each["expected"] for each in probes} == {None}
    seen = {each["id"]: each["observed"] for each in probes}
    assert seen["S1"] == "RAM"
    assert seen["S2"] == "n/a: nothing can be populated (EOPNOTSUPP)"
    assert seen["S16"] == "refused with ENOENT"
    assert seen["S45"] == "always what was written last"
    assert not [each for each in seen.values() if each.startswith("broke")]
