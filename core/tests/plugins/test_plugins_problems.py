"""What a broken plugin of each kind is told: whole lines."""

import re
from importlib import metadata

import pytest

CORE = metadata.version("gpusvm-core")
HOOK = """
@hookimpl
def gpusvm_drivers():
    return info("acme")
"""


@pytest.fixture
def told(install, problems, first_line):
    """Install a plugin and return its problems: FILE is its file, and lines are counted after the prelude."""

    def told(source, **options):
        file = install("acme", source, **options)
        beginning = "driver plugin 'acme' (gpusvm-acme 1.2): "
        offset = 0 if options else first_line - 1
        lines = problems()
        assert all(line.startswith(beginning) for line in lines)
        lines = [line.partition("; see docs/reference/driver-rules.md#")[0] for line in lines]  # TestRules
        lines = [line.removeprefix(beginning).replace(str(file), "FILE").replace(file.stem, "MODULE") for line in lines]
        return [re.sub(r"^FILE:(\d+)", lambda found: f"FILE:{int(found[1]) - offset}", line) for line in lines]

    return told


@pytest.fixture
def told_of_info(told):
    """Return the problems of a driver whose info has these changes; all stand at the line of its hook."""

    def told_of_info(changes, before=""):
        lines = told(f"{before}\n@hookimpl\ndef gpusvm_drivers():\n    return info('acme', {changes})\n")
        place = f"FILE:{before.count(chr(10)) + 2}: "
        assert all(line.startswith(place) for line in lines), lines
        return [line.removeprefix(place) for line in lines]

    return told_of_info


class TestImport:
    def test_a_syntax_error(self, told):
        assert told("x = 1\ndef f(:\n", prelude="") == ["FILE:2: importing MODULE: SyntaxError: invalid syntax"]

    def test_a_missing_dependency(self, told):
        assert told("x = 1\nimport nowhere_to_be_found\n", prelude="") == [
            "FILE:2: importing MODULE: ModuleNotFoundError: No module named 'nowhere_to_be_found'"
        ]

    def test_a_name_that_core_does_not_have(self, told):
        (line,) = told("from gpusvm.driver import Capabilites\n", prelude="")
        assert line.startswith(
            "FILE:1: importing MODULE: ImportError: cannot import name 'Capabilites' from 'gpusvm.driver' ("
        )

    def test_an_entry_point_without_its_module(self, told, install, problems, tmp_path):
        file = install("acme", HOOK)
        file.unlink()
        assert problems() == [
            (
                f"driver plugin 'acme' (gpusvm-acme 1.2): importing {file.stem}: "
                f"ModuleNotFoundError: No module named '{file.stem}'"
            )
        ]

    def test_a_module_that_exits(self, told):
        assert told("raise SystemExit(3)\n", prelude="") == ["FILE:1: importing MODULE: SystemExit: 3"]


class TestHook:
    def test_no_hook(self, told):
        assert told("x = 1\n", prelude="") == [
            "FILE: it implements no hook: expected a function gpusvm_drivers marked with @hookimpl"
        ]

    def test_an_unmarked_hook(self, told):
        assert told("def gpusvm_drivers():\n    return info('acme')\n") == [
            "FILE:1: gpusvm_drivers is not marked as a hook: put @hookimpl (from gpusvm.plugins) above it"
        ]

    def test_a_misspelt_hook(self, told):
        assert told("@hookimpl\ndef gpusvm_driver():\n    return info('acme')\n") == [
            "FILE:1: unknown hook 'gpusvm_driver', did you mean 'gpusvm_drivers'?"
        ]

    def test_a_hook_with_an_argument(self, told):
        assert told("@hookimpl\ndef gpusvm_drivers(host):\n    return info('acme')\n") == [
            (
                "FILE:1: gpusvm_drivers: expected gpusvm_drivers(), got gpusvm_drivers(host): "
                "missing a required argument: 'host'"
            )
        ]

    def test_a_hook_that_raises(self, told):
        assert told("@hookimpl\ndef gpusvm_drivers():\n    return {}['acme']\n") == [
            "FILE:3: gpusvm_drivers(): KeyError: 'acme'"
        ]

    def test_a_hook_that_returns_nothing(self, told):
        assert told("@hookimpl\ndef gpusvm_drivers():\n    info('acme')\n") == [
            "FILE:1: gpusvm_drivers() returned None, expected a DriverInfo or a sequence of them"
        ]

    def test_a_hook_that_returns_something_else(self, told):
        assert told("@hookimpl\ndef gpusvm_drivers():\n    return {'name': 'acme'}\n") == [
            "FILE:1: gpusvm_drivers() returned dict {'name': 'acme'}, expected a DriverInfo or a sequence of them"
        ]

    def test_a_hook_that_returns_a_list_of_something_else(self, told):
        assert told("@hookimpl\ndef gpusvm_drivers():\n    return [info('acme'), 'xe']\n") == [
            "FILE:1: gpusvm_drivers() returned a list with str, expected a DriverInfo or a sequence of them"
        ]


