"""Spec strings: what they mean, their one normalised form, and what bad ones get."""

import pytest
from attrs import frozen
from gpusvm.driver import (
    ABI,
    Capabilities,
    DriverInfo,
    format_size,
    no,
    parse_size,
    quirk,
    read_spec,
    split_spec,
    tunable,
    yes,
)
from gpusvm.errors import InputError

K, M, G = 1 << 10, 1 << 20, 1 << 30


@frozen(kw_only=True)
class Tunables:
    chunk_sizes: tuple[int, ...] = tunable(
        (2 * M, 4 * K), "Sizes", unit="bytes", minimum=4 * K, maximum=2 * M, power_of_two=True, descending=True
    )
    queues: int = tunable(4, "Queues", unit="count", minimum=1, maximum=64)
    page_to_bo: str = tunable("zdd", "How", unit="choice", choices=("zdd", "offset"))
    batching: bool = tunable(False, "Whether", unit="flag")


@frozen(kw_only=True)
class Quirks:
    sticky_atomic: str = quirk("A flag stays set", cite="x.c:f")
    no_events: str = quirk("Nothing to mend", cite="x.c:g", fixable=False)


@frozen(kw_only=True)
class MmQuirks:
    mm_s1: str = quirk("A page is lost", cite="mm/x.c")


def refuse(tunables, quirks):
    if tunables.page_to_bo == "offset" and tunables.queues == 1:
        return ["page_to_bo=offset needs more than one queue"]
    return []


def make(host):
    raise AssertionError(host)


def info(name, *, explicit=True):
    capability = yes("as the kernel does")
    return DriverInfo(
        name=name,
        summary="A driver for tests",
        abi=ABI,
        kernel="7.3.4",
        capabilities=Capabilities(
            device_memory=capability,
            migrate_on_fault=capability,
            explicit_populate=capability if explicit else no("there is no such ioctl"),
            atomics=capability,
            eviction=capability,
            runtime_pm=capability,
            multi_device_p2p=no("one device"),
            large_folios=capability,
            prefetch=no("nothing to do it with"),
            mixed_units=capability,
            unplug=capability,
            drm_gpusvm=capability,
            drm_pagemap=capability,
            pagemap_cache=capability,
        ),
        tunables=Tunables,
        quirks=Quirks,
        embedding="a",
        bo_mapping="b",
        pm="c",
        make=make,
        refuse=refuse,
    )


DRIVERS = {"xe": info("xe"), "plain": info("plain", explicit=False)}


def read(text, **options):
    return read_spec(text, DRIVERS, mm_quirks=MmQuirks, **options)


def test_a_bare_name_has_all_defaults_and_is_its_own_normal_form():
    spec = read("xe")
    assert (spec.text, spec.name, spec.populate) == ("xe", "xe", "fault")
    assert (spec.tunables, spec.quirks, spec.mm_quirks) == (Tunables(), Quirks(), MmQuirks())


def test_every_kind_of_value_is_read_by_its_type():
    spec = read("xe:queues=2,chunk_sizes=64K+4096,page_to_bo=offset,batching=on,populate=explicit")
    assert spec.tunables == Tunables(queues=2, chunk_sizes=(64 * K, 4 * K), page_to_bo="offset", batching=True)
    assert spec.populate == "explicit"
    assert spec.text == "xe:batching=on,chunk_sizes=64K+4K,page_to_bo=offset,populate=explicit,queues=2"


def test_normalising_sorts_keys_shortens_sizes_and_adds_no_defaults():
    assert read("xe:queues=4,chunk_sizes=2048K").text == "xe:chunk_sizes=2M,queues=4"
    assert read(read("xe:queues=4,chunk_sizes=2048K").text).text == "xe:chunk_sizes=2M,queues=4"


def test_a_quirk_is_the_drivers_or_the_mms():
    spec = read("xe:quirk.sticky_atomic=fixed,quirk.mm_s1=fixed")
    assert spec.quirks == Quirks(sticky_atomic="fixed")
    assert spec.mm_quirks == MmQuirks(mm_s1="fixed")


