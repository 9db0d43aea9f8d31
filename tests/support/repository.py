"""The repository as git sees it: which files it holds, which it ignores."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "kernels": "fit_kernels",
    "models": "fit_models",
    "server": "fit_serve",
    "training": "fit_training",
}


def has_git() -> bool:
    """Whether this tree is a git checkout: an unpacked source archive is not."""
    return (ROOT / ".git").exists()


def list_files(*pathspecs: str) -> list[str]:
    """Paths git tracks or would track when asked to add everything; those that exist on disk."""
    return _ls_files("--cached", "--others", "--exclude-standard", "--", *pathspecs)


def list_ignored_files(*pathspecs: str) -> list[str]:
    """Paths on disk that git ignores, one by one."""
    return _ls_files("--others", "--ignored", "--exclude-standard", "--", *pathspecs)


def _ls_files(*arguments: str) -> list[str]:
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", *arguments]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted({path for path in output.split("\0") if path and (ROOT / path).is_file()})