class TestDeclarations:
    def test_an_undeclared_capability(self, told):
        assert told("""
            @hookimpl
            def gpusvm_drivers():
                del CAPABILITIES["atomics"]
                return info("acme", capabilities=Capabilities(**CAPABILITIES))
            """) == ["FILE:5: Capabilities: undeclared capability 'atomics'; declare each with yes('…') or no('…')"]

    def test_two_undeclared_capabilities_at_import(self, told):
        assert told("""
            del CAPABILITIES["atomics"], CAPABILITIES["unplug"]
            MINE = Capabilities(**CAPABILITIES)
            """) == [
            "FILE:3: Capabilities: undeclared capabilities 'atomics', 'unplug'; declare each with yes('…') or no('…')"
        ]

    def test_an_unknown_capability(self, told):
        assert told("MINE = Capabilities(**CAPABILITIES, atomic=no('never'))\n") == [
            "FILE:1: Capabilities: unknown capability 'atomic', did you mean 'atomics'?"
        ]

    def test_an_undeclared_field(self, told):
        assert told("""
            @hookimpl
            def gpusvm_drivers():
                return DriverInfo(
                    name="acme", summary="s", abi=(1, 0), kernel="7.3.4", tunables=Tunables, quirks=Quirks, make=make,
                    capabilities=Capabilities(**CAPABILITIES), embedding="none", bo_mapping="none",
                )
            """) == ["FILE:4: DriverInfo: undeclared field 'pm'"]

    def test_a_capability_that_is_a_bool(self, told_of_info):
        assert told_of_info("capabilities=Capabilities(**{**CAPABILITIES, 'atomics': True, 'prefetch': yes('')})") == [
            "capability 'atomics': expected yes('…') or no('…'), got True",
            "capability 'prefetch': expected one line that says how or why not, got ''",
        ]

    def test_capabilities_that_are_none(self, told_of_info):
        assert told_of_info("capabilities=None") == ["capabilities: expected Capabilities, got None"]

    def test_texts(self, told_of_info):
        assert told_of_info(r"summary='two\nlines', pm='', kernel=7.3") == [
            r"summary: expected one line of text, got 'two\nlines'",
            "kernel: expected one line of text, got 7.3",
            "pm: expected one line of text, got ''",
        ]

    @pytest.mark.parametrize("name", ["Acme", "a:b", "1st", "a b"])
    def test_a_name_that_no_spec_string_could_hold(self, told, name):
        assert told(HOOK.replace("acme", name)) == [
            f"FILE:2: name: expected lower-case letters, digits, '-' and '_', beginning with a letter, got {name!r}"
        ]

    def test_a_tunables_class_that_is_none(self, told_of_info):
        assert told_of_info("tunables={'batch': 32}, quirks=None") == [
            "tunables: expected a frozen attrs class, got {'batch': 32}",
            "quirks: expected a frozen attrs class, got None",
        ]

    def test_a_tunables_class_that_can_be_changed(self, told_of_info):
        before = "@attrs.define\nclass Mine:\n    batch: int = tunable(1, 'Faults.', unit='count')\n"
        assert told_of_info("tunables=Mine", before) == [
            "tunables: Mine can be changed after it was built; make it @frozen"
        ]

    def test_a_tunables_class_without_a_default(self, told_of_info):
        before = "@attrs.frozen\nclass Mine:\n    batch: int\n"
        assert told_of_info("tunables=Mine", before) == [
            "tunables: Mine.batch is no tunable(…) (from gpusvm.driver)",
            (
                "tunables: Mine() cannot be built without arguments: TypeError: "
                "Mine.__init__() missing 1 required positional argument: 'batch'"
            ),
        ]

    def test_a_refuse_that_cannot_be_called(self, told_of_info):
        assert told_of_info("refuse=()") == ["refuse: expected a function of (tunables, quirks), got ()"]

    def test_settings_that_cannot_be_called(self, told_of_info):
        assert told_of_info("with_settings=None") == [
            "with_settings: expected a function of (info, tunables, quirks), got None"
        ]

    def test_an_order_of_removal_that_there_is_not(self, told_of_info):
        assert told_of_info("unload=None") == ["unload: expected one of last_first, first_first, never, got None"]


