"""What a driver declares holds with its settings: each value of each tunable, and nothing is otherwise than it says."""

import attrs
import pytest
from gpusvm.conformance.conforming import conform
from gpusvm.driver import read_spec
from gpusvm.errors import InputError
from gpusvm.plugins import load_drivers

DRIVERS = load_drivers()

ELSEWHERE = {
    "kfd:xnack=off": "the GPU may not fault, and an access of a check is a fault: programs ask for memory beforehand",
    "svmdev:chunk_sizes=2M": "memory that no chunk fits into is refused with EINVAL (drm_gpusvm_range_chunk_size)",
    "svmdev:chunk_sizes=4K": "what its conformance.toml says of mixtures is about ranges of several pages",
    "svmdev:notifier_size=4K": "likewise: a range lies within a notifier's window",
    "nouveau:chunk_bytes=1G": "the machine has less device memory",
}
"""Settings with which the checks ask for something else, and why."""


def values(field):
    """Yield values of a tunable besides its default, as a spec string has them."""
    meta, default = field.metadata, field.default
    if meta["choices"]:
        yield from (each for each in meta["choices"] if default not in {each, (each,)})
    elif isinstance(default, bool):
        yield "off" if default else "on"
    elif isinstance(default, tuple):
        yield from map(str, default)
    else:
        numbers = dict.fromkeys((meta["minimum"], default // 2, default * 2, default * 4, meta["maximum"]))
        yield from (str(each) for each in numbers if each not in {None, default})


def specs():
    """Yield the specs with one value each that a driver takes, but for those above."""
    for name in sorted(DRIVERS):
        for field in attrs.fields(DRIVERS[name].tunables):
            for value in values(field):
                try:
                    text = read_spec(f"{name}:{field.name}={value}", DRIVERS).text
                except InputError:
                    continue
                if text not in ELSEWHERE:
                    yield text


@pytest.mark.slow
@pytest.mark.parametrize("text", sorted(set(specs())))
def test_a_driver_has_what_it_declares_with_every_value_of_every_tunable(text):
    found = conform(text, checks=["capability.*"])
    assert [(each.check, each.reason) for each in found.failures] == []


@pytest.mark.parametrize(
    ("text", "capability", "how"),
    [
        ("xe:migrate_after=2", "migrate_on_fault", "migrate_after=2: at first a fault maps the range where it is"),
        ("xe:tries=0", "migrate_on_fault", "tries=0: a fault maps memory where it is, but for atomics"),
        ("xe:chunk_sizes=4K", "large_folios", "chunk_sizes: a range, and so an allocation, has 4K at most"),
        ("xe:owner=device", "multi_device_p2p", "owner=device: a page on another device is faulted home"),
        ("nouveau:runpm=off", "runtime_pm", "runpm=off: the device is always awake"),
        ("kfd:access=in_place", "migrate_on_fault", "access=in_place: a fault maps the pages where they are"),
        (
            "svmdev:same_owner=0",
            "multi_device_p2p",
            "same_owner=0: each device has an owner of its own, and a page on another one is faulted home",
        ),
    ],
)
def test_what_a_setting_takes_away(text, capability, how):
    found = getattr(read_spec(text, DRIVERS).info.capabilities, capability)
    assert (bool(found), found.how) == (False, how)
    conformance = conform(text, checks=[f"capability.{capability.replace('_', '-')}"])
    assert conformance.ok, conformance.failures


def test_what_a_setting_gives():
    assert not read_spec("xe", DRIVERS).info.capabilities.mixed_units
    assert read_spec("xe:chunk_sizes=4K", DRIVERS).info.capabilities.mixed_units
    assert conform("xe:chunk_sizes=4K", checks=["capability.mixed-units"]).ok
