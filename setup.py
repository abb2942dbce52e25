"""The compiled kernel, where it can be compiled; elsewhere the wheel is pure Python. All else is in pyproject.toml."""

import sysconfig
import tempfile
from pathlib import Path

from setuptools import Distribution, Extension, setup

KERNEL = Extension(
    "fedhpc.kernel._core",
    [f"fedhpc/kernel/{name}.c" for name in ("module", "vaes", "aesni", "armv8")],
    depends=[f"fedhpc/kernel/{name}.h" for name in ("kernel", "core")],
    # Of floats only what no value depends on: errno and traps. A fused multiply-add would round differently.
    extra_compile_args=["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"],
    py_limited_api=True,
    optional=True,
)


def can_compile() -> bool:
    """Whether there is a C compiler, and Python's headers for it."""
    build = Distribution().get_command_obj("build_ext")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("#include <Python.h>\nint main(void) { return 0; }\n")
        try:
            build.ensure_finalized()
            build.setup_shlib_compiler()
            compiler = build.shlib_compiler
            compiler.compile([str(source)], output_dir=folder, include_dirs=[sysconfig.get_path("include")])
        except Exception as error:  # whatever it is, the wheel is built without
            print(f"the compiled kernel is left out: {error}")
            return False
    return True


built = [KERNEL] if Path(KERNEL.sources[0]).is_file() and can_compile() else []
setup(ext_modules=built, options={"bdist_wheel": {"py_limited_api": "cp311"}} if built else {})
