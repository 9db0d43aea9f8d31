"""One thread for torch, unless the caller's environment says otherwise.

Tests compute on tensors of a few kilobytes. More threads only wait for each other there, and where
the machine has other work to do they spin through each other's turns: a hundred times as long.
Set before anything imports torch, and inherited by the processes that tests start.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
