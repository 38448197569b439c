"""Bazel's own Python rules under the names that today's BUILD files load."""

py_library = native.py_library
py_binary = native.py_binary
py_test = native.py_test
