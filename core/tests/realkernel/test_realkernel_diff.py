"""A guest that answers, dies, falls silent or hangs, and what `run` and `diff` make of it; QEMU is a stand-in."""

import json
import shutil
import tempfile
from importlib import resources

import jsonschema
import pytest
from gpusvm.driver.operations import OperationProfile
from gpusvm.errors import InputError
from gpusvm.realkernel import diff, guest, run
from gpusvm.realkernel.recordings import read_recording

SCHEMA = json.loads(resources.files("gpusvm.realkernel").joinpath("schema", "diff-1.json").read_text())


@pytest.fixture
def asked(echo):
    """A registry whose driver has one profile, of these sequences, over and over."""

    def asked(*sequences, **options):
        texts = iter([list(each) for each in sequences])
        profile = OperationProfile(
            name="some",
            about="a test",
            sequence=lambda _: next(texts),
            module="echo",
            settings={"quirk.leak": "fixed"},
            **options,
        )
        return echo(profiles=[profile])

    return asked


def compare(kernel, registry, n, **options):
    return diff("echo", sequences=n, shop=kernel.shop, registry=registry, **options)


def test_a_file_is_done_and_recorded(kernel, asked, tmp_path):
    kernel.says(say_1="0 0 0 0 1", say_2="0 0 0 0 9")
    file = tmp_path / "asked.txt"
    file.write_text("say 1  # one\n say  2\n\n# a comment ends no sequence\nsay 1\n")
    found = run(file, "echo", shop=kernel.shop, registry=asked(), out=tmp_path / "echo-run.json.gz")
    assert found.ok
    assert found.sequences == [(("say 1", "0 0 0 0 1"), ("say 2", "0 0 0 0 9")), (("say 1", "0 0 0 0 1"),)]
    recorded = read_recording(tmp_path / "echo-run.json.gz")
    assert [*recorded.sequences] == found.sequences
    assert (recorded.spec, recorded.devices, recorded.header["release"]) == ("echo:quirk.leak=fixed", 2, "7.3.4")
    assert len(kernel.boots) == 1


def test_a_sequence_of_which_the_kernel_dies_is_marked_and_the_next_is_done(kernel, asked, tmp_path):
    kernel.says(say_1="0 0 0 0 1", say_2="DIES")
    file = tmp_path / "asked.txt"
    file.write_text("say 1\nsay 2\n\nsay 1\n")
    found = run(file, "echo", shop=kernel.shop, registry=asked())
    assert found.sequences == [(("say 1", "CRASHED"), ("say 2", "CRASHED")), (("say 1", "0 0 0 0 1"),)]
    assert found.serial == {0: kernel.serial}
    assert len(kernel.boots) == 2


def test_what_is_no_operation_is_said_before_anything_is_booted(kernel, asked, tmp_path):
    file = tmp_path / "asked.txt"
    file.write_text("say 1\n\nsay\n")
    with pytest.raises(InputError) as refused:
        run(file, "echo", shop=kernel.shop, registry=asked())
    assert str(refused.value) == (
        f"{file}: sequence 1, operation 0: expected 'say' with 1 whole numbers (word), got 'say'"
    )
    assert not (kernel.bin / "boots.txt").exists()


def test_equal_answers_are_no_finding(kernel, asked, tmp_path):
    kernel.says(say_1="0 0 0 0 1", hang="HANGS")
    found = compare(kernel, asked(["say 1"], ["say 1", "hang"]), 2, out=tmp_path / "out")
    assert found.ok
    assert found.compared == {"say": 2, "hang": 1}
    assert found.sequences == [(("say 1", "0 0 0 0 1"),), (("say 1", "0 0 0 0 1"), ("hang", "HANG"))]
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["diff.json", "echo-some-1.json.gz"]


def test_a_difference_is_made_short_and_written_down(kernel, asked, tmp_path):
    kernel.says(**{f"say_{i}": f"0 0 0 0 {i}" for i in range(6)}, say_7="0 0 0 0 8")
    found = compare(kernel, asked(["say 1", "say 7", "say 2"], ["say 3"]), 2, out=tmp_path / "out")
    (finding,) = found.findings
    assert (finding.kind, finding.sequence, finding.level) == ("difference", 0, "L0")
    assert (finding.pairs, finding.got) == ((("say 7", "0 0 0 0 8"),), "0 0 0 0 7")
    written = read_recording(tmp_path / "out" / "echo-some-1-difference-0.json.gz")
    assert (written.sequences, written.header["finding"]) == ((finding.pairs,), "difference")
    document = json.loads((tmp_path / "out" / "diff.json").read_text())
    jsonschema.validate(document, SCHEMA)
    assert document["findings"][0]["pairs"] == [["say 7", "0 0 0 0 8"]]
    assert len(kernel.boots) == 1


