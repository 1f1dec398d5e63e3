"""Races of two threads: what the model allows, what a kernel does, and what is said of it; QEMU is a stand-in."""

import json
import re
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
from gpusvm.driver.operations import OperationProfile, OperationRace
from gpusvm.errors import GpusvmError, InputError, ModelError
from gpusvm.plugins import Registry
from gpusvm.realkernel import race
from gpusvm.realkernel.races.files import read_races
from gpusvm.realkernel.races.outcome import for_block

SCHEMA = json.loads(resources.files("gpusvm.realkernel").joinpath("schema", "race-1.json").read_text())

BEFORE = ("mmap 0 0 2 3 0", "w 0 0 2 5")
UNMAPPED = OperationRace(
    name="unmapped", about="pages go while they are read", before=BEFORE, left="munmap 0 0 2", right="r 0 0 2", after=()
)
NONE, ONE, BOTH = "-2 11 0 0 ", "-2 11 1 0 5", "0 0 2 0 5,6"
HANGS = OperationRace(name="hangs", about="", before=(), left="hang", right="say 1", after=())
BREAKS = OperationRace(name="breaks", about="", before=(), left="say 1", right="break", after=())
LATER = OperationRace(name="later", about="", before=(), left="say 1", right="say 2", after=("say 3", "hang"))


@pytest.fixture
def racing(echo, target, kernel):
    """Race on the stand-in, whose driver has the profile `some` and these races; `break` is what no kernel survives."""

    def start(host):
        def broken():
            raise ModelError("broken")

        executor = target.start(host)
        executor.do_break = broken
        return executor

    profile = OperationProfile(name="some", about="", sequence=lambda _: [], module="echo")
    registry = echo(profiles=[profile], races=[UNMAPPED, HANGS, BREAKS, LATER], start=start)

    def racing(*names, tries=1, driver="echo", **options):
        return race(driver, names=names, tries=tries, shop=kernel.shop, registry=registry, **options)

    racing.registry = registry
    return racing


def says(kernel, *sides, race="race munmap 0 0 2 | r 0 0 2"):
    kernel.says(w_0_0_2_5="0 0 2 0", **{race: list(sides)})


def test_outcomes_of_the_kernel_and_of_the_model_are_counted_and_compared(racing, kernel, tmp_path):
    says(kernel, f"0 0 0 0 | {BOTH}", f"0 0 0 0 | {NONE}", f"0 0 0 0 | {BOTH} ev(1) other(2)")
    found = racing("unmapped", tries=3, out=tmp_path / "out")
    (result,) = found.results
    assert result.kernel == {("0 0 0 0", BOTH): 2, ("0 0 0 0", NONE): 1}
    assert result.allowed.outcomes == {("0 0 0 0", BOTH), ("0 0 0 0", NONE), ("0 0 0 0", ONE)}
    assert (result.unknown, result.unseen, result.verdict, found.ok) == ([], [("0 0 0 0", ONE)], "allowed", True)
    assert result.allowed.exhausted
    document = json.loads((tmp_path / "out" / "race.json").read_text())
    jsonschema.validate(document, SCHEMA)
    (listed,) = document["races"]
    assert (listed["name"], listed["profile"], listed["tries"], listed["verdict"]) == ("unmapped", "some", 3, "allowed")
    assert [(each["answers"][1], each["kernel"], each["model"]) for each in listed["outcomes"]] == [
        (BOTH, 2, True),
        (NONE, 1, True),
        (ONE, 0, True),
    ]
    delays = (kernel.bin / "delays.txt").read_text().split()
    assert [str(each["delay"]) for each in listed["outcomes"]] == [delays[0], delays[1], "None"]
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["race.json"]
    (boot,) = kernel.boots
    assert "-smp 2" in boot


def test_the_same_seed_delays_alike(racing, kernel):
    says(kernel, f"0 0 0 0 | {BOTH}")
    for seed in (7, 7, 8):
        racing("unmapped", tries=2, seed=seed)
    first, second, third = zip(*[iter((kernel.bin / "delays.txt").read_text().split())] * 2, strict=True)
    assert first == second != third


