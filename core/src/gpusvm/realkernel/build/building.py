"""Do what is left to do of a build, step by step."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import IO, Any, Final, Protocol

from attrs import frozen

from gpusvm.errors import InputError
from gpusvm.realkernel.build import kernel, modules
from gpusvm.realkernel.build.cpio import device, directory, file, text_file, write_initramfs
from gpusvm.realkernel.build.packages import get_package
from gpusvm.realkernel.build.shop import Shop, default_shop, sha256_of
from gpusvm.realkernel.build.tools import check_tools, run_tool

__all__ = ["BuildListener", "Built", "build", "find_built"]

DEFAULT_KERNEL: Final = "7.3"

_MANIFEST: Final = "manifest.json"
_AGENT: Final = ("boot.c", "dmirror.c", "files.c", "main.c", "output.c", "process.c", "race.c", "svmdev.c")


class BuildListener(Protocol):
    """Hear which step is being done, and how far: so much of so much (0 of 0: nobody knows)."""

    def __call__(self, step: str, done: int, total: int, /) -> None: ...


@frozen(kw_only=True)
class Built:
    """Be a kernel that can be run: `image`, `initramfs`, and what it was made of.

    `manifest` holds the kernel's version, the package's name, version and hash, and the SHA-256 of the configuration,
    of the image, of the agent and of each module.
    """

    name: str
    folder: Path
    manifest: dict[str, Any]

    @property
    def image(self) -> Path:
        return self.folder / "bzImage"

    @property
    def initramfs(self) -> Path:
        return self.folder / "initramfs.gz"


def find_built(kernel: str = DEFAULT_KERNEL, *, shop: Path | None = None) -> Built:
    """Return a kernel that was built before. InputError, which says how to build it, if it was not."""
    at = Shop(shop or default_shop())
    folder = at.kernel(kernel) / "out"
    if not (folder / _MANIFEST).is_file():
        there = sorted(each.parent.parent.name for each in at.root.glob(f"*/out/{_MANIFEST}"))
        others = f"; built are {', '.join(there)}" if there else ""
        where = "" if shop is None else f" --cache {shop}"
        raise InputError(
            f"kernel {kernel!r} is not built in {at.root}{others}: gpusvm realkernel build --kernel {kernel}{where}"
        )
    return Built(name=kernel, folder=folder, manifest=json.loads((folder / _MANIFEST).read_text("utf-8")))


def build(
    kernel: str = DEFAULT_KERNEL,
    *,
    shop: Path | None = None,
    jobs: int | None = None,
    progress: BuildListener | None = None,
) -> Built:
    """Build the kernel `kernel`: the number in the name of a package linux-source-*, or the path of such a package, of
    a tar archive of a kernel's source, or of an unpacked source.

    `shop` is the folder to build in (by default `default_shop()`), `jobs` how many compilers run at once. About 1.5 GB,
    and some minutes, once; what is done already is not done again. InputError says what is missing, or what failed and
    where its output is.
    """
    check_tools(build=True)
    at = Shop(shop or default_shop())
    at.make_ready()
    path = Path(kernel)
    name = path.name.split("_")[0].removesuffix(".tar.xz") if path.exists() else kernel
    with at.log.open("ab") as log:
        return _Build(at, name, kernel, log, progress or _nobody, jobs or os.cpu_count() or 1).run()


def _nobody(_step: str, _done: int, _total: int, /) -> None:
    pass


@frozen
class _Build:
    shop: Shop
    name: str
    wanted: str
    log: IO[bytes]
    progress: BuildListener
    jobs: int

    @property
    def folder(self) -> Path:
        return self.shop.kernel(self.name)

    def run(self) -> Built:
        tree, origin = self._source()
        objects, out = self.folder / "objects", self.folder / "out"
        out.mkdir(parents=True, exist_ok=True)
        version = kernel.kernel_version(tree)
        wishes = kernel.CONFIG.read_text("utf-8")
        config, image = objects / ".config", objects / "arch" / "x86" / "boot" / "bzImage"
        self._step("configure", [version, wishes], [config], lambda: kernel.configure(tree, objects, log=self.log))
        self._step(
            "compile the kernel",
            [sha256_of(config)],
            [image, objects / "Module.symvers"],
            lambda: kernel.build_image(
                tree,
                objects,
                jobs=self.jobs,
                log=self.log,
                advance=lambda done, total: self.progress("compile the kernel", done, total),
            ),
        )
        made = self.folder / "modules"
        built = {name: made / name / f"{name}.ko" for name in modules.MODULES}
        self._step(
            "compile the modules",
            [sha256_of(image), *_hashes(modules.module_sources()), _hash(str(modules.MODULES))],
            [*built.values(), made / "layout" / "layout.ko"],
            lambda: modules.build_all(tree, objects, made, log=self.log),
        )
        agent = self.folder / "agent"
        uapi = _guest("modules").joinpath("svmdev", "svmdev_uapi.h")
        sources = [uapi, *(each for each in _guest("agent").iterdir() if each.is_file())]
        self._step(
            "compile the agent",
            sorted(f"{each.name} {_hash(each.read_text('utf-8'))}" for each in sources),
            [agent],
            lambda: self._agent(agent, tree),
        )
        probe, size = modules.probes(made, log=self.log)
        manifest = {
            "schema": 1,
            "kernel": version,
            "source": origin,
            "config_sha256": sha256_of(config),
            "image_sha256": sha256_of(image),
            "agent_sha256": sha256_of(agent),
            "modules": {name: sha256_of(path) for name, path in built.items()},
            "dmirror_device_bytes": size,
        }
        results = [out / "bzImage", out / "initramfs.gz", out / _MANIFEST]

        def put_together() -> None:
            run_tool(["cp", str(image), str(out / "bzImage")], log=self.log)
            write_initramfs(
                out / "initramfs.gz",
                [
                    *(directory(each) for each in ("dev", "proc", "sys", "tmp", "modules")),
                    device("dev/console", 5, 1),
                    file("init", agent),
                    text_file("probes", probe),
                    *(file(f"modules/{name}.ko", path) for name, path in built.items()),
                ],
            )
            (out / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")

        self._step("put the initramfs together", [json.dumps(manifest)], results, put_together)
        return Built(name=self.name, folder=out, manifest=manifest)

    def _source(self) -> tuple[Path, dict[str, str]]:
        """Return the unpacked source, and where it is from."""
        path = Path(self.wanted)
        if path.is_dir():
            kernel.kernel_version(path)
            return path.resolve(), {"path": str(path.resolve())}
        tree = self.folder / "source"
        if path.is_file():
            origin = {"file": path.name, "sha256": sha256_of(path)}
        else:
            if not self.wanted.replace(".", "").isdigit():
                raise InputError(
                    f"--kernel: expected a version such as {DEFAULT_KERNEL}, or the path of a kernel's source, "
                    f"got {self.wanted!r}"
                )
            self.progress("get the source", 0, 0)
            package = get_package(f"linux-source-{self.wanted}", self.shop, log=self.log)
            path = package.path
            origin = {"package": package.name, "version": package.version, "sha256": package.sha256}
        self._step("unpack the source", [origin["sha256"]], [tree], lambda: kernel.unpack(path, tree, log=self.log))
        return tree, origin

    def _agent(self, agent: Path, tree: Path) -> None:
        """Compile the agent, which is static: the guest has no libraries."""
        with resources.as_file(resources.files("gpusvm.realkernel").joinpath("guest")) as guest:
            headers = [f"-I{tree / 'lib'}", f"-I{guest / 'modules' / 'svmdev'}"]
            files = [str(guest / "agent" / name) for name in _AGENT]
            run_tool(
                ["gcc", "-static", "-O2", "-Wall", "-Wextra", "-pthread", *headers, "-o", str(agent), *files],
                log=self.log,
            )

    def _step(self, step: str, made_from: Sequence[str], results: Sequence[Path], do: Callable[[], object]) -> None:
        stamp = f"{self.name} {step}"
        if self.shop.is_done(stamp, made_from, results):
            return
        self.progress(step, 0, 0)
        do()
        self.shop.note(stamp, made_from)


def _guest(name: str) -> Any:
    return resources.files("gpusvm.realkernel").joinpath("guest", name)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _hashes(texts: Sequence[str]) -> list[str]:
    return [_hash(text) for text in texts]
