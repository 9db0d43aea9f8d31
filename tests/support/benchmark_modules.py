"""Scripts of `benchmarks/` as modules, for they are no package."""

import importlib.util
import sys
from types import ModuleType

from support.repository import ROOT


def load_benchmark(name: str) -> ModuleType:
    """Run `benchmarks/NAME.py` as a module called NAME."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
