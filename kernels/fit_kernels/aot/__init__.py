"""Every Triton kernel compiled ahead of time, for GPUs that are not there.

`coverage` asks the operators what they would launch at the shapes of `shapes`, `specialisation`
makes of a launch what Triton's JIT would compile, `compilation` compiles and measures it for the
GPUs of `targets`, `report` keeps the table. None of it needs a driver: `python -m fit_kernels.aot`.
That a kernel compiles, without spills and with wide loads, says nothing of whether it is right.
"""
