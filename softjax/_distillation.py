"""Distillation: divergences between a teacher and the softmax of a linear layer, the student."""

from __future__ import annotations

import dataclasses
import functools as ft
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial
from jax.typing import ArrayLike, DTypeLike

from . import _checks, losses, scores
from ._arguments import checked_array, checked_scalar
from ._checks import Where
from ._dtypes import Constant, PerPair
from ._evaluate import evaluate
from ._explicit import sharded_like
from ._gibbs import Columns, Weights
from ._labels import Labels
from ._linear import label_pair, log_probabilities
from ._mesh import AxisName
from ._placement import BlockSize
from ._products import PrecisionLike
from ._reductions import Examples
from ._signatures import readable
from .losses import Loss

_DIVERGENCES = ("forward", "reverse", "jensen_shannon")


@readable
@sharded_like("features")
def linear_distillation_loss(
    features: ArrayLike,
    kernel: ArrayLike,
    *,
    teacher_features: ArrayLike | None = None,
    teacher_kernel: ArrayLike | None = None,
    teacher_bias: ArrayLike | None = None,
    teacher_probs: ArrayLike | tuple[ArrayLike, ArrayLike] | None = None,
    divergence: str = "forward",
    bias: ArrayLike | None = None,
    class_axis: int = -1,
    where: Where = None,
    weights: ArrayLike | None = None,
    softcap: ArrayLike | None = None,
    teacher_softcap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    reduction: str = "none",
    block_size: BlockSize = None,
    precision: PrecisionLike = None,
    dtype: DTypeLike | None = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Array:
    """Divergence between a teacher q and the softmax p of a linear layer, without the logits [..., K] of either.

    "forward":        KL(q || p) = sum_k q_k (log q_k - log p_k)
    "reverse":        KL(p || q) = sum_k p_k (log p_k - log q_k)
    "jensen_shannon": (KL(q || m) + KL(p || m)) / 2, with m = (p + q) / 2

    p = softmax(softcap tanh((features @ kernel + bias) / softcap) / temperature). The teacher is a linear layer too,
    with the same formula, or it is given by its probabilities, which `temperature` does not change. It is a constant
    of differentiation. The absolute error is eps |z|; from a pair and for "jensen_shannon", the error is relative to
    the divergence. Some authors multiply the loss by temperature^2 (Hinton et al., 2015); it is not done here.

    Args:
        features: [..., D].
        kernel: [D, K], as in a Flax `Dense`, or [K, D] with `class_axis=0`, as in an embedding table.
        teacher_features: [..., D'], with the leading axes of the features.
        teacher_kernel: [D', K], or [K, D'] with `class_axis=0`.
        teacher_bias: [K]; None for 0. A class that is left out of one of both is left out of both.
        teacher_probs: in place of the teacher's layer, probabilities [..., K], normalised where their sum is
            not 1; or a pair (indices [..., T], probabilities [..., T]) with different indices in [0, K), of
            which all other classes have probability 0. For a pair, "reverse" is refused, as it would be
            infinite.
        divergence: "forward", "reverse" or "jensen_shannon".
        bias: [K]; None for 0. A class with bias -inf is left out.
        class_axis: the axis of the classes in the kernel, 0 or -1.
        where: the classes to include: booleans [K]; booleans [..., K], for each example; a function of ids
            (example ids [n, 1], class ids [1, b]) -> booleans [n, b], made once, with its arrays by
            `jax.tree_util.Partial`; None for all.
        weights: [...], a factor of the loss of each example; None for 1.
        softcap: a positive scalar, the bound of the logits; None for none.
        teacher_softcap: a positive scalar, the bound of the teacher's logits; None for none.
        temperature: a positive scalar that divides the logits or squared distances.
        reduction: "none" for the loss of each example, "sum", or "mean": sum(w l) / sum(w), and 0 if sum(w) is
            0.
        block_size: how many classes are in memory at a time, or a `softjax.Placement`; None to let the library
            choose.
        precision: "default", "high" or "highest": of the products of features and kernel. None takes
            `jax.default_matmul_precision`, and without it "highest" for float32 and on CPUs, else "default".
        dtype: the type in which features and kernel are multiplied, as in Flax; their gradients keep their own
            types. None for the type that they promote to.
        axis_name: inside `jax.shard_map`, the mesh axis or axes over which the classes are sharded; None for
            none. The arrays of classes are then this device's shard; class ids stay global.
        batch_axis_name: likewise for the examples; a sum or mean is then taken over the examples of all
            devices.

    Returns:
        The divergence in nats [...], or a scalar, in at least float32.

    Raises:
        ValueError: if shapes don't fit together, or an argument is out of range.
        TypeError: if an array or an option is of the wrong kind.

    Example:
        >>> import softjax, jax.numpy as jnp
        >>> features, kernel, probs = jnp.ones((1, 2)), jnp.zeros((2, 4)), jnp.array([[0.5, 0.5, 0.0, 0.0]])
        >>> print(softjax.linear_distillation_loss(features, kernel, teacher_probs=probs))  # log 2
        [0.6931]

    Source: Hinton et al., 2015 (distillation); CATSMILE-1012 (softargmax), expectations under p.
    """
    student = scores.linear(features, kernel, bias, class_axis, where, axis_name, batch_axis_name, precision, dtype)
    if divergence not in _DIVERGENCES:
        raise ValueError(f"`divergence` must be one of {_DIVERGENCES}, got {_checks.shown(divergence)}.")
    if (teacher_probs is None) == (teacher_kernel is None) or (teacher_kernel is None) != (teacher_features is None):
        raise ValueError("`teacher_probs`, or `teacher_features` and `teacher_kernel`, must be given, and not both.")
    student = _scaled(student, "softcap", softcap, temperature)
    how: dict[str, Any] = {"weights": weights, "reduction": reduction, "block_size": block_size}
    if isinstance(teacher_probs, tuple):
        return _divergence_of_pair(student, teacher_probs, divergence, how)
    if teacher_features is None or teacher_kernel is None:
        teacher = _of_probabilities(teacher_probs, student)
    else:
        options = class_axis, None, axis_name, batch_axis_name, precision, dtype
        teacher = scores.linear(teacher_features, teacher_kernel, teacher_bias, *options)
        if (teacher.batch, teacher.k) != (student.batch, student.k):
            got = f"{teacher.batch} and {teacher.k}"
            wanted = f"the leading axes {student.batch} and the {student.k} classes of the student"
            raise ValueError(f"`teacher_features` and `teacher_kernel` must have {wanted}, got {got}.")
        teacher = _scaled(teacher, "teacher_softcap", teacher_softcap, temperature)
    both = _student_and_teacher(student, teacher)
    if divergence != "jensen_shannon":
        return evaluate(_FORWARD if divergence == "forward" else _REVERSE, both, **how)
    gap = evaluate(_GAP, both, block_size=block_size).reshape(-1)
    return evaluate(_JENSEN_SHANNON, both, gap, **how)


def _scaled(linear, name, softcap, temperature):
    """The scores after a softcap, the argument of that name, and a temperature."""
    cap = None if softcap is None else checked_scalar(name, softcap)
    function = Partial(_scaled_scores, linear.function, cap, checked_scalar("temperature", temperature))
    return dataclasses.replace(linear, function=function)


def _scaled_scores(function, cap, temperature, *block):
    capped = lambda z: z if cap is None else cap * jnp.tanh(z / cap)
    return losses.unless_left_out(lambda z: capped(z) / temperature, function(*block))


def _of_probabilities(probs, student):
    """The logarithms of probabilities [..., K] as scores."""
    probs = checked_array("teacher_probs", probs)
    _checks.shape("teacher_probs", probs, (*student.batch, student.k), "[..., K] for the K of `kernel`")
    pairs = PerPair(probs.reshape(student.n, student.k))
    made = {"kind": "probabilities", "examples": pairs, "classes": (), "axes": (), "live": None, "width": 0}
    return dataclasses.replace(student, function=_LOGARITHMS, **made)


_LOGARITHMS = Partial(lambda probs, *_: jnp.where(probs > 0, jnp.log(jnp.where(probs > 0, probs, 1)), -jnp.inf))


def _student_and_teacher(student, teacher):
    """Scores in pairs (student's, teacher's), of which the teacher's are constants of differentiation."""
    lives = [a.live for a in (student, teacher) if a.live is not None]
    return dataclasses.replace(
        student,
        kind="student and teacher",
        function=Partial(_Both(len(student.classes)), student.function, Constant(teacher.function)),
        examples=(student.examples, Constant(teacher.examples)),
        classes=(*student.classes, *map(Constant, teacher.classes)),
        axes=student.axes + teacher.axes,
        live=ft.reduce(jnp.logical_and, lives) if lives else None,
        width=student.width + teacher.width,
    )


@dataclasses.dataclass(frozen=True)
class _Both:
    """The scores of a student, whose arrays are the first `count` of the classes, and of a teacher."""

    count: int

    def __call__(self, student, teacher, examples, block, live):
        of_student, of_teacher = examples
        return student(of_student, block[: self.count], live), teacher.tree(of_teacher, block[self.count :], live)


def _forward_columns(z, ids, *_):
    """Those of `losses.kl_divergence`. A class with q_k = 0 is in the normaliser of p."""
    student, teacher = z
    nearly_0 = 2.5 * jnp.log(jnp.finfo(teacher.dtype).eps)  # q_k log q_k is below the rounding, and so is q_k
    teacher = jnp.where(jnp.isneginf(teacher), nearly_0, teacher)
    return losses.kl_divergence.columns(student, ids, teacher, None)


def _reverse_columns(z, ids, *_):
    student, teacher = z
    impossible = jnp.isneginf(teacher) & ~jnp.isneginf(student)
    columns = losses.kl_divergence.columns(jnp.where(impossible, 0, teacher), ids, student, None)
    return columns._replace(l=(impossible.astype(student.dtype),))


def _reverse(q, _):
    return jnp.where(q.l[0] > 0, jnp.inf, losses.kl_divergence.finish(q, _))


def _gap_columns(z, *_):
    student, teacher = z
    return Columns(student, e=(jnp.where(jnp.isneginf(student), 0, teacher - student),))


def _jensen_shannon_columns(z, ids, gap, _):  # noqa: ARG001
    """The base is m = (p + q) / 2, and JS = E_m[t] with t_k = log 2 - H(s_k), for s_k = q_k / (p_k + q_k)."""
    student, teacher = z
    left_out = jnp.isneginf(student)
    log_odds = jnp.where(left_out, 0, teacher - gap[:, None] - jnp.where(left_out, 0, student))
    return Columns(jnp.where(left_out, -jnp.inf, student + jax.nn.softplus(log_odds)), t=(_information(log_odds),))


def _information(log_odds):
    """log 2 - H(s) of a probability s = sigmoid(log_odds), with all digits near s = 1/2."""
    x = jnp.minimum(jnp.abs(log_odds), 800)
    near = jnp.minimum(x, 1)
    u, tanh = jnp.exp(-x), jnp.tanh(near / 2)
    return jnp.where(x < 1, (jnp.log1p(-(tanh**2)) + tanh * near) / 2, jnp.log(2.0) - jnp.log1p(u) - x * u / (1 + u))


_FORWARD = Loss(_forward_columns, losses.kl_divergence.finish)
_REVERSE = Loss(_reverse_columns, _reverse)
_GAP = Loss(_gap_columns, lambda q, _: q.e[0].value)  # A' - A of the teacher and the student
_JENSEN_SHANNON = Loss(_jensen_shannon_columns, lambda q, _: q.t[0].value)


def _divergence_of_pair(student, pair, divergence, how):
    """The divergence from a teacher with probability 0 for most classes, in one pass."""
    if divergence == "reverse":
        raise ValueError("`divergence` must be 'forward' or 'jensen_shannon' for a pair, got 'reverse'.")
    ids, probs = label_pair(pair, student.batch, "teacher_probs")
    ids, known = _checks.class_ids(ids, student.count)
    examples = Examples(known=known.all(-1))
    return evaluate(_OF_PAIRS[divergence], student, (ids, Constant(probs)), examples=examples, **how)


def _columns_of_pair(z, ids, pair, _):
    """The scores of the teacher's classes, and the probability of all others."""
    labels = Labels(pair[0], ids)
    none = jnp.zeros(pair[0].shape, z.dtype)
    others = labels.put(jnp.full_like(none, -jnp.inf), jnp.zeros_like(z))
    return Columns(z, e=(others,), y=Weights(pair[0], none))


def _forward_of_pair(totals, pair):
    """The sum of q log(q / p) - q + p, and of p for the other classes: terms that are not negative."""
    q, p, log_ratio, of_others = _compared(totals, pair)
    terms = jnp.where(q > 0, q * (log_ratio + jnp.expm1(-log_ratio)), p)
    return terms.sum(-1) + of_others + (q.sum(-1) - 1)


def _jensen_shannon_of_pair(totals, pair):
    q, p, log_ratio, of_others = _compared(totals, pair)
    log_ratio = jnp.where(q > 0, log_ratio, jnp.inf)
    return ((p + q) * _information(log_ratio)).sum(-1) / 2 + of_others * jnp.log(2.0) / 2


def _compared(totals, pair):
    """(q, p, log(q / p) where q > 0) of the teacher's classes, and the sum of p over all others."""
    q, log_p = pair[1].tree, log_probabilities(totals)
    return q, jnp.exp(log_p), jnp.log(jnp.where(q > 0, q, 1)) - log_p, jnp.exp(totals.e[0].value)


_OF_PAIRS = {
    "forward": Loss(_columns_of_pair, _forward_of_pair),
    "jensen_shannon": Loss(_columns_of_pair, _jensen_shannon_of_pair),
}
