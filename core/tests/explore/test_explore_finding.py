"""A finding file says everything, reads as what was written, and a damaged one is refused with its line."""

import pytest
from gpusvm.errors import InputError
from gpusvm.explore.answers import CARRY_ON, Answer
from gpusvm.explore.finding import Finding, read_finding
from gpusvm.explore.scenario import Operation, Scenario

TEXT = """\
gpusvm finding 1
gpusvm     0.1.0
driver     acme:chunk_sizes=4K
quirks     fixed
mutant     MM-01
failures   1
found-by   random, seed 0, schedule 17
shrunk     preemptions 9 -> 1
kind       invariant
invariant  12
steps      122

message
    invariant 12 (…): first

      and second

scenario
    [[scenario]]
    name = "fault-munmap"
    about = "say \\"why\\""
    setup = ["map 0 4", "cpu_write 0 4"]
    standard = true
    thp = "always"
    vram_pages = 32
    tasks.gpu = ["gpu_write 0 4"]
    tasks."a b" = ["munmap 0 4"]

answers
    2 carry on
    switch to 1 cpu
    switch to 1 cpu
    next is 2 kworker/acme_faults:0
    fail dma.map
    choose 3 of something
    1 carry on

end
"""

FINDING = Finding(
    scenario=Scenario(
        name="fault-munmap",
        about='say "why"',
        setup=(Operation.parse("map 0 4"), Operation.parse("cpu_write 0 4")),
        standard=True,
        thp="always",
        vram_pages=32,
        tasks={"gpu": (Operation.parse("gpu_write 0 4"),), "a b": (Operation.parse("munmap 0 4"),)},
    ),
    driver="acme:chunk_sizes=4K",
    quirks="fixed",
    mutant="MM-01",
    failures_max=1,
    found_by="random, seed 0, schedule 17",
    shrunk="preemptions 9 -> 1",
    kind="invariant",
    invariant="12",
    message="invariant 12 (…): first\n\n  and second",
    steps=122,
    answers=(
        CARRY_ON,
        CARRY_ON,
        Answer("switch", 1, "cpu"),
        Answer("switch", 1, "cpu"),
        Answer("next", 2, "kworker/acme_faults:0"),
        Answer("fail", 1, "dma.map"),
        Answer("choose", 3, "of something"),
        CARRY_ON,
    ),
    version="0.1.0",
)


@pytest.fixture
def read(tmp_path):
    path = tmp_path / "finding.txt"

    def read(text):
        path.write_text(text, "utf-8")
        return read_finding(path)

    return read


@pytest.fixture
def refused(read, tmp_path):
    def refused(text):
        with pytest.raises(InputError) as caught:
            read(text)
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / 'finding.txt'}:")
        return message.removeprefix(f"{tmp_path / 'finding.txt'}:")

    return refused


def test_it_is_written():
    assert str(FINDING) == TEXT


def test_it_reads_as_what_was_written(read):
    assert read(TEXT) == FINDING


def test_what_mail_does_to_it(read):
    lines = [line.rstrip() for line in TEXT.splitlines()]
    assert read("\ufeff" + "\r\n".join([lines[0], "# as seen on my machine", *lines[1:], "", ""])) == FINDING


def test_what_is_not_there_is_left_out(read):
    text = TEXT.replace("mutant     MM-01\n", "").replace("shrunk     preemptions 9 -> 1\n", "")
    assert (read(text).mutant, read(text).shrunk) == (None, "")
    assert str(read(text)) == text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("gpusvm finding 1\n", "", "1: expected 'gpusvm finding 1', got 'gpusvm     0.1.0': it is no finding file"),
        ("gpusvm finding 1", "gpusvm finding 2", "1: expected format 1, got '2'"),
        ("quirks     fixed", "quirks     fixt", "4: quirks: unknown value 'fixt', did you mean 'fixed'?"),
        ("quirks     fixed\n", "", "37: 'quirks' is missing"),
        ("failures   1", "failure   1", "6: unknown key 'failure', did you mean 'failures'?"),
        ("failures   1", "failures   one", "6: failures: expected a whole number, got 'one'"),
        ("mutant     MM-01", "driver     xe", "5: driver is given twice, the first time in line 3"),
        ("\nend\n", "\n", "37: the file is cut short: expected 'end' as its last line"),
        ("\nend\n", "\nend\nmore\n", "39: expected nothing after 'end', got 'more'"),
        ("message\n", "answers\n", "13: expected the section 'message', got 'answers'"),
        ("    fail dma.map", "fail dma.map", "34: expected a line of 'answers', indented by 4, got 'fail dma.map'"),
        (
            "fail dma.map",
            "fails dma.map",
            (
                "34: expected 'N carry on', 'switch to N TASK', 'next is N TASK', 'fail SITE' or 'choose N WHAT', "
                "got 'fails dma.map'"
            ),
        ),
        ("choose 3", "choose 0", "35: 'choose' counts from 1; 0 is to carry on"),
        (
            'tasks.gpu = ["gpu_write 0 4"]',
            "tasks.gpu = []",
            "19: scenario[0]: 'fault-munmap' needs at least one task, and each task an operation",
        ),
        (
            "vram_pages = 32",
            "vram_page = 32",
            "19: scenario[0]: top level: unknown key 'vram_page', did you mean 'vram_pages'?",
        ),
    ],
)
def test_a_damaged_file(refused, old, new, message):
    assert TEXT.count(old) == 1
    assert refused(TEXT.replace(old, new)) == message


def test_an_empty_file(refused):
    assert refused("") == "1: expected 'gpusvm finding 1', got '': it is no finding file"


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError) as caught:
        read_finding(tmp_path / "none.txt")
    assert (
        str(caught.value)
        == f"{tmp_path / 'none.txt'}: expected a finding file, cannot be read: No such file or directory"
    )
    (tmp_path / "latin.txt").write_bytes(b"\xe4")
    with pytest.raises(InputError) as caught:
        read_finding(tmp_path / "latin.txt")
    assert str(caught.value) == (
        f"{tmp_path / 'latin.txt'}: expected a finding file, cannot be read: "
        "'utf-8' codec can't decode byte 0xe4 in position 0: unexpected end of data"
    )
