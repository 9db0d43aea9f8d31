"""Triton kernels in Triton's interpreter: collected only where it is switched on.

The choice between interpreter and compiler falls when a kernel's module is imported, so these tests
have a process of their own: `make test-interpreter`.
"""

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
