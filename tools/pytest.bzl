"""py_test for a file of pytest tests."""

load("@rules_python//python:defs.bzl", _py_test = "py_test")

def py_test(name, srcs, data = [], deps = [], **kwargs):
    """A py_test that runs its one source through pytest, with the settings that all tests share.

    Args:
      name: of the target.
      srcs: the one test file.
      data: what the test runs or reads.
      deps: what the test imports.
      **kwargs: as for any py_test.
    """
    _py_test(
        name = name,
        srcs = srcs + ["//tools:pytest_runner.py"],
        main = "//tools:pytest_runner.py",
        args = ["%s/%s" % (native.package_name(), srcs[0])],
        data = data + ["//:pyproject.toml"],
        deps = deps + ["//tests", "//tests:conftest"],
        **kwargs
    )
