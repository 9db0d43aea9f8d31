"""The operators as Triton kernels, one module an operator, forward and backward.

Each is specified by the function of the same name in `fit_kernels.reference`. Statistics, angles
and sums are fp32 whatever the dtype; no kernel uses an atomic: the same input gives the same bits.
"""
