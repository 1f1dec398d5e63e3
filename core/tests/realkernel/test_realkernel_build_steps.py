"""What a build consists of, as far as it needs no compiler: steps done once, packages, archives, what is missing."""

import gzip
import json

import pytest
from gpusvm.errors import InputError
from gpusvm.realkernel.build import build, find_built, packages, tools
from gpusvm.realkernel.build.cpio import device, directory, file, text_file, write_initramfs
from gpusvm.realkernel.build.kernel import kernel_version
from gpusvm.realkernel.build.shop import Shop, default_shop, sha256_of


@pytest.fixture
def shop(tmp_path):
    made = Shop(tmp_path / "shop")
    made.make_ready()
    return made


def test_a_step_is_done_while_its_inputs_and_results_are_there(shop, tmp_path):
    result = tmp_path / "result"
    assert not shop.is_done("compile the agent", ["a"], [result])
    result.touch()
    shop.note("compile the agent", ["a"])
    assert shop.is_done("compile the agent", ["a"], [result])
    assert not shop.is_done("compile the agent", ["b"], [result])
    assert not shop.is_done("compile the modules", ["a"], [result])
    result.unlink()
    assert not shop.is_done("compile the agent", ["a"], [result])


def test_the_shop_lies_where_caches_do(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_shop() == tmp_path / "gpusvm" / "realkernel"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_shop() == tmp_path / ".cache" / "gpusvm" / "realkernel"


def test_a_shop_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError) as refused:
        Shop(tmp_path / "file").make_ready()
    assert str(refused.value) == f"{tmp_path}/file: cannot be made: Not a directory; name another one with --cache"


# ---- packages


ONE_LINE = """\
# deb http://nowhere.example/old bookworm main
deb http://first.example/debian bookworm main contrib  # the archive
deb [signed-by=/keys/a.gpg arch=amd64] http://second.example/debian bookworm-updates main
deb-src http://first.example/debian bookworm main
"""

DEB822 = """\
# from the installer
Types: deb deb-src
URIs: http://third.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /keys/b.gpg

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Be a machine with package sources in both formats."""
    apt = tmp_path / "apt"
    (apt / "sources.list.d").mkdir(parents=True)
    (apt / "sources.list").write_text(ONE_LINE)
    (apt / "sources.list.d" / "debian.sources").write_text(DEB822)
    release = tmp_path / "os-release"
    release.write_text('NAME="Debian"\nVERSION_CODENAME=bookworm\n')
    monkeypatch.setattr(packages, "_APT", apt)
    monkeypatch.setattr(packages, "_OS_RELEASE", release)
    return tmp_path


def test_the_machine_s_own_archives_are_asked_from_its_release_on(machine):
    suites = list(packages._suites())
    assert [suite for suite, _ in suites] == [
        *("bookworm", "bookworm-backports", "trixie", "trixie-backports"),
        *("forky", "forky-backports", "sid", "sid-backports"),
    ]
    assert [source.line("trixie") for source in suites[2][1]] == [
        "deb http://first.example/debian trixie main contrib",
        "deb [signed-by=/keys/b.gpg] http://third.example/debian trixie main",
    ]


def test_the_first_release_that_has_a_package_gives_it(machine, shop, monkeypatch):
    asked = []

    def run_tool(command, *, log, cwd=None):
        what = command[-2:] if "download" in command else command[-1:]
        (suite,) = [word.split("/")[-2] for word in command if word.startswith("-oDir::Etc::sourcelist=")]
        asked.append((suite, *what))
        if what[-1] == "update" and suite == "bookworm-backports":
            raise InputError("no such suite")
        if what[0] == "download":
            if suite != "trixie-backports":
                raise InputError("no such package")
            (cwd / "linux-source-7.3_7.3.4-1~bpo13+1_all.deb").write_bytes(b"source")

    monkeypatch.setattr(packages, "run_tool", run_tool)
    with shop.log.open("ab") as log:
        package = packages.get_package("linux-source-7.3", shop, log=log)
        assert asked == [
            *(("bookworm", "update"), ("bookworm", "download", "linux-source-7.3")),
            ("bookworm-backports", "update"),
            *(("trixie", "update"), ("trixie", "download", "linux-source-7.3")),
            *(("trixie-backports", "update"), ("trixie-backports", "download", "linux-source-7.3")),
        ]
        assert (package.version, package.sha256) == ("7.3.4-1~bpo13+1", sha256_of(package.path))
        asked.clear()
        assert packages.get_package("linux-source-7.3", shop, log=log) == package
        assert asked == []
        package.path.write_bytes(b"other")
        with pytest.raises(InputError) as refused:
            packages.get_package("linux-source-7.3", shop, log=log)
    assert str(refused.value) == (f"{package.path}: its bytes are not those that were got; delete it, and build again")


