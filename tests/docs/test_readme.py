"""The README cannot lie: the file map is whole, code parses, commands and links exist."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from support.repository import ROOT, has_git, list_files

README = ROOT / "README.md"
MAPPED = ("kernels", "models", "server", "training", "benchmarks")
SHELLS = {"bash", "sh", "shell", "console"}


def code_blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def file_map() -> dict[str, str]:
    """Path -> purpose, from the lines of the fenced blocks under "## File map"."""
    section = README.read_text().partition("\n## File map\n")[2].partition("\n## ")[0]
    purposes: dict[str, str] = {}
    for _, block in code_blocks(section):
        for line in filter(str.strip, block.splitlines()):
            entry = re.fullmatch(r"(\S+)\s{2,}(\S.*)", line)
            assert entry, f"not `path   purpose`: {line!r}"
            purposes[entry[1]] = entry[2]
    return purposes


def shell_code(language: str, code: str) -> str:
    """A shell block's commands: a console block marks them with a dollar sign."""
    if language != "console":
        return code
    return "\n".join(line[2:] for line in code.splitlines() if line.startswith("$ "))


def test_everything_on_the_file_map_exists():
    paths = file_map()
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.skipif(not has_git(), reason="needs a git checkout")
def test_every_module_is_on_the_file_map():
    paths = file_map()
    modules = list_files(*(f"{folder}/*.py" for folder in MAPPED))
    missing = [
        module
        for module in modules
        # a package's __init__.py is also told by its folder's line, generated code by its contract
        if module not in paths and not module.endswith(("/__init__.py", "_pb2.py", "_pb2_grpc.py"))
    ]
    assert missing == []


def test_code_blocks_parse():
    for language, code in code_blocks(README.read_text()):
        if language == "python":
            compile(code, "README.md", "exec")
        elif language == "json":
            json.loads(code)
        elif language in SHELLS:
            checked = subprocess.run(
                ["bash", "-n"], input=shell_code(language, code), capture_output=True, text=True
            )
            assert checked.returncode == 0, f"{checked.stderr}\n{code}"


def test_make_targets_named_in_documents_exist():
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in documents():
        named = set(
            re.findall(r"(?:`|^|&& )make ([a-z][a-z-]*)", document.read_text(), re.MULTILINE)
        )
        assert named <= targets, document.name


def test_links_to_files_lead_somewhere():
    broken = [
        f"{document.name}: {target}"
        for document in documents()
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text())
        if "://" not in target and not (document.parent / target).exists()
    ]
    assert broken == []


def documents() -> list[Path]:
    """Every Markdown file of the repository, at the top and in docs/ and deploy/."""
    return [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]
