"""The kernels under address and undefined-behaviour sanitizers, on arrays without one byte to spare."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sparsehpc.formats import kernels

COMPILER = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
SOURCES = Path(kernels.__file__).parent / "c"
DRIVER = Path(__file__).parent / "kernels_driver.c"
FLAGS = ["-std=gnu11", "-O1", "-fopenmp", "-fno-omit-frame-pointer", "-Wall", "-Wextra", "-Werror"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("sanitized")
    probe = folder / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    supported = subprocess.run(
        [COMPILER, *SANITIZERS, "-fopenmp", str(probe), "-o", str(folder / "probe")], capture_output=True, check=False
    )
    if supported.returncode:
        pytest.skip("the compiler has no sanitizers or no OpenMP")
    sources = [path for path in sorted(SOURCES.glob("*.c")) if path.name != "module.c"] + [DRIVER]
    objects = [folder / f"{path.stem}.o" for path in sources]
    compilers = [
        subprocess.Popen(
            [COMPILER, *FLAGS, *SANITIZERS, f"-I{SOURCES}", "-c", str(source), "-o", str(target)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for source, target in zip(sources, objects, strict=True)
    ]
    problems = [process.communicate()[1] for process in compilers]
    assert all(process.returncode == 0 for process in compilers), "\n".join(problems)
    binary = folder / "driver"
    command = [COMPILER, *SANITIZERS, "-fopenmp", *map(str, objects), "-lm", "-o", str(binary)]
    subprocess.run(command, check=True)
    return binary


@pytest.mark.slow
@pytest.mark.parametrize("isa", kernels.available() or ("portable",))
def test_kernels_read_and_write_only_what_is_theirs(driver: Path, isa: str) -> None:
    # The pool of OpenMP threads outlives main: its stacks are no leak of ours.
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([str(driver), isa], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout) > 5000


def test_sources_of_the_extension_are_all_built() -> None:
    """A source that setup.py does not list would only be missed when the module is imported."""
    setup = (Path(kernels.__file__).parents[3] / "setup.py").read_text(encoding="utf-8")
    for path in sorted(SOURCES.iterdir()):
        assert f'"{path.stem}"' in setup, f"setup.py does not list {path.name}"
