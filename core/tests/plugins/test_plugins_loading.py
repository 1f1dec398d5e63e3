import pytest
from gpusvm.errors import InputError, PluginError
from gpusvm.plugins import BrokenPluginsError, Registry
from gpusvm.plugins.loading import survey_sources
from gpusvm.plugins.sources import find_sources

GOOD = """
@hookimpl
def gpusvm_drivers():
    return info("acme")
"""


def test_a_good_plugin_becomes_a_driver(install, survey):
    file = install("acme", GOOD)
    found = survey()
    assert found.problems == ()
    (driver,) = found.drivers.drivers
    assert (driver.info.name, driver.plugin, driver.distribution, driver.version) == (
        "acme",
        "acme",
        "gpusvm-acme",
        "1.2",
    )
    assert driver.path == str(file)
    assert driver.origin == "gpusvm-acme 1.2"
    assert found.registry() == found.drivers


def test_a_plugin_may_have_several_drivers(install, survey):
    install("acme", "@hookimpl\ndef gpusvm_drivers():\n    return [info('zeta'), info('alpha')]\n")
    assert list(survey().drivers) == ["alpha", "zeta"]


def test_drivers_are_sorted_whatever_their_distributions_are_called(install, survey):
    install("b", GOOD.replace("acme", "second"), distribution="gpusvm-a")
    install("a", GOOD.replace("acme", "first"), distribution="gpusvm-b")
    assert list(survey().drivers) == ["first", "second"]


def test_one_broken_plugin_does_not_hide_another(install, survey):
    install("acme", GOOD)
    broken = install("broken", "1 / 0\n", prelude="")
    found = survey()
    assert list(found.drivers) == ["acme"]
    with pytest.raises(BrokenPluginsError) as caught:
        found.registry()
    assert isinstance(caught.value, PluginError)
    assert str(caught.value) == (
        f"driver plugin 'broken' (gpusvm-broken 1.2): {broken}:1: "
        f"importing {broken.stem}: ZeroDivisionError: division by zero"
    )


def test_every_problem_of_every_plugin_is_reported_at_once(install, survey):
    install("one", "1 / 0\n", prelude="")
    install("two", "@hookimpl\ndef gpusvm_drivers():\n    return info('two', summary='', abi=1)\n")
    with pytest.raises(BrokenPluginsError) as caught:
        survey().registry()
    assert [(problem.plugin, problem.problem) for problem in caught.value.exceptions] == [
        ("one", f"importing {caught.value.exceptions[0].place.file.stem}: ZeroDivisionError: division by zero"),
        ("two", "summary: expected one line of text, got ''"),
        ("two", "abi: expected a pair of numbers such as (1, 0), got 1"),
    ]


def test_without_leaves_a_plugin_unloaded(install, survey):
    install("acme", GOOD)
    install("broken", "1 / 0\n", prelude="")
    assert list(survey(without=["broken"]).registry()) == ["acme"]


def test_without_takes_the_name_of_a_driver_too(install, survey):
    install("acme", "@hookimpl\ndef gpusvm_drivers():\n    return [info('one'), info('two')]\n")
    assert list(survey(without=["one"]).registry()) == ["two"]


def test_without_a_name_that_is_not_there(install, survey):
    install("acme", GOOD)
    with pytest.raises(InputError) as caught:
        survey(without=["acne"])
    assert str(caught.value) == "--without: unknown driver 'acne', did you mean 'acme'?"


def test_only_some(install, survey):
    install("acme", GOOD)
    install("broken", "1 / 0\n", prelude="")
    found = survey()
    assert (list(found.only(["acme"]).drivers), found.only(["acme"]).problems) == (["acme"], ())
    assert (list(found.only(["broken"]).drivers), len(found.only(["broken"]).problems)) == ([], 1)
    with pytest.raises(InputError) as caught:
        found.only(["acm"])
    assert str(caught.value) == "unknown driver 'acm'; did you mean 'acme'?"
    with pytest.raises(InputError) as caught:
        found.only(["acme:x=1"])
    assert str(caught.value) == "expected the name of a driver, got 'acme:x=1' with settings; name acme alone"


def test_nothing_installed(survey):
    assert survey().registry() == Registry.of()


@pytest.fixture
def with_variable(tmp_path, monkeypatch):
    def with_variable(value):
        monkeypatch.setenv("GPUSVM_DRIVERS", value)
        monkeypatch.chdir(tmp_path)
        return survey_sources(find_sources([str(tmp_path)]))

    return with_variable


def test_the_variable_can_leave_installed_plugins_out(install, with_variable):
    install("acme", GOOD)
    assert with_variable("none").registry() == Registry.of()


def test_the_variable_can_add_one_file(install, with_variable, tmp_path, prelude):
    install("acme", GOOD)
    (tmp_path / "mine.py").write_text(prelude + GOOD.replace("acme", "mine"))
    assert list(with_variable("mine=mine.py").registry()) == ["acme", "mine"]
    (driver,) = with_variable("none, mine=mine.py").registry().drivers
    assert (driver.distribution, driver.version, driver.origin) == (None, None, str(tmp_path / "mine.py"))


def test_a_broken_file_is_reported_as_a_plugin_is(with_variable, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import nowhere_to_be_found\n")
    assert [str(problem) for problem in with_variable("none,mine=mine.py").problems] == [
        f"driver plugin 'mine': {file}:1: importing {file}: ModuleNotFoundError: No module named 'nowhere_to_be_found'"
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("xe", "GPUSVM_DRIVERS: expected 'none' or NAME=FILE.py, got 'xe'"),
        ("mine=", "GPUSVM_DRIVERS: expected 'none' or NAME=FILE.py, got 'mine='"),
        ("mine=gone.py", "GPUSVM_DRIVERS: gone.py: no such file"),
    ],
)
def test_anything_else_in_the_variable_is_refused(with_variable, value, message):
    with pytest.raises(InputError) as caught:
        with_variable(value)
    assert str(caught.value) == message
