"""The optional extension with the compiled kernels; everything else about the package is in pyproject.toml.

Without a C compiler the installation succeeds all the same: ``sparsehpc doctor`` says that torch serves instead.
"""

import sys

from pybind11.setup_helpers import ParallelCompile
from setuptools import Extension, setup

# The slowest first: they are compiled side by side.
SOURCES = ["isa_avx512_vbmi2", "isa_portable", "isa_avx2", "isa_avx512", "cpu", "decode", "module", "threads"]
HEADERS = ["avx512", "expand_table", "few", "gather", "kernels", "look", "nibbles"]
HEADERS += ["quarter", "template", "tile", "token"]
FOLDER = "sparsehpc/formats/kernels/c"
# Torch's own OpenMP library has the name libgomp.so.1: linked by that name and loaded after torch, it is shared.
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []
# Without threads the loops of token.h are still to become vectors.
SIMD = OPENMP or ["-fopenmp-simd"]

ParallelCompile(default=0).install()  # as many at once as there are processors

setup(
    ext_modules=[
        Extension(
            "sparsehpc.formats.kernels._kernels",
            sources=[f"{FOLDER}/{name}.c" for name in SOURCES],
            depends=[f"{FOLDER}/{name}.h" for name in HEADERS],
            extra_compile_args=["-O3", "-g0", "-std=gnu11", "-Wall", "-Wextra", *SIMD],
            extra_link_args=OPENMP,
            libraries=["m"],  # sqrtf of what is negative
            optional=True,
        )
    ]
)