def test_an_outcome_that_the_model_does_not_allow_is_written_down_to_be_repeated(racing, kernel, tmp_path):
    says(kernel, f"0 0 0 0 | {BOTH}", "0 0 0 0 | 0 0 2 0 5,9")
    found = racing("unmapped", tries=2, out=tmp_path / "out")
    (result,) = found.results
    assert (result.unknown, result.verdict, found.ok) == ([("0 0 0 0", "0 0 2 0 5,9")], "refuted", False)
    text = (tmp_path / "out" / "unmapped.txt").read_text()
    assert re.sub(r"\d+ orders|delay \d+", "N", text) == (
        "# pages go while they are read\n"
        "# Not among the 3 outcomes of N:\n"
        "# 1 of 2 tries, N:\n"
        "#     0 0 0 0\n"
        "#     0 0 2 0 5,9\n"
        "mmap 0 0 2 3 0\nw 0 0 2 5\nrace munmap 0 0 2 | r 0 0 2\n"
    )
    again = racing(files=[tmp_path / "out" / "unmapped.txt"])
    assert [each.race.name for each in again.results] == ["unmapped"]
    assert again.results[0].unknown == [("0 0 0 0", "0 0 2 0 5,9")]


def test_nothing_is_refuted_by_a_model_that_was_not_asked_for_all(racing, kernel):
    says(kernel, f"0 0 0 0 | {BOTH}")
    found = racing("unmapped", schedules=1)
    (result,) = found.results
    assert (result.allowed.schedules, result.allowed.outcomes, result.verdict) == (1, {("0 0 0 0", NONE)}, "open")
    assert not found.ok


def test_without_a_preemption_each_side_is_done_whole(racing, kernel):
    says(kernel, f"0 0 0 0 | {BOTH}")
    (result,) = racing("unmapped", preemptions=0).results
    assert result.allowed.outcomes == {("0 0 0 0", BOTH), ("0 0 0 0", NONE)}
    assert (result.allowed.exhausted, result.allowed.bounded) == (True, True)
    (result,) = racing("unmapped", preemptions=None).results
    assert (len(result.allowed.outcomes), result.allowed.exhausted, result.allowed.bounded) == (3, True, False)


def test_a_race_that_does_not_return_is_an_outcome_on_both_sides(racing, kernel, tmp_path):
    says(kernel, "HANGS", "0 0 0 0 1 | 0 0 0 0 1", race="race hang | say 1")
    found = racing("hangs", tries=2, out=tmp_path / "out")
    (result,) = found.results
    assert result.kernel == {("HANG",): 1, ("0 0 0 0 1", "0 0 0 0 1"): 1}
    assert result.allowed.broken == {("HANG",): "deadlock: nothing can run"}
    assert result.unknown == [("0 0 0 0 1", "0 0 0 0 1")]
    assert len(kernel.boots) == 2


def test_so_is_one_that_the_kernel_dies_of(racing, kernel, tmp_path):
    says(kernel, "DIES", race="race say 1 | break")
    found = racing("breaks", out=tmp_path / "breaks")
    assert found.ok
    assert found.results[0].kernel == {("CRASH",): 1}
    assert found.results[0].allowed.broken == {("CRASH",): "ModelError: broken"}
    says(kernel, *2 * ["DIES"], race="race munmap 0 0 2 | r 0 0 2")
    found = racing("unmapped", out=tmp_path / "out")
    assert found.results[0].unknown == [("CRASH",)]
    assert (tmp_path / "out" / "unmapped-0.serial.txt").read_text() == kernel.serial + "\n"


def test_what_came_before_the_end_belongs_to_the_outcome(racing, kernel):
    kernel.says(**{"race say 1 | say 2": "0 0 0 0 1 | 0 0 0 0 2", "say 3": "0 0 0 0 3", "hang": "HANGS"})
    (result,) = racing("later").results
    assert result.kernel == {("0 0 0 0 1", "0 0 0 0 2", "0 0 0 0 3", "HANG"): 1}
    assert result.verdict == "allowed"


def test_a_kernel_that_stops_before_the_race_is_no_outcome(racing, kernel):
    kernel.says(mmap_0_0_2_3_0="HANGS")
    message = r"^race unmapped: the kernel answered \['HANG'\], and did not come to the race$"
    with pytest.raises(GpusvmError, match=message):
        racing("unmapped")


