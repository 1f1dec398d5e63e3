"""The kinds of random sequences that svmdev has for a real kernel, and what is in them."""

from random import Random

import pytest
from gpusvm.driver import read_spec
from gpusvm.driver.operations import PROCESS_OPERATIONS
from gpusvm.realkernel.operations import read_operation
from gpusvm_svmdev.info import INFO
from gpusvm_svmdev.operations import OPERATIONS

FORMS = {**PROCESS_OPERATIONS, **OPERATIONS.operations}
BY_NAME = {each.name: each for each in OPERATIONS.profiles}
EACH = pytest.mark.parametrize("name", BY_NAME)


def sequences(name, count=40):
    return [BY_NAME[name].sequence(Random(f"{name} {number}")) for number in range(count)]


@EACH
def test_a_profile_makes_operations_that_there_are(name):
    for operations in sequences(name):
        for operation in operations:
            read_operation(operation, FORMS, devices=2)


@EACH
def test_the_same_chance_makes_the_same_sequence(name):
    assert sequences(name, 3) == sequences(name, 3)


@EACH
def test_the_module_and_the_driver_are_set_up_alike(name):
    profile = BY_NAME[name]
    settings = dict(each.split("=") for each in profile.parameters)
    assert settings == dict(profile.settings)
    read_spec("svmdev:" + ",".join(profile.parameters), {"svmdev": INFO})


@pytest.mark.parametrize(
    ("name", "operations"),
    [
        ("one-base", {"sf", "sp", "se", "sb", "sr", "sw", "sv", "sd", "sg", "sc", "si", "sx", "st", "kf", "kr", "fw"}),
        ("one-thp", {"madv", "mremap", "munmap", "mprot"}),
        ("unplug-base", {"su"}),
        ("cache-base", {"sa", "sz", "sk"}),
        ("slice-base", {"sl"}),
    ],
)
def test_a_profile_has_the_operations_that_it_is_for(name, operations):
    found = {operation.split()[0] for each in sequences(name) for operation in each}
    assert operations <= found