def test_a_package_that_is_nowhere(machine, shop, monkeypatch):
    def run_tool(command, *, log, cwd=None):
        if "download" in command:
            raise InputError("no such package")

    monkeypatch.setattr(packages, "run_tool", run_tool)
    with shop.log.open("ab") as log, pytest.raises(InputError) as refused:
        packages.get_package("linux-source-9.9", shop, log=log)
    assert str(refused.value) == (
        "package linux-source-9.9 is in none of bookworm, bookworm-backports, trixie, trixie-backports, forky, "
        "forky-backports, sid, sid-backports of this machine's package sources; get it elsewhere, and name the "
        "kernel's source with --kernel PATH"
    )


# ---- tools


def test_all_that_is_missing_is_said_at_once(monkeypatch):
    monkeypatch.setattr(tools.shutil, "which", lambda name: None if name in {"flex", "gcc"} else f"/bin/{name}")
    with pytest.raises(InputError) as refused:
        tools.check_tools(build=True)
    assert str(refused.value) == ("missing: flex, gcc, libelf.h; on Debian: apt-get install flex gcc libelf-dev")


def test_running_needs_less(monkeypatch):
    monkeypatch.setattr(tools.shutil, "which", lambda _: None)
    with pytest.raises(InputError) as refused:
        tools.check_tools(build=False)
    assert str(refused.value) == "missing: qemu-system-x86_64; on Debian: apt-get install qemu-system-x86"


def test_a_tool_that_fails_shows_its_last_words(tmp_path):
    path = tmp_path / "log"
    with path.open("ab") as log:
        tools.run_tool(["sh", "-c", "echo fine"], log=log)
        with pytest.raises(InputError) as refused:
            tools.run_tool(["sh", "-c", "echo one; echo two >&2; exit 3"], log=log)
    assert str(refused.value) == f"sh failed with 3; the end of {path}:\n    one\n    two"


# ---- source


def test_the_version_of_a_source(tmp_path):
    (tmp_path / "Makefile").write_text("VERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 4\nEXTRAVERSION =\n")
    assert kernel_version(tmp_path) == "7.3.4"


def test_a_folder_that_is_no_source(tmp_path):
    with pytest.raises(InputError) as refused:
        build(str(tmp_path), shop=tmp_path / "shop")
    assert str(refused.value) == f"{tmp_path}: expected the source of a kernel, found no version in its Makefile"


def test_a_kernel_that_is_no_number(tmp_path):
    with pytest.raises(InputError) as refused:
        build("newest", shop=tmp_path / "shop")
    assert str(refused.value) == (
        "--kernel: expected a version such as 7.3, or the path of a kernel's source, got 'newest'"
    )


# ---- what comes of it


def test_a_kernel_that_was_not_built(shop):
    with pytest.raises(InputError) as refused:
        find_built("7.3", shop=shop.root)
    assert str(refused.value) == (
        f"kernel '7.3' is not built in {shop.root}: gpusvm realkernel build --kernel 7.3 --cache {shop.root}"
    )
    out = shop.kernel("6.19") / "out"
    out.mkdir(parents=True)
    (out / "manifest.json").write_text(json.dumps({"kernel": "6.19.1"}))
    with pytest.raises(InputError) as refused:
        find_built("7.3", shop=shop.root)
    assert str(refused.value) == (
        f"kernel '7.3' is not built in {shop.root}; built are 6.19: "
        f"gpusvm realkernel build --kernel 7.3 --cache {shop.root}"
    )
    assert find_built("6.19", shop=shop.root).manifest == {"kernel": "6.19.1"}


def test_an_initramfs_is_an_archive_that_the_kernel_reads(tmp_path):
    (tmp_path / "agent").write_bytes(b"\x7fELF agent")
    entries = [
        directory("dev"),
        device("dev/console", 5, 1),
        file("init", tmp_path / "agent"),
        text_file("probes", "p\n"),
    ]
    path = tmp_path / "initramfs.gz"
    write_initramfs(path, entries)
    first = path.read_bytes()
    write_initramfs(path, entries)
    assert path.read_bytes() == first
    assert list(_names(gzip.decompress(first))) == [
        ("dev", 0o040755, b"", (0, 0)),
        ("dev/console", 0o020600, b"", (5, 1)),
        ("init", 0o100755, b"\x7fELF agent", (0, 0)),
        ("probes", 0o100644, b"p\n", (0, 0)),
        ("TRAILER!!!", 0, b"", (0, 0)),
    ]


def _names(archive):
    """Read the format "newc", as its description has it: a head of 13 numbers, the name, the data, each padded to 4."""
    at = 0
    while at < len(archive):
        assert archive[at : at + 6] == b"070701"
        words = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        size, major, minor, length = words[6], words[9], words[10], words[11]
        name = archive[at + 110 : at + 110 + length - 1].decode()
        at += -(-(110 + length) // 4) * 4
        yield name, words[1], archive[at : at + size], (major, minor)
        at += -(-size // 4) * 4