def test_one_option_fixes_all_quirks_that_the_string_does_not_name():
    spec = read("xe:quirk.sticky_atomic=as_written", quirks="fixed")
    assert spec.quirks == Quirks(sticky_atomic="as_written", no_events="as_written")
    assert spec.mm_quirks == MmQuirks(mm_s1="fixed")
    assert spec.text == "xe:quirk.sticky_atomic=as_written"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "driver spec '': expected NAME[:KEY=VALUE[,KEY=VALUE…]], got the name ''"),
        ("xe:", "driver spec 'xe:': expected KEY=VALUE after the colon, got ''"),
        ("xe:queues", "driver spec 'xe:queues': expected KEY=VALUE after the colon, got 'queues'"),
        ("xe:queues=", "driver spec 'xe:queues=': expected KEY=VALUE after the colon, got 'queues='"),
        ("xe:queues=1,queues=2", "driver spec 'xe:queues=1,queues=2': key 'queues' is given twice"),
        ("plian", "driver spec 'plian': unknown driver 'plian'; did you mean 'plain'?"),
        ("kfd", "driver spec 'kfd': unknown driver 'kfd'; valid: plain, xe"),
        ("xe:ques=1", "driver spec 'xe:ques=1': unknown key 'ques' of driver xe; did you mean 'queues'?"),
        (
            "xe:quirk.sticky_atomics=fixed",
            (
                "driver spec 'xe:quirk.sticky_atomics=fixed': unknown key 'quirk.sticky_atomics' of driver xe; "
                "did you mean 'quirk.sticky_atomic'?"
            ),
        ),
        (
            "xe:quirk.sticky_atomic=fix",
            "driver spec 'xe:quirk.sticky_atomic=fix': quirk.sticky_atomic: unknown value 'fix'; did you mean 'fixed'?",
        ),
        (
            "xe:quirk.no_events=fixed",
            (
                "driver spec 'xe:quirk.no_events=fixed': quirk.no_events: this quirk has no variant 'fixed', "
                "only 'as_written'"
            ),
        ),
        (
            "xe:page_to_bo=ofset",
            "driver spec 'xe:page_to_bo=ofset': page_to_bo: unknown value 'ofset'; did you mean 'offset'?",
        ),
        ("xe:batching=yes", "driver spec 'xe:batching=yes': batching: expected on or off, got 'yes'"),
        ("xe:queues=two", "driver spec 'xe:queues=two': queues: expected a whole number (count), got 'two'"),
        ("xe:queues=0", "driver spec 'xe:queues=0': queues: expected at least 1, got '0'"),
        ("xe:queues=65", "driver spec 'xe:queues=65': queues: expected at most 64, got '65'"),
        (
            "xe:chunk_sizes=big",
            "driver spec 'xe:chunk_sizes=big': chunk_sizes: expected a size such as 64K, 2M or 4096, got 'big'",
        ),
        ("xe:chunk_sizes=5000", "driver spec 'xe:chunk_sizes=5000': chunk_sizes: expected a power of two, got '5000'"),
        ("xe:chunk_sizes=4M", "driver spec 'xe:chunk_sizes=4M': chunk_sizes: expected at most 2M, got '4M'"),
        (
            "xe:chunk_sizes=4K+64K",
            (
                "driver spec 'xe:chunk_sizes=4K+64K': chunk_sizes: expected values that fall from left to right, "
                "got '4K+64K'"
            ),
        ),
        ("xe:populate=now", "driver spec 'xe:populate=now': populate: unknown value 'now'; valid: fault, explicit"),
        (
            "plain:populate=explicit",
            (
                "driver spec 'plain:populate=explicit': populate: driver plain has no explicit populate: "
                "there is no such ioctl"
            ),
        ),
        (
            "xe:page_to_bo=offset,queues=1",
            "driver spec 'xe:page_to_bo=offset,queues=1': page_to_bo=offset needs more than one queue",
        ),
    ],
)
def test_a_bad_spec_gets_one_line(text, message):
    with pytest.raises(InputError) as caught:
        read(text)
    assert str(caught.value) == message


def test_splitting_asks_nothing_about_the_names():
    assert split_spec("any.thing-1:a=b,c=d=e") == ("any.thing-1", {"a": "b", "c": "d=e"})


@pytest.mark.parametrize(("text", "size"), [("4096", 4096), ("64K", 64 * K), ("2m", 2 * M), ("1G", G), ("0", 0)])
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("size", "text"), [(4096, "4K"), (64 * K, "64K"), (2 * M, "2M"), (3 * G, "3G"), (5000, "5000"), (0, "0")]
)
def test_sizes_are_written_with_the_largest_suffix_that_loses_nothing(size, text):
    assert format_size(size) == text
