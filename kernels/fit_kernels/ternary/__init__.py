"""Products with ternary weights on a CPU, and which of them runs."""

from fit_kernels.ternary.choice import TERNARY_PRODUCTS, current_ternary, use_ternary

__all__ = ["TERNARY_PRODUCTS", "current_ternary", "use_ternary"]
