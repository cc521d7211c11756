"""Contestants of the benchmark that are not of JAX: PyTorch and KeOps, which the tests do without."""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def of_linear(reduction: str) -> dict[str, Callable]:
    """Linear cross entropies of (x, w, labels)."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch
    from torch.nn import functional

    def weighed(loss):
        def of(x, w, y):
            losses = loss(x, w, y, reduction)
            return losses @ torch.linspace(0.5, 1.5, len(y)) if reduction == "none" else losses

        return of

    peers = {"torch": weighed(lambda x, w, y, r: functional.cross_entropy(x @ w.T, y, reduction=r))}
    if hasattr(functional, "linear_cross_entropy"):
        peers["torch fused"] = weighed(lambda x, w, y, r: functional.linear_cross_entropy(x, w, y, reduction=r))
    as_torch_has_them = lambda x, w, y: (x, w.T, y)
    return {name: _eager(torch, loss, as_torch_has_them) for name, loss in peers.items()}


def of_mixture(kind: str) -> dict[str, Callable]:
    """The losses of (z, x, c, v) with KeOps's lazy tensors, which hold no [N, K] either."""
    if importlib.util.find_spec("pykeops") is None:
        return {}
    import torch
    from pykeops.torch import LazyTensor

    def loss(z, x, c, v):
        h = -((LazyTensor(z[:, None]) - LazyTensor(c[None])) ** 2).sum(-1)
        if kind == "autoencoder":
            return ((x - h.sumsoftmaxweight(LazyTensor(v[None]), axis=1)) ** 2).sum(-1).mean()
        log_likelihood = -((LazyTensor(x[:, None]) - LazyTensor(v[None])) ** 2).sum(-1)
        if kind == "EOL":
            return -h.sumsoftmaxweight(log_likelihood, axis=1).mean()
        return (h.logsumexp(1) - (h + log_likelihood).logsumexp(1)).mean()

    return {"KeOps": _eager(torch, loss)}


def _eager(torch: Any, loss: Callable, moved: Callable = lambda *arguments: arguments) -> Callable:
    """What makes of arguments a step: the loss and the gradients of the floating-point ones."""

    def tensor(a):
        moves = jnp.issubdtype(a.dtype, jnp.floating)
        return torch.tensor(jax.device_get(a), dtype=None if moves else torch.int64, requires_grad=moves)

    def prepare(*arguments):
        tensors = [tensor(a) for a in moved(*arguments)]

        def step():
            for t in tensors:
                t.grad = None
            loss(*tensors).backward()

        return step

    prepare.eager = True  # type: ignore[attr-defined]
    return prepare