def test_a_crash_is_confirmed_made_short_and_not_the_end(kernel, asked, tmp_path):
    kernel.says(say_1="0 0 0 0 1", say_2="DIES")
    sequences = [["say 1", "say 2", "say 1"], ["say 1"], ["say 2", "say 1"]]
    found = compare(kernel, asked(*sequences), 3, out=tmp_path / "out")
    first, second = found.findings
    assert (first.kind, first.sequence, first.pairs, first.same_as) == ("crash", 0, (("say 2", ""),), None)
    assert (second.kind, second.sequence, second.same_as) == ("crash", 2, 0)
    assert first.serial == second.serial == kernel.serial
    assert found.sequences == [(("say 1", "0 0 0 0 1"),)]
    assert (tmp_path / "out" / "echo-some-1-crash-0.serial.txt").read_text() == kernel.serial + "\n"
    jsonschema.validate(json.loads(found.to_json()), SCHEMA)


def test_a_crash_that_does_not_come_again_is_unsteady(kernel, asked):
    kernel.says(say_1=["DIES", "0 0 0 0 1"])
    (finding,) = compare(kernel, asked(["say 1"]), 1).findings
    assert (finding.kind, finding.serial, len(kernel.boots)) == ("unsteady", kernel.serial, 2)


def test_a_kernel_that_falls_silent_is_one_that_died(kernel, asked, monkeypatch):
    monkeypatch.setattr(guest, "_ANSWER_S", 0.3)
    kernel.says(say_1=["STALLS", "0 0 0 0 1"])
    (finding,) = compare(kernel, asked(["say 1"]), 1).findings
    assert (finding.kind, finding.serial, len(kernel.boots)) == ("unsteady", "Linux version 7.3.4", 2)


def test_an_operation_that_does_not_return_is_a_hang(kernel, asked):
    kernel.says(say_1="0 0 0 0 1", say_2="HANGS")
    (finding,) = compare(kernel, asked(["say 1", "say 2", "say 1"]), 1).findings
    assert (finding.kind, finding.pairs, finding.got) == ("hang", (("say 2", "HANG"),), "0 0 0 0 2")


def test_a_process_that_ends_early_is_a_difference(kernel, asked):
    kernel.says(say_1="0 0 0 0 1", say_2="STATUS 9")
    (finding,) = compare(kernel, asked(["say 1", "say 2"]), 1).findings
    assert (finding.kind, finding.pairs) == ("difference", (("say 2", "STATUS 9"),))


def test_a_guest_that_does_not_greet_is_said_to_be_one_and_leaves_nothing(kernel, asked, tmp_path, monkeypatch):
    (tmp_path / "guests").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "guests"))
    kernel.says(greeting="NONE")
    with pytest.raises(guest.GuestDiedError) as died:
        compare(kernel, asked(["say 1"]), 1)
    assert (str(died.value), died.value.serial) == ("the guest did not boot", "Linux version 7.3.4")
    assert [*(tmp_path / "guests").iterdir()] == []


def test_a_profile_says_how_the_guest_is_set_up(kernel, asked):
    kernel.says(where_3="0 0 0 0 gpu3")
    registry = asked(["where 3"], devices=4, coherent=True, parameters=("one=1",))
    assert compare(kernel, registry, 1).ok
    (boot,) = kernel.boots
    assert "GPUSVM_TARGET=echo GPUSVM_MODULE=echo GPUSVM_DEVICE_SIZE=8 memmap=512M$0x140000000" in boot
    assert "GPUSVM_PARAMETERS=one=1" in boot
    assert "-m 6G" in boot


def test_without_qemu_nothing_runs(kernel, asked):
    shutil.rmtree(kernel.bin)
    with pytest.raises(InputError) as refused:
        compare(kernel, asked(["say 1"]), 1)
    assert str(refused.value) == "missing: qemu-system-x86_64; on Debian: apt-get install qemu-system-x86"
