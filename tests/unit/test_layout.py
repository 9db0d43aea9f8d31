"""One import package in each top-level folder, nothing lost to .gitignore, no odds and ends."""

import re
from pathlib import PurePosixPath

import pytest

from support.repository import PACKAGES, ROOT, has_git, list_files, list_ignored_files

pytestmark = pytest.mark.skipif(not has_git(), reason="needs a git checkout")

DRAWERS = {"utils", "util", "helpers", "common", "misc"}


@pytest.mark.parametrize(("folder", "package"), PACKAGES.items())
def test_every_module_of_a_folder_is_in_its_one_package(folder: str, package: str):
    modules = list_files(f"{folder}/*.py")
    assert f"{folder}/{package}/__init__.py" in modules
    assert [m for m in modules if not m.startswith(f"{folder}/{package}/")] == []


@pytest.mark.parametrize(("folder", "package"), PACKAGES.items())
def test_every_folder_with_modules_is_a_package(folder: str, package: str):
    modules = set(list_files(f"{folder}/{package}/*.py"))
    parents = {PurePosixPath(module).parent for module in modules}
    assert [str(p) for p in parents if str(p / "__init__.py") not in modules] == []


def test_git_ignores_no_module_and_no_embedded_weight():
    ignored = list_ignored_files(*PACKAGES, "tests", "benchmarks")
    caches = re.compile(r"(^|/)(__pycache__|\.[^/]+)/")  # made by Python and its tools
    assert [path for path in ignored if not caches.search(path)] == []


def test_no_module_is_a_drawer():
    modules = (PurePosixPath(path) for path in list_files("*.py"))
    assert [str(m) for m in modules if DRAWERS & {m.stem, *m.parts[:-1]}] == []


def test_tests_mirror_the_packages_and_are_no_package():
    assert list_files("tests/**/__init__.py", "tests/__init__.py") == []
    allowed = {"benchmarks", "examples", "kernels", "models", "serve", "training", "support"}
    folders = {PurePosixPath(path).parts[2] for path in list_files("tests/unit/*/*.py")}
    assert folders <= allowed


def test_the_frame_is_there():
    for name in ("README.md", "LICENSE", "NOTICE", "CHANGELOG.md", "CONTRIBUTING.md", ".ci/run"):
        assert (ROOT / name).is_file(), name