def test_recorded_outcomes_are_compared_without_a_kernel(racing, kernel, tmp_path):
    sides = [f"0 0 0 0 | {BOTH}", "0 0 0 0 | 0 0 2 0 5,9"]
    kernel.says(**{"race munmap 0 0 2 | r 0 0 2": sides, "race say 1 | say 2": "0 0 0 0 1 | 0 0 0 0 2"})
    racing("unmapped", "later", tries=2, out=tmp_path / "out")
    booted = len(kernel.boots)
    recorded = tmp_path / "out" / "race.json"
    again = racing("unmapped", recorded=recorded, preemptions=0)
    (result,) = again.results
    assert result.kernel == {("0 0 0 0", BOTH): 1, ("0 0 0 0", "0 0 2 0 5,9"): 1}
    assert result.unknown == [("0 0 0 0", "0 0 2 0 5,9")]
    assert len(kernel.boots) == booted
    document = again.to_dict()
    jsonschema.validate(document, SCHEMA)
    assert (document["release"], document["tries"], document["preemptions"]) == ("7.3.4", 2, 0)


def test_eighths_of_a_huge_page_are_counted_in_its_pages():
    text = OperationRace(
        name="huge", about="", before=("mmap 0 0 @8 3 0",), left="r 0 @5 1", right="sb 0 0", after=("r 0 1 1",)
    )
    assert for_block(text, 512).before == ("mmap 0 0 512 3 0",)
    assert for_block(text, 512).left == "r 0 320 1"
    assert for_block(text, 8).before == ("mmap 0 0 8 3 0",)
    assert (for_block(text, 8).left, for_block(text, 8).right) == ("r 0 5 1", "sb 0 0")


def test_a_file_has_races_with_an_empty_line_between(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("# two\nmmap 0 0 1 3 0\nrace r 0 0 1 | munmap 0 0 1\npm 0 0 1\n\nrace say  1|say 2\n")
    first, second = read_races(path, "some")
    assert (first.name, first.before, first.left, first.right, first.after, first.profile) == (
        "mine-0",
        ("mmap 0 0 1 3 0",),
        "r 0 0 1",
        "munmap 0 0 1",
        ("pm 0 0 1",),
        "some",
    )
    assert (second.name, second.left, second.right) == ("mine-1", "say 1", "say 2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("say 1\n", "{path}: race 0: expected one line 'race LEFT | RIGHT', got 0"),
        ("race say 1 | say 2\nrace say 1 | say 2\n", "{path}: race 0: expected one line 'race LEFT | RIGHT', got 2"),
        ("race say 1\n", "{path}: race 0: expected 'race LEFT | RIGHT', got 'race say 1'"),
        ("race say 1 |\n", "{path}: race 0: expected 'race LEFT | RIGHT', got 'race say 1 |'"),
        ("race say | say 1\n", "race mine: expected 'say' with 1 whole numbers (word), got 'say'"),
    ],
)
def test_what_is_no_race_is_said(racing, kernel, tmp_path, text, message):
    path = tmp_path / "mine.txt"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        racing(files=[path])
    assert str(refused.value) == message.format(path=path)
    assert not (kernel.bin / "boots.txt").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["unmaped"]}, "--race: unknown race 'unmaped' of echo; did you mean 'unmapped'?"),
        ({"tries": 0}, "--tries: expected 1 or more, got 0"),
        ({"schedules": 0}, "--schedules: expected 1 or more, got 0"),
        ({"profile": "some"}, "--profile: a race of the driver has its own; give it for a file of races"),
        (
            {"recorded": Path("it"), "profile": "some"},
            "--recorded: the recording says what the races are; leave files and --profile out",
        ),
        ({"recorded": Path("missing")}, "missing: expected a race.json: No such file or directory"),
    ],
)
def test_what_cannot_be_asked_is_said(racing, kernel, options, message):
    with pytest.raises(InputError) as refused:
        racing(*options.pop("names", ()), **options)
    assert str(refused.value).startswith(message)


def test_a_file_that_is_no_recording_is_said(racing, tmp_path):
    path = tmp_path / "race.json"
    for text, message in [
        ("[", f"{path}: expected a race.json: Expecting value"),
        ("[]", f"{path}: top level: expected a table, got []"),
        (
            '{"schema": 2, "target": "echo", "spec": "echo", "races": []}',
            f"{path}: expected races of schema 1, got 2",
        ),
        ('{"schema": 1, "target": "echo", "spec": "echo", "races": []}', f"{path} has no races"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError) as refused:
            racing(recorded=path)
        assert str(refused.value).startswith(message)


def test_a_driver_without_races_is_said(echo, kernel):
    profile = OperationProfile(name="some", about="", sequence=lambda _: [], module="echo")
    registry: Registry = echo(profiles=[profile])
    with pytest.raises(InputError, match=r"^echo has no races$"):
        race("echo", shop=kernel.shop, registry=registry)
