"""The compiled kernel, which is optional: without a compiler the package is pure Python. All else is in pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "fedhpc.kernel._core",
            [f"fedhpc/kernel/{name}.c" for name in ("module", "vaes", "aesni", "armv8")],
            depends=[f"fedhpc/kernel/{name}.h" for name in ("kernel", "core")],
            # Of floats only what no value depends on: errno and traps. A fused multiply-add would round differently.
            extra_compile_args=["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
