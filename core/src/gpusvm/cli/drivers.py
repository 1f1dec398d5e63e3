"""gpusvm drivers: what is installed."""

from gpusvm.cli.parameters import Flag

__all__ = ["drivers"]


def drivers(*names: str, json: Flag = False) -> int:
    """Show the installed drivers, the broken ones too.

    Parameters
    ----------
    names
        Drivers to show in full, with their tunables and quirks; an overview of all if none is named.
    json
        Print JSON, and nothing else, on standard output.
    """
    from gpusvm.plugins import survey_drivers
    from gpusvm.report import print_json, print_survey, survey_document

    survey = survey_drivers()
    if names:
        survey = survey.only(names)
    if json:
        print_json(survey_document(survey))
    else:
        print_survey(survey, full=bool(names))
    return 0
