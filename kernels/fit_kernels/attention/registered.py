"""Our attention as torch knows it: registered, with its gradient.

Without a device for the kernels the operators run the plain form below, sequence by sequence.
No `annotations` import from the future here: torch reads the signatures.

Dimension key: T packed tokens, S sequences, H query heads, G key heads, E head dim, N, M tokens of
one sequence.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from fit_kernels.registered.forward import runs_fused


@custom_op("fit_kernels::attention_varlen", mutates_args=())
def attention_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Output [T, H, E] and log-sum-exp of the logits, fp32 [H, T]; zeros past the last offset."""
    if runs_fused(q):
        from fit_kernels.fused.attention_varlen import attention_varlen_forward

        return attention_varlen_forward(q, k, v, cu_seqlens, scale)
    out, lse = q.new_zeros(q.shape), q.new_zeros(_lse_shape(q), dtype=_wide(q.dtype))
    for part in _sequences(cu_seqlens):
        scores_HNM = _scores(q[part], k[part], scale)
        lse[:, part] = scores_HNM.logsumexp(-1)
        weights_HNM = (scores_HNM - lse[:, part, None]).exp()
        out[part] = torch.einsum("hnm,mhe->nhe", weights_HNM, _per_query_head(v[part], q)).to(q)
    return out, lse


@attention_varlen.register_fake
def _(q, k, v, cu_seqlens, scale):
    return q.new_empty(q.shape), q.new_empty(_lse_shape(q), dtype=_wide(q.dtype))


@custom_op("fit_kernels::attention_varlen_backward", mutates_args=())
def attention_varlen_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries [T, H, E], keys and values [T, G, E] (arXiv:2307.08691, section 2.3)."""
    if runs_fused(q):
        from fit_kernels.fused import attention_varlen_backward as fused

        return fused.attention_varlen_backward(grad, q, k, v, out, lse, cu_seqlens, scale)
    grad_q, grad_k, grad_v = (x.new_zeros(x.shape) for x in (q, k, v))
    for part in _sequences(cu_seqlens):
        weights_HNM = (_scores(q[part], k[part], scale) - lse[:, part, None]).exp()
        grad_NHE = grad[part].to(weights_HNM.dtype)
        delta_HN = (grad_NHE * out[part]).sum(-1).t()
        grad_v[part] = _per_key_head(torch.einsum("hnm,nhe->mhe", weights_HNM, grad_NHE), v)
        products_HNM = torch.einsum("nhe,mhe->hnm", grad_NHE, _per_query_head(v[part], q))
        logits_HNM = weights_HNM * (products_HNM - delta_HN[:, :, None]) * scale
        keys, queries = _per_query_head(k[part], q), q[part].to(logits_HNM.dtype)
        grad_q[part] = torch.einsum("hnm,mhe->nhe", logits_HNM, keys).to(q.dtype)
        grad_k[part] = _per_key_head(torch.einsum("hnm,nhe->mhe", logits_HNM, queries), k)
    return grad_q, grad_k, grad_v


@attention_varlen_backward.register_fake
def _(grad, q, k, v, out, lse, cu_seqlens, scale):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _grad_lse: Tensor) -> tuple:
    grads = attention_varlen_backward(grad, *ctx.saved_tensors, ctx.scale)
    return *grads, None, None


attention_varlen.register_autograd(_backward, setup_context=_save)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _lse_shape(q: Tensor) -> tuple[int, int]:
    return q.shape[1], q.shape[0]


def _sequences(cu_seqlens: Tensor) -> Iterator[slice]:
    offsets = cu_seqlens.tolist()
    return (slice(a, b) for a, b in pairwise(offsets) if b > a)


def _scores(q_NHE: Tensor, k_MGE: Tensor, scale: float) -> Tensor:
    wide = q_NHE.to(_wide(q_NHE.dtype))
    return torch.einsum("nhe,mhe->hnm", wide, _per_query_head(k_MGE, q_NHE)) * scale


def _per_query_head(k_MGE: Tensor, q_NHE: Tensor) -> Tensor:
    share = q_NHE.shape[1] // k_MGE.shape[1]
    return k_MGE.to(_wide(k_MGE.dtype)).repeat_interleave(share, dim=1)


def _per_key_head(grad_MHE: Tensor, k_TGE: Tensor) -> Tensor:
    return grad_MHE.unflatten(1, (k_TGE.shape[1], -1)).sum(2).to(k_TGE.dtype)
