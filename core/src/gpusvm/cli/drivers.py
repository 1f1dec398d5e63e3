"""gpusvm drivers: what is installed."""

from typing import TYPE_CHECKING

from gpusvm.cli.parameters import Flag
from gpusvm.errors import InputError

if TYPE_CHECKING:
    from gpusvm.plugins import Survey

__all__ = ["drivers"]


def drivers(*names: str, check: Flag = False, json: Flag = False) -> int:
    """Show the installed drivers, the broken ones too.

    Parameters
    ----------
    names
        Drivers to show in full, with their tunables and quirks; an overview of all if none is named. Names alone:
        settings belong to the commands that run a driver.
    check
        Say everything that is wrong with them, as far as it can be known without running them; exit code 1 if anything
        is. Their modules are imported.
    json
        Print JSON, and nothing else, on standard output.
    """
    from gpusvm.plugins import survey_drivers
    from gpusvm.report import print_json, print_survey, survey_document

    survey = survey_drivers()
    if names:
        survey = survey.only(names)
    if check:
        return _check(survey, json=json)
    if json:
        print_json(survey_document(survey))
    else:
        print_survey(survey, full=bool(names))
    return 0


def _check(survey: "Survey", *, json: bool) -> int:
    from gpusvm.conformance.suite import read_statement
    from gpusvm.conformance.suite.catalogue import catalogue
    from gpusvm.conformance.suite.statements import statement_problems
    from gpusvm.driver import read_spec
    from gpusvm.plugins import BrokenPluginError, examine
    from gpusvm.report import checked_document, print_checked, print_json

    problems = list(survey.problems)
    looked: dict[str, int] = {}
    for driver in survey.drivers.drivers:
        found, looked[driver.info.name] = examine(driver)
        problems += found
        spec = read_spec(driver.info.name, survey.drivers)
        try:
            statement = read_statement(driver, spec)
            stated = list(statement_problems(statement, spec, catalogue())) if statement.expected else []
        except InputError as error:
            stated = [str(error)]
        problems += [
            BrokenPluginError(
                driver.plugin or driver.info.name,
                problem,
                distribution=driver.distribution,
                version=driver.version,
                place=None,
            )
            for problem in stated
        ]
    if json:
        print_json(checked_document(looked, problems))
    else:
        print_checked(looked, problems)
    return 1 if problems else 0
