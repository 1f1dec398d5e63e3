"""An op that core cannot call as the contract writes it is named, with its line and the rule."""

import importlib
import inspect

import pytest
from gpusvm.driver import ChangedPm
from gpusvm.explore.execution import classify
from gpusvm.kernel.authors import Authors, blames_call


class ForgetfulPm:
    def pages_present(self) -> None: ...

    def pages_gone(self, bo):
        return bo + 1

    def ioctl(self):
        return self.pages_present(1)


def raised(method, *arguments):
    with pytest.raises(TypeError) as caught:
        getattr(ChangedPm(ForgetfulPm()), method)(*arguments)
    return caught.value


SAID = (
    "\n  in ForgetfulPm.pages_present at kernel/test_kernel_wrong_call.py:"
    f"{inspect.getsourcelines(ForgetfulPm.pages_present)[1]}{Authors.rule('signature')}"
)


def test_the_message_names_op_line_and_rule():
    error = raised("pages_present", object())
    assert blames_call(error) == SAID
    said = "ForgetfulPm.pages_present() takes 1 positional argument but 2 were given"
    assert classify(error).message == f"{said}{SAID}"


@pytest.mark.parametrize(("method", "arguments"), [("pages_gone", ("bo",)), ("ioctl", ())])
def test_what_a_driver_does_wrong_by_itself_is_not_about_the_contract(method, arguments):
    error = raised(method, *arguments)
    assert blames_call(error) == ""
    assert classify(error).message == str(error)


def test_a_command_says_it_in_lines_and_not_in_a_traceback(monkeypatch, capsys):
    def app(*arguments, **options):
        ChangedPm(ForgetfulPm()).pages_present(object())

    command = importlib.import_module("gpusvm.cli.main")
    monkeypatch.setattr(command, "app", app)
    assert command.run([]) == 1
    said = f"ForgetfulPm.pages_present() takes 1 positional argument but 2 were given{SAID}"
    assert capsys.readouterr().err.splitlines() == [f"gpusvm: {line.strip()}" for line in said.splitlines()]