class TestAbi:
    @pytest.mark.parametrize("abi", ["(2, 0)", "(1, 1)"])
    def test_newer_than_core(self, told_of_info, abi):
        assert told_of_info(f"abi={abi}") == [
            (
                f"driver acme 1.2 targets driver ABI {abi[1]}.{abi[4]}; this gpusvm-core {CORE} speaks 1.0; "
                "upgrade gpusvm-core or install an older gpusvm-acme"
            )
        ]

    def test_older_than_core(self, told_of_info):
        assert told_of_info("abi=(0, 9)") == [
            f"driver acme 1.2 targets driver ABI 0.9; this gpusvm-core {CORE} speaks 1.0; install a newer gpusvm-acme"
        ]

    def test_no_pair(self, told_of_info):
        assert told_of_info("abi='1.0'") == ["abi: expected a pair of numbers such as (1, 0), got '1.0'"]


class TestSignatures:
    def test_a_make_that_cannot_be_called(self, told_of_info):
        assert told_of_info("make=None") == ["make: expected a class or function that takes a Host, got None"]

    def test_a_make_that_takes_something_else(self, told):
        lines = told("def build(host, device):\n    ...\n" + HOOK.replace('"acme"', '"acme", make=build'))
        assert lines == [
            "FILE:1: make: expected make(host, /), got make(host, device): missing a required argument: 'device'"
        ]

    def test_a_driver_class_with_a_wrong_and_a_missing_op(self, told):
        lines = told(
            """
            class Acme:
                def __init__(self, host): ...
                def pagemaps(self): ...
                def dev_pagemaps(self): ...
                def vm_create(self, mm, start): ...
                def shutdown(self): ...
            """
            + "\n            ".join(HOOK.replace('"acme"', '"acme", make=Acme').split("\n"))
        )
        assert lines == [
            (
                "FILE:6: Acme.vm_create: expected vm_create(mm, *, start, end), got vm_create(mm, start): "
                "got an unexpected keyword argument 'end' (Driver of the contract)"
            ),
            "FILE:2: Acme has no describe() (Driver of the contract)",
        ]

    def test_annotations_lead_to_the_vm(self, told):
        lines = told(
            """
            class AcmeVm:
                def populate(self, start): ...
                def close(self): ...

            class Acme:
                def pagemaps(self): ...
                def dev_pagemaps(self): ...
                def vm_create(self, mm, *, start, end) -> AcmeVm: ...
                def shutdown(self): ...
                def describe(self): ...

            def build(host) -> Acme: ...
            """
            + "\n            ".join(HOOK.replace('"acme"', '"acme", make=build').split("\n"))
        )
        assert lines == [
            (
                "FILE:3: AcmeVm.populate: expected populate(start, end), got populate(start): "
                "too many positional arguments (Vm of the contract)"
            )
        ]


class TestDuplicates:
    def test_two_distributions_with_one_driver(self, install, problems):
        first = install("acme", HOOK, distribution="gpusvm-acme")
        install("other", HOOK, distribution="gpusvm-other")
        assert problems() == [
            (
                f"driver plugin 'acme' (gpusvm-acme 1.2): {first}: "
                "the driver name 'acme' is taken twice, by gpusvm-acme 1.2 and gpusvm-other 1.2; uninstall one"
            )
        ]

    def test_two_distributions_with_one_entry_point_name(self, install, survey):
        install("acme", HOOK, distribution="gpusvm-acme")
        install("acme", HOOK.replace("acme", "zeta"), distribution="gpusvm-other")
        assert list(survey().registry()) == ["acme", "zeta"]


class TestRules:
    """What an author has to know more of leads to its rule."""

    def test_a_signature(self, install, problems):
        file = install(
            "acme",
            "@hookimpl\ndef gpusvm_drivers(host):\n    return info('acme')\n",
            prelude="from gpusvm.plugins import hookimpl\n",
        )
        (line,) = problems()
        assert line == (
            f"driver plugin 'acme' (gpusvm-acme 1.2): {file}:2: gpusvm_drivers: expected gpusvm_drivers(), "
            "got gpusvm_drivers(host): missing a required argument: 'host'; "
            "see docs/reference/driver-rules.md#signature"
        )

    def test_a_capability(self, install, problems, first_line):
        file = install("acme", "del CAPABILITIES['atomics']\nMINE = Capabilities(**CAPABILITIES)\n")
        (line,) = problems()
        assert line == (
            f"driver plugin 'acme' (gpusvm-acme 1.2): {file}:{first_line + 1}: Capabilities: undeclared capability "
            "'atomics'; declare each with yes('…') or no('…'); see docs/reference/driver-rules.md#capability"
        )
