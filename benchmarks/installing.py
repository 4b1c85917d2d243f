"""What installing memsup from a clone downloads, and what it takes of the disk.

    python benchmarks/installing.py downloads [--uv uv]          what `uv lock` knows of the wheels; nothing is downloaded
    python benchmarks/installing.py venv|pipx|uv [--tool PROGRAM] [--folder FOLDER]

The second installs for real as the README says, into a folder that is removed afterwards, and runs `memsup --version` of it.
Which build of torch comes is for the configuration of pip and uv on this machine to say, such as PIP_CONSTRAINT=FILE, with
`torch==2.13.0+cpu`; the sizes of `nvidia` and `triton` tell it.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

CLONE = Path(__file__).parents[1]
WHAT = f"{CLONE}[demo]"
MB = 1_000_000


def downloads(uv: str) -> None:
    """The sizes of the wheels for this kind of machine, those of CUDA apart."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pyproject.toml").write_text(
            f'[project]\nname = "sizes"\nversion = "0"\nrequires-python = "=={version}.*"\n'
            f'dependencies = ["memsup[demo]"]\n[tool.uv.sources]\nmemsup = {{ path = "{CLONE}" }}\n'
            f"[tool.uv]\nenvironments = [\"sys_platform == 'linux' and platform_machine == '{platform.machine()}'\"]\n"
        )
        subprocess.run([uv, "lock", "--quiet"], cwd=folder, check=True, timeout=300)
        packages = tomllib.loads((folder / "uv.lock").read_text())["package"]
    sizes = {package["name"]: _of_wheel(package.get("wheels", [])) for package in packages}
    of_cuda = {name: size for name, size in sizes.items() if name.startswith(("nvidia-", "cuda-")) or name == "triton"}
    print(f"in all {sum(sizes.values()) / MB:,.0f} MB, of which torch {sizes['torch'] / MB:,.0f} MB", end=" ")
    print(f"and {len(of_cuda)} packages of CUDA {sum(of_cuda.values()) / MB:,.0f} MB (Python {version}, {platform.machine()})")


def _of_wheel(wheels: list[dict[str, int | str]]) -> int:
    """The size of the wheel that would be taken here; none for what has none."""
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    fitting = [
        int(wheel["size"])
        for wheel in wheels
        for name in [str(wheel["url"]).rpartition("/")[2]]
        if "none-any" in name
        or (
            "linux" in name
            and platform.machine() in name
            and any(tag in name for tag in (f"-{python}-{python}-", "-abi3-", "py3-"))
        )
    ]
    return max(fitting, default=0)


def install(way: str, tool: str | None, folder: Path) -> None:
    tool = tool or way
    environment = os.environ | {
        "PIPX_HOME": str(folder / "home"),
        "PIPX_BIN_DIR": str(folder / "bin"),
        "UV_TOOL_DIR": str(folder / "home"),
        "UV_TOOL_BIN_DIR": str(folder / "bin"),
        "UV_LINK_MODE": "copy",
    }
    began_s = time.monotonic()
    if way == "venv":
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin/pip"), "install", "--quiet", WHAT], check=True)
    else:
        command = [tool, "install", WHAT] if way == "pipx" else [tool, "tool", "install", WHAT]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    took_s = time.monotonic() - began_s
    said = subprocess.run([str(folder / "bin/memsup"), "--version"], check=True, capture_output=True, text=True).stdout.strip()
    sizes = {name: _disk_bytes(next(folder.rglob(f"site-packages/{name}"), None)) for name in ("torch", "nvidia", "triton")}
    print(f"{way}: {said} after {took_s:.0f} s, {_disk_bytes(folder) / MB:,.0f} MB on the disk", end="; ")
    print(", ".join(f"{name} {size / MB:,.0f} MB" for name, size in sizes.items() if size))


def _disk_bytes(folder: Path | None) -> int:
    if folder is None:
        return 0
    told = subprocess.run(["du", "-sB1", str(folder)], check=True, capture_output=True, text=True).stdout
    return int(told.split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=["downloads", "venv", "pipx", "uv"])
    parser.add_argument("--tool", help="The pipx or uv to run.")
    parser.add_argument("--folder", type=Path, help="Where there is room; it is made, and removed.")
    arguments = parser.parse_args()
    if arguments.way == "downloads":
        downloads(arguments.tool or "uv")
        return
    folder = Path(tempfile.mkdtemp(prefix="memsup-install-", dir=arguments.folder))
    try:
        install(arguments.way, arguments.tool, folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
