"""What checks refer to can be found: a file of the kernel with its folder, and each function in one file."""

import re
from collections import defaultdict

from gpusvm.conformance.suite.catalogue import catalogue

FOLDERS = r"(?:Documentation|arch|drivers|include|kernel|lib|mm|tools)/"
CITED = re.compile(rf"({FOLDERS}[\w/.-]+)(?::\s?(.+))?")
ELSEWHERE = re.compile(r"IGT .+|gpusvm\.[\w.]+")
PARTS = [(check.id, part) for check in catalogue() for part in check.ref.split("; ")]


def test_every_reference_names_a_file_with_its_folder():
    assert [each for each in PARTS if not CITED.fullmatch(each[1]) and not ELSEWHERE.fullmatch(each[1])] == []


def test_a_function_is_in_one_file():
    files = defaultdict(set)
    for _, part in PARTS:
        cited = CITED.fullmatch(part)
        if cited and cited[1].endswith(".c") and re.fullmatch(r"\w+", cited[2] or ""):
            files[cited[2]].add(cited[1])
    assert {name: found for name, found in files.items() if len(found) > 1} == {}
