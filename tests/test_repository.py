"""What every tracked file and every distribution has to keep, whatever it is about."""

import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
DISTRIBUTIONS = {
    "core": "gpusvm",
    "plugins/xe": "gpusvm_xe",
    "plugins/nouveau": "gpusvm_nouveau",
    "plugins/dmirror": "gpusvm_dmirror",
    "plugins/svmdev": "gpusvm_svmdev",
    "plugins/kfd": "gpusvm_kfd",
}

# Put together from pieces, so that this file passes its own test.
INDEX_HOSTS = ["pypi" + ".org", "python" + "hosted.org", "npm" + "js.org", "npm" + "js.com", "deb.debian" + ".org"]
INDEX_ADDRESS = re.compile(
    "|".join([*(re.escape(host) for host in INDEX_HOSTS), r"(?:https?|file)://[^\s\"'<>]+/simple\b"]).encode()
)
# A directory of somebody's machine, at the start of an absolute path, which a path inside a source tree is not.
MACHINE_PATH = re.compile(rb"(?<![\w.~$}*-])/(?:work|root|home|Users)/[\w.]")


def git(*arguments):
    # The checkout may belong to another user, in a container say; reading it is safe.
    command = ["git", "-c", "safe.directory=*", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def repository_files():
    """List what is tracked, and what would be by `git add .`."""
    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return sorted({ROOT / name for name in names if name and (ROOT / name).is_file()})


def places(pattern):
    found = []
    for path in repository_files():
        text = path.read_bytes()
        for match in pattern.finditer(text):
            line = text.count(b"\n", 0, match.start()) + 1
            found.append(f"{path.relative_to(ROOT)}:{line}: {match.group().decode()}")
    return found


def manifest(folder):
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text())


def test_no_file_names_a_package_index():
    assert places(INDEX_ADDRESS) == []


def test_no_file_names_a_path_of_a_machine():
    assert places(MACHINE_PATH) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("see /" + "home/ann/gpusvm", True, id="home"),
        pytest.param("file:///" + "work/main", True, id="file-address"),
        pytest.param('"/' + "root/.venv", True, id="quoted"),
        pytest.param("drivers/base/" + "root/x.c", False, id="kernel-path"),
        pytest.param("~/" + "work/gpusvm", False, id="tilde"),
        pytest.param("cd /" + "tmp/home", False, id="tmp"),
    ],
)
def test_what_counts_as_a_path_of_a_machine(text, found):
    assert bool(MACHINE_PATH.search(text.encode())) is found


def test_lock_file_is_not_tracked():
    # It records the address of the index that was in use.
    assert git("ls-files", "uv.lock") == ""
    assert git("check-ignore", "uv.lock").strip() == "uv.lock"


def test_no_python_version_file():
    # With a pin that the machine lacks, uv would try to download an interpreter.
    assert [path for path in repository_files() if path.name == ".python-version"] == []


def test_every_member_is_known_here():
    members = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("plugins/*/pyproject.toml")} | {"core"}
    assert members == set(DISTRIBUTIONS)


def test_root_depends_on_every_member():
    names = sorted(manifest(folder)["project"]["name"] for folder in DISTRIBUTIONS)
    assert sorted(manifest(".")["project"]["dependencies"]) == names
    assert sorted(manifest(".")["tool"]["uv"]["sources"]) == names


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_distribution_is_complete(folder):
    project = manifest(folder)["project"]
    assert (ROOT / folder / "src" / DISTRIBUTIONS[folder] / "py.typed").read_bytes() == b""
    assert (ROOT / folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert (ROOT / folder / project["readme"]).read_text().startswith(f"# {project['name']}\n")
    assert project["license"] == "MIT"
    assert project["requires-python"] == manifest(".")["project"]["requires-python"]
    assert project["version"] == manifest("core")["project"]["version"]


def test_changelog_starts_with_the_present_version():
    version = manifest("core")["project"]["version"]
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == version


def test_license_is_mit():
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n\nCopyright (c) 2026 the gpusvm authors\n")


def test_readme_opens_with_the_two_commands():
    commands = re.findall(r"^(?: {4})?(pip install .*?)(?:\s+#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert commands[:2] == ["pip install uv && uv run gpusvm compare", "pip install uv && uv run pytest"]


def pins():
    return dict(line.split("==") for line in manifest(".")["tool"]["uv"]["constraint-dependencies"])


def installed_needs():
    """Walk what core, the plugins and the dev group need on this machine, down to the last indirect requirement."""
    open_ = [Requirement(line) for line in manifest(".")["dependency-groups"]["dev"]]
    for folder in DISTRIBUTIONS:
        open_ += [Requirement(line) for line in manifest(folder)["project"]["dependencies"]]
    needs = {}
    while open_:
        requirement = open_.pop()
        name = canonicalize_name(requirement.name)
        if name in needs or name.startswith("gpusvm-"):
            continue
        distribution = metadata.distribution(name)
        needs[name] = distribution.version
        for line in distribution.requires or ():
            needed = Requirement(line)
            if needed.marker is None or any(
                needed.marker.evaluate({"extra": extra}) for extra in (requirement.extras or {""})
            ):
                open_.append(needed)
    return needs


def test_every_version_is_pinned_by_name_and_version_only():
    for line in manifest(".")["tool"]["uv"]["constraint-dependencies"]:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9.]*", line), line
    unpinned = {name: version for name, version in installed_needs().items() if pins().get(name) != version}
    assert unpinned == {}


def test_ci_runs_what_the_readme_says():
    script = (ROOT / ".ci" / "run").read_text()
    assert "pip install uv && uv run pytest" in script
    assert 'lane tests bash -c "$readme_test"' in script
