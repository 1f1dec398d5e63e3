"""What a driver states of itself, and what is wrong with a statement."""

import pytest
from gpusvm.conformance.suite.catalogue import catalogue
from gpusvm.conformance.suite.check import check
from gpusvm.conformance.suite.column import read_columns
from gpusvm.conformance.suite.defects import DEFECTS
from gpusvm.conformance.suite.statements import check_statements
from gpusvm.conformance.uses import USES
from gpusvm.driver import Capabilities
from gpusvm.errors import InputError, ModelError

ENTRY = 'check = "access.read.cpu-wrote"\nkind = "bug"\nreason = "r"\nref = "x"\n'


def problem(registry, statement, **options):
    with pytest.raises(InputError) as found:
        read_columns((), registry(statement), **options)
    file, _, rest = str(found.value).partition(": ")
    assert file.endswith("acme.conformance.toml")
    return rest


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (
            "[[expected]]\ncheck = 3",
            (
                "line 1: expected[0].kind: missing; line 1: expected[0].reason: missing; line 1: expected[0].ref: "
                "missing; line 1: expected[0].check: expected a text, got 3"
            ),
        ),
        (
            f"[[expected]]\n{ENTRY.replace('bug', 'bugg')}",
            "line 1: expected[0].kind: expected one of 'bug', 'by-design', 'not-yet', got 'bugg'",
        ),
        (
            f"\n\n[[ expected ]]\n{ENTRY}quirkz = 'a'",
            "line 3: expected[0]: unknown key 'quirkz', did you mean 'quirk'?",
        ),
        (
            f"[[expected]]\n{ENTRY}quirk = 'mm_q12'\nquirks = ['mm_q12']",
            "line 1: expected[0]: say one quirk, or quirks of which each breaks the checks",
        ),
        (
            f"[[expected]]\n{ENTRY}quirks = ['mm_q12', 'mm_q12 + mm_q13x']",
            "line 2: access.read.cpu-wrote: unknown quirk 'mm_q13x'; did you mean 'mm_q13'?",
        ),
        ("[[expected]]\n" + ENTRY.replace('"r"', '" "'), "line 2: access.read.cpu-wrote: reason: say it"),
        (f"[[expected]]\n{ENTRY}[[expected]]\n{ENTRY}", "check 'access.read.cpu-wrote' is stated twice"),
        (
            f"[[expected]]\n{ENTRY}quirk = 'mm_q12x'",
            "line 2: access.read.cpu-wrote: unknown quirk 'mm_q12x'; did you mean 'mm_q12'?",
        ),
        ('spec = "1"', "spec: expected MAJOR.MINOR, such as 1.0, got '1'"),
        ('spec = "1.7"', "spec: it targets 1.7, and this gpusvm-core has 1.0"),
        ('spec = "0.1"', "spec: it targets 0.1, and this gpusvm-core has 1.0"),
    ],
)
def test_what_is_wrong_with_a_statement(registry, statement, said):
    assert problem(registry, statement).startswith(said)


def test_no_toml(registry):
    assert problem(registry, "[[expected]").startswith("Expected ']]' at the end")


def test_an_entry_with_a_quirk_says_nothing_once_that_is_fixed(registry):
    drivers = registry(f"[[expected]]\n{ENTRY}quirk = 'mm_q12'")
    checked = next(each for each in catalogue() if each.id == "access.read.cpu-wrote")
    (column,) = read_columns((), drivers)
    assert column.expected(checked).reason == "r"
    (column,) = read_columns((), drivers, quirks="fixed")
    assert column.expected(checked) is None
    (column,) = read_columns(["acme:quirk.mm_q12=fixed"], drivers)
    assert column.expected(checked) is None


@pytest.mark.parametrize(
    ("fixed", "applies"),
    [
        ((), True),
        (("mm_q12",), True),
        (("mm_q12", "mm_s1"), False),
        (("mm_s1", "mm_s2"), True),
        (("mm_q12", "mm_s1", "mm_s2"), False),
    ],
)
def test_an_entry_with_several_quirks_ends_when_none_of_them_is_left(registry, fixed, applies):
    drivers = registry(f"[[expected]]\n{ENTRY}quirks = ['mm_q12', 'mm_s1 + mm_s2']")
    checked = next(each for each in catalogue() if each.id == "access.read.cpu-wrote")
    (column,) = read_columns(["acme" + ":"[: len(fixed)] + ",".join(f"quirk.{each}=fixed" for each in fixed)], drivers)
    assert (column.expected(checked) is not None) is applies


def test_an_entry_can_be_of_another_driver_of_the_plugin(registry):
    (column,) = read_columns((), registry(f"[[expected]]\n{ENTRY}driver = 'other'"))
    assert column.statement.expected == {}


def test_an_entry_that_no_check_can_meet(registry):
    stale = ENTRY.replace("cpu-wrote", "cpu-wrot")
    lacking = ENTRY.replace("access.read.cpu-wrote", "home.cpu-touch.contents")
    columns = read_columns((), registry(f"[[expected]]\n{stale}[[expected]]\n{lacking}"))
    with pytest.raises(InputError) as found:
        check_statements(columns, catalogue())
    assert str(found.value) == (
        "acme.conformance.toml:2: no check is called 'access.read.cpu-wrot'; did you mean "
        "'access.read.cpu-wrote'?; acme.conformance.toml:7: home.cpu-touch.contents is unsupported on acme: "
        "device_memory: nothing migrates yet; explicit_populate: there is no device memory to populate"
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"id_": "Fault"}, "expected an id such as area.subject.claim, of lower-case words joined by '-'"),
        ({"since": "one"}, "since: expected MAJOR.MINOR, such as 1.0, got 'one'"),
        ({"since": "7.0"}, "since 7.0 is later than the suite, 1.0"),
        ({"profile": "cores"}, "unknown profile 'cores'; did you mean 'core'?"),
        ({"requires": ("atomic",)}, "unknown capability 'atomic'; did you mean 'atomics'?"),
        ({"ref": " "}, "it has no reference: which kernel function or test does the rule come from?"),
    ],
)
def test_what_a_check_must_not_be(changed, said):
    options = {"id_": "own.rule", "since": "1.0", "ref": "x", **changed}

    def function(lab):
        """Say a rule."""

    with pytest.raises(ModelError) as found:
        check(options.pop("id_"), **options)(function)
    assert str(found.value).endswith(said)


def test_a_check_is_a_function_of_a_lab_and_says_its_rule():
    with pytest.raises(ModelError) as found:
        check("own.rule", since="1.0", ref="x")(lambda bench: bench)
    assert str(found.value) == (
        "check 'own.rule': its function must have one parameter, lab; its function must have a docstring, which says "
        "the rule"
    )


def test_every_capability_is_used():
    assert list(USES) == [name for name, _ in _capabilities()]
    ids = {each.id for each in catalogue()}
    assert {f"capability.{name.replace('_', '-')}" for name in USES} <= ids


def _capabilities():
    return [(name, None) for name in Capabilities.__annotations__]


def test_what_judges_wrongly_is_a_check():
    assert DEFECTS.keys() <= {each.id for each in catalogue()}
