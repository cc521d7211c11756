"""Contestants of the benchmark outside JAX: PyTorch and KeOps. The tests do not need them."""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def of_linear(reduction: str) -> dict[str, Callable]:
    """Linear cross entropies in PyTorch, as functions of (x, w, labels)."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch
    from torch.nn import functional

    def to_scalar(loss):
        def scalar_loss(x, w, y):
            losses = loss(x, w, y, reduction)
            return losses @ torch.linspace(0.5, 1.5, len(y)) if reduction == "none" else losses

        return scalar_loss

    peers = {"torch": to_scalar(lambda x, w, y, r: functional.cross_entropy(x @ w.T, y, reduction=r))}
    if hasattr(functional, "linear_cross_entropy"):
        peers["torch fused"] = to_scalar(lambda x, w, y, r: functional.linear_cross_entropy(x, w, y, reduction=r))
    torch_layout = lambda x, w, y: (x, w.T, y)
    return {name: _eager(torch, loss, torch_layout) for name, loss in peers.items()}


def of_mixture(kind: str) -> dict[str, Callable]:
    """The mean loss of (z, x, c, v) in KeOps, whose lazy tensors have no array [N, K] in memory either."""
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


def _eager(torch: Any, loss: Callable, relayout: Callable = lambda *arguments: arguments) -> Callable:
    """A function from arguments to a step, which computes the loss and the gradients for floating-point arguments."""

    def tensor(a):
        floating = jnp.issubdtype(a.dtype, jnp.floating)
        return torch.tensor(jax.device_get(a), dtype=None if floating else torch.int64, requires_grad=floating)

    def prepare(*arguments):
        tensors = [tensor(a) for a in relayout(*arguments)]

        def step():
            for t in tensors:
                t.grad = None
            loss(*tensors).backward()

        return step

    prepare.eager = True  # type: ignore[attr-defined]
    return prepare


def of_accelerator() -> dict[str, Callable]:
    """Fused linear cross entropies with a mean, as functions of (x, w, labels): those that can be imported."""
    found: dict[str, Callable] = {}
    if importlib.util.find_spec("tokamax") is not None:
        import tokamax

        loss = lambda x, w, y: tokamax.linear_softmax_cross_entropy_loss(x, y, w, reduction="mean")
        found["tokamax"] = jax.value_and_grad(loss, (0, 1))
    if importlib.util.find_spec("torch") is None:
        return found
    import torch
    from torch.nn import functional

    if not torch.cuda.is_available() or jax.default_backend() != "gpu":
        return found
    losses: dict[str, Callable] = {}
    if hasattr(functional, "linear_cross_entropy"):
        losses["torch"] = functional.linear_cross_entropy
    if importlib.util.find_spec("liger_kernel") is not None:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        losses["Liger"] = lambda x, w, y: LigerFusedLinearCrossEntropyLoss()(w, x, y)
    if importlib.util.find_spec("cut_cross_entropy") is not None:
        from cut_cross_entropy import linear_cross_entropy

        losses["CCE"] = linear_cross_entropy
    return found | {name: _on_gpu(torch, loss) for name, loss in losses.items()}


def _on_gpu(torch: Any, loss: Callable) -> Callable:
    """A step on arguments that JAX has on the GPU: the loss and both gradients, for a kernel of layout [K, D]."""

    def step(arguments):
        x, w, y = (torch.from_dlpack(a) for a in arguments)
        x, w = x.detach().requires_grad_(), w.T.contiguous().requires_grad_()
        loss(x, w, y.long()).backward()
        torch.cuda.synchronize()

    step.eager = True  # type: ignore[attr-defined]
    return step
