"""The table of refused arguments: a call, its error, and a pattern of its message."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

import softjax
from softjax import Columns, Loss, losses

from . import cases

N, K, D = 4, 5, 3
(MANY,) = jax.export.symbolic_shape("n")
LOGITS = jnp.zeros((2, 3))
LABELS = jnp.array([0, 1])
MIX = {"z": jnp.zeros((4, 2)), "x": jnp.zeros((4, 5)), "centers": jnp.zeros((3, 2)), "values": jnp.zeros((3, 5))}
x, w, y, z = jnp.ones((N, D)), jnp.ones((D, K)), jnp.zeros(N, int), jnp.ones((N, K))
H, OF_FEWER = softjax.linear(x, w), softjax.linear(x, w[:, 1:])
no_weights = Loss(lambda z, ids, _, __: Columns(z), lambda q, _: q.C)


def ce(features, kernel, labels, **options):
    """The cross entropy of a linear layer, with the options of both."""
    made = {name: options.pop(name) for name in ("bias", "class_axis") if name in options}
    how = {name: options.pop(name) for name in ("block_size", "precision", "dtype", "engine") if name in options}
    logits = softjax.linear(features, kernel, **made, **how)
    return softjax.softmax_cross_entropy_with_integer_labels(logits, labels, **options)


def mixture(**changes):
    return softjax.mixture_autoencoder_loss(**{**MIX, **changes})


def of_own(function, examples=x, classes=w.T):
    return softjax.entropy(softjax.pairwise(function, examples, classes))


def laplacian(x, c):
    return -jnp.abs(x - c).sum()


# (call, error, its message)
ARRAYS = {
    "axis out of range": (
        lambda: softjax.softmax(LOGITS, 2),
        ValueError,
        r"`axis` must lie in \[-2, 2\) for an array of rank 2, got 2",
    ),
    "axis named twice": (lambda: softjax.softmax(LOGITS, (1, -1)), ValueError, r"`axis` must not name an axis twice"),
    "axis no integer": (lambda: softjax.softmax(LOGITS, 1.0), TypeError, r"`axis` must be an integer, .* got 1.0"),
    "axis of a scalar": (
        lambda: softjax.softmax(1.0),
        ValueError,
        "`axis` must name an axis of the array, got -1 for a single number",
    ),
    "complex logits": (
        lambda: softjax.softmax(LOGITS.astype(complex)),
        TypeError,
        "`x` must be real numbers of 16 bits or more, got dtype complex64",
    ),
    "boolean logits": (
        lambda: softjax.softmax(LOGITS == 0),
        TypeError,
        "`x` must be real numbers of 16 bits or more, got dtype bool",
    ),
    "no logits": (lambda: softjax.entropy(None), TypeError, "`logits` must be an array or a number .*, got NoneType"),
    "text for logits": (lambda: softjax.logsumexp("abc"), TypeError, "`a` must be an array or a number .*, got str"),
    "where of another shape": (
        lambda: softjax.softmax(LOGITS, where=jnp.ones(4, bool)),
        ValueError,
        r"`where` must be broadcastable to shape \(2, 3\) \(that of the logits\), got \(4,\)",
    ),
    "where of a higher rank": (
        lambda: softjax.softmax(LOGITS, where=jnp.ones((1, 2, 3), bool)),
        ValueError,
        r"`where` must be broadcastable to shape \(2, 3\)",
    ),
    "where of numbers": (
        lambda: softjax.softmax(LOGITS, where=jnp.ones(3)),
        TypeError,
        "`where` must be booleans, got dtype float32",
    ),
    "values of another shape": (
        lambda: softjax.expectation(LOGITS, jnp.zeros(4)),
        ValueError,
        r"`values` must be broadcastable against `logits`, got shapes \(4,\) and \(2, 3\)",
    ),
    "complex values": (
        lambda: softjax.expectation(LOGITS, LOGITS.astype(complex)),
        TypeError,
        "`values` must be real numbers",
    ),
    "soft labels of another shape": (
        lambda: softjax.softmax_cross_entropy(LOGITS, jnp.zeros((2, 4))),
        ValueError,
        r"`labels` must be broadcastable to shape \(2, 3\) \(that of the logits\), got \(2, 4\)",
    ),
    "labels of another shape": (
        lambda: softjax.softmax_cross_entropy_with_integer_labels(LOGITS, jnp.zeros(3, int)),
        ValueError,
        r"`labels` must have shape \(2,\) \(that of the logits less `axis`\), got \(3,\)",
    ),
    "labels of numbers": (
        lambda: softjax.softmax_cross_entropy_with_integer_labels(LOGITS, jnp.zeros(2)),
        TypeError,
        "`labels` must be integers, got dtype float32",
    ),
    "where per example of another shape": (
        lambda: softjax.softmax_cross_entropy_with_integer_labels(LOGITS, LABELS, where=jnp.ones(4, bool)),
        ValueError,
        r"`where` must be broadcastable to shape \(2, 3\) .* got \(4,\)",
    ),
    "scores without classes": (
        lambda: softjax.multiclass_svm_loss(jnp.zeros(()), jnp.array(0)),
        ValueError,
        r"`scores` must have shape \[..., K\] with K classes, got \(\)",
    ),
    "labels of scores": (
        lambda: softjax.multiclass_hinge_loss(LOGITS, jnp.array(0)),
        ValueError,
        r"`labels` must have shape \(2,\) \(that of `scores` less its last axis\), got \(\)",
    ),
    "margins": (
        lambda: softjax.multiclass_svm_loss(LOGITS, LABELS, margin=jnp.ones(2)),
        ValueError,
        r"`margin` must be a scalar, got shape \(2,\)",
    ),
    "centers of rank 1": (
        lambda: mixture(centers=jnp.zeros(3)),
        ValueError,
        r"`centers` must have shape \[K, D\], got \(3,\)",
    ),
    "no centers": (
        lambda: mixture(centers=jnp.zeros((0, 2)), values=jnp.zeros((0, 5))),
        ValueError,
        r"`centers` must hold at least one class, got shape \(0, 2\)",
    ),
    "values of another K": (
        lambda: mixture(values=jnp.zeros((4, 5))),
        ValueError,
        r"`values` must have shape \(3, 5\) \(\[K, E\] for the K of `centers`\), got \(4, 5\)",
    ),
    "z of another D": (
        lambda: mixture(z=jnp.zeros((4, 3))),
        ValueError,
        r"`z` must have shape \(4, 2\) \(\[..., D\] for the D of `centers`\), got \(4, 3\)",
    ),
    "z a scalar": (
        lambda: mixture(z=jnp.zeros(())),
        ValueError,
        r"`z` must have shape \(2,\) .* got \(\)",
    ),
    "x of another E": (
        lambda: mixture(x=jnp.zeros((4, 6))),
        ValueError,
        r"`x` must have shape \(4, 5\) \(the leading axes of `z`, and the E of `values`\), got \(4, 6\)",
    ),
    "x of another N": (lambda: mixture(x=jnp.zeros((1, 5))), ValueError, r"`x` must have shape \(4, 5\)"),
    "log_prior of another K": (
        lambda: mixture(log_prior=jnp.zeros(4)),
        ValueError,
        r"`log_prior` must have shape \(3,\) \(\[K\] for the K of `centers`\), got \(4,\)",
    ),
    "precisions of another K": (
        lambda: mixture(precisions=jnp.ones((4, 1))),
        ValueError,
        r"`precisions` must have shape \(3, 2\), \(3, 1\) or \(2,\) \(\[K, D\], \[K, 1\] or \[D\] for the shape",
    ),
    "precisions of a loss of each class": (
        lambda: losses.gaussian_mixture(jnp.ones((3, 2))),
        ValueError,
        r"`precisions` must be a scalar or have shape \[D\], got \(3, 2\)",
    ),
    "where of another K": (
        lambda: mixture(where=jnp.ones(4, bool)),
        ValueError,
        r"`where` must broadcast to the logits \(4, 3\), got shape \(4,\)",
    ),
    "where of integers": (
        lambda: mixture(where=jnp.ones(3, int)),
        TypeError,
        "`where` must be booleans, got dtype int32",
    ),
    "temperatures": (
        lambda: mixture(temperature=jnp.ones(4)),
        ValueError,
        r"`temperature` must be a scalar, got shape \(4,\)",
    ),
    "block_size 0": (
        lambda: softjax.entropy(softjax.distances(x, w.T, block_size=0)),
        ValueError,
        "`block_size` must be positive, got 0",
    ),
    "block_size no integer": (
        lambda: softjax.entropy(softjax.distances(x, w.T, block_size=2.5)),
        TypeError,
        "`block_size` must be a positive integer or None, got 2.5",
    ),
    "no soft labels": (lambda: softjax.softmax_cross_entropy(LOGITS, None), TypeError, "`labels` must be an array"),
    "no x": (lambda: mixture(x=None), TypeError, "`x` must be an array or a number .*, got NoneType"),
    "a number too large": (lambda: softjax.softmax(2**70), TypeError, "`x` must be an array or a number .*, got int"),
    "complex z": (lambda: mixture(z=MIX["z"].astype(complex)), TypeError, "`z` must be real numbers"),
}
LINEAR = {
    "features of another D": (
        lambda: ce(x, w.T, y),
        ValueError,
        r"`features` must have shape \[..., 5\] for the kernel \(5, 3\), got \(4, 3\)",
    ),
    "a kernel of 8 bits": (
        lambda: ce(x, w.astype(jnp.int8), y),
        TypeError,
        r"`kernel` must be floating-point numbers, got int8: multiply it by its scales first\.",
    ),
    "a kernel of rank 1": (lambda: ce(x, w[0], y), ValueError, r"`kernel` must have shape \[D, K\]"),
    "a kernel without classes": (
        lambda: ce(x, w[:, :0], y),
        ValueError,
        r"`kernel` must have shape .* at least one class",
    ),
    "a class axis of 2": (lambda: ce(x, w, y, class_axis=2), ValueError, r"`class_axis` must be 0 or -1, got 2"),
    "labels of fewer examples": (lambda: ce(x, w, y[:3]), ValueError, r"`labels` must have shape \(4,\)"),
    "labels of another type": (
        lambda: ce(x, w, y.astype(float)),
        TypeError,
        r"`labels` must be integers, got dtype float32",
    ),
    "a triple of labels": (lambda: ce(x, w, (y, y, y)), ValueError, r"`labels` must be integers or a pair"),
    "a pair of other shapes": (
        lambda: ce(x, w, (y[:, None], jnp.ones((4, 2)))),
        ValueError,
        r"`labels` must have shape \(4, 1\)",
    ),
    "a pair of rank 1 as labels": (lambda: ce(x, w, (y, jnp.ones(4))), ValueError, r"`labels` must have shape"),
    "a bias of another K": (lambda: ce(x, w, y, bias=jnp.ones(3)), ValueError, r"`bias` must have shape \(5,\)"),
    "a mask of numbers": (
        lambda: ce(x, w, y, where=jnp.ones(5)),
        TypeError,
        r"`where` must be booleans, got dtype float32",
    ),
    "a mask of another K": (
        lambda: ce(x, w, y, where=jnp.ones(3, bool)),
        ValueError,
        r"`where` must broadcast to the logits \(4, 5\), got shape \(3,\)",
    ),
    "weights of another N": (lambda: ce(x, w, y, weights=jnp.ones(5)), ValueError, r"`weights` must have shape \(4,\)"),
    "half an ignored label": (
        lambda: ce(x, w, y, ignore_index=0.5),
        TypeError,
        r"`ignore_index` must be an integer or None, got 0.5",
    ),
    "two smoothings": (
        lambda: ce(x, w, y, label_smoothing=jnp.ones(2)),
        ValueError,
        r"`label_smoothing` must be a scalar",
    ),
    "an object for a number": (
        lambda: ce(x, w, y, z_loss=object()),
        TypeError,
        r"`z_loss` must be an array or a number",
    ),
    "two softcaps": (
        lambda: H / jnp.ones(2),
        ValueError,
        r"`other` must broadcast to the logits \(4, 5\), got shape \(2,\)",
    ),
    "two temperatures": (
        lambda: softjax.contrastive_loss(x, x, temperature=jnp.ones(2)),
        ValueError,
        r"`temperature` must be a scalar",
    ),
    "an unknown reduction": (
        lambda: ce(x, w, y, reduction="avg"),
        ValueError,
        r"`reduction` must be 'none', 'sum' or 'mean', got 'avg'",
    ),
    "no class at a time": (lambda: ce(x, w, y, block_size=0), ValueError, r"`block_size` must be positive, got 0"),
    "half a class more at a time": (
        lambda: ce(x, w, y, block_size=1.5),
        TypeError,
        r"`block_size` must be a positive integer or None, got 1.5",
    ),
    "no example at a time": (
        lambda: ce(x, w, y, block_size=softjax.Placement(0, 1)),
        ValueError,
        r"`block_size` must be positive, got 0",
    ),
    "an unknown pass": (
        lambda: ce(x, w, y, block_size=softjax.Placement(1, 1, "never")),
        ValueError,
        r"`block_size` must take the gradient 'forward' or 'backward', got 'never'",
    ),
    "fewer than no class kept": (
        lambda: ce(x, w, y, block_size=softjax.Placement(1, 1, "forward", -1)),
        ValueError,
        r"`block_size` must keep 0 or more classes or None for all, got -1",
    ),
    "no memory for scores": (
        lambda: softjax.placement(1, 1, 1, memory=0),
        ValueError,
        r"`memory` must be positive, got 0",
    ),
    "values of rank 1 for a layer": (
        lambda: softjax.of(losses.expectation, H, None, jnp.ones(K)),
        ValueError,
        r"`class_values` of `Columns` must have shape \[5, E\] for the ids of 5 classes, got \(5,\)",
    ),
    "values of another K for a layer": (
        lambda: softjax.expectation(H, jnp.ones(3)),
        ValueError,
        r"`values` must be broadcastable to shape \(4, 5\) .* got \(3,\)",
    ),
    "vectors as values": (
        lambda: softjax.expectation(H, w.T),
        ValueError,
        r"`values` must be broadcastable to shape \(4, 5\) .*; vectors \[K, E\] go to `softjax.of`\), got \(5, 3\)",
    ),
    "values of other logits": (
        lambda: softjax.expectation(H, OF_FEWER),
        ValueError,
        r"`values` must have one shape, got \(4, 5\) and \(4, 4\)",
    ),
    "views of other shapes": (lambda: softjax.contrastive_loss(x, w), ValueError, r"`y` must have shape \(4, 3\)"),
    "a view of rank 1": (lambda: softjax.contrastive_loss(y, y), ValueError, r"`x` must have shape \[N, D\]"),
    "labels of another N": (
        lambda: softjax.of(softjax.losses.cross_entropy, H, y[:3]),
        ValueError,
        r"`example` must hold arrays whose shapes begin with \(4,\)",
    ),
    "payoffs of another K": (
        lambda: softjax.of(softjax.losses.expectation, H, None, x),
        ValueError,
        r"`per_class` must hold arrays whose shapes begin with \(5,\)",
    ),
    "a single logit": (
        lambda: softjax.of(softjax.losses.entropy, 1.0),
        ValueError,
        r"`logits` must have shape \[..., K\]",
    ),
    "latents of another D": (lambda: softjax.distances(x, w), ValueError, r"`z` must have shape"),
    "no examples": (lambda: softjax.placement(0, 1, 1), ValueError, r"`examples` must be positive, got 0"),
}
key, words = jax.random.key(0), jnp.zeros(3)
kl, js = softjax.kl_divergence, softjax.js_divergence
PAIR = y[:, None], jnp.ones((N, 1))
PAIRS = {
    "logits of other classes": (
        lambda: kl(OF_FEWER, H),
        ValueError,
        r"`p` must have the shape of `q`, \(4, 5\), got \(4, 4\)",
    ),
    "an array of other classes": (
        lambda: js(z[:, 1:], H),
        ValueError,
        r"`p` must have the shape of `q`, \(4, 5\), got \(4, 4\)",
    ),
    "a pair for the reverse divergence": (
        lambda: kl(H, PAIR),
        TypeError,
        "`q` must be an array or a number that JAX can hold, got tuple",
    ),
    "a pair as both": (lambda: js(PAIR, PAIR), TypeError, "`q` must be an array or a number .*, got tuple"),
    "a triple of probabilities": (
        lambda: kl((y, y, y), H),
        ValueError,
        r"`p` must be .* a pair \(indices, probabilities\), got 3 arrays",
    ),
    "probabilities of rank 1": (
        lambda: js((y, jnp.ones(N)), H),
        ValueError,
        r"`p` must have shape .* \(\[..., T\] for the leading axes of the logits\), got \(4,\)",
    ),
    "probabilities of more indices": (
        lambda: kl((y[:, None], jnp.ones((N, 2))), H),
        ValueError,
        r"`p` must have shape \(4, 1\) \(probabilities as indices\), got \(4, 2\)",
    ),
    "one probability": (
        lambda: kl((0, 1.0), H),
        ValueError,
        r"`p` must be a pair of arrays \[..., T\], got a single number",
    ),
    "indices that are no integers": (
        lambda: js((z, z), H),
        TypeError,
        "`p` must be integers, got dtype float32",
    ),
    "no p": (lambda: kl(None, H), TypeError, "`p` must be an array or a number .*, got NoneType"),
    "no q": (lambda: js(H, None), TypeError, "`q` must be an array or a number .*, got NoneType"),
    "booleans for p": (lambda: kl(z > 0, H), TypeError, "`p` must be real numbers of 16 bits or more, got dtype bool"),
    "numbers for p and q": (lambda: kl(1.0, 1.0), ValueError, r"`p` must have shape \[..., K\]"),
    "weights of other divergences": (
        lambda: js(H, H, weights=jnp.ones(3)),
        ValueError,
        r"`weights` must have shape \(4,\)",
    ),
    "an unknown reduction of a divergence": (
        lambda: kl(PAIR, H, reduction="avg"),
        ValueError,
        "`reduction` must be 'none', 'sum' or 'mean', got 'avg'",
    ),
    "a mask of other examples": (
        lambda: ce(x, w, y, where=z[1:] > 0),
        ValueError,
        r"`where` must broadcast to the logits \(4, 5\), got shape \(3, 5\)",
    ),
    "a function of ids that returns numbers": (
        lambda: ce(x, w, y, where=lambda i, k: i + k),
        ValueError,
        r"`where` must be a function of one example and one class that returns a boolean, got int32\[\]",
    ),
    "a function of ids of another shape": (
        lambda: ce(x, w, y, where=lambda i, k: jnp.ones(7, bool)),
        ValueError,
        r"`where` must be a function of one example and one class that returns a boolean, got bool\[7\]",
    ),
    "a function of ids for an array": (
        lambda: softjax.entropy(z, where=lambda i, k: i > k),
        TypeError,
        "`where` must be an array or a number .*, got function",
    ),
    "a mask of other views": (
        lambda: softjax.contrastive_loss(x, x, where=z > 0),
        ValueError,
        r"`where` must have shape \(4, 4\) \(\[N, N\] for the N of `x`\), got \(4, 5\)",
    ),
    "a mask of views on a mesh": (
        lambda: over_data(lambda x: softjax.contrastive_loss(x, x, where=jnp.ones((2, 2), bool), axis_name="data"))(x),
        ValueError,
        "`where` must be a function of ids where the examples are sharded, got an array",
    ),
    "labels of other views": (
        lambda: softjax.supervised_contrastive_loss(x, y[1:]),
        ValueError,
        r"`labels` must have shape \(4,\) \(\[N\] for the N of `x`\), got \(3,\)",
    ),
    "targets of other classes": (
        lambda: softjax.sigmoid_binary_cross_entropy(H, z[:, 1:]),
        ValueError,
        r"`labels` must have shape \(4, 5\) \(that of the logits\), got \(4, 4\)",
    ),
    "targets of a loss in place of logits": (
        lambda: softjax.of(losses.binary_cross_entropy, H, z),
        TypeError,
        "`example` must be integer labels for this loss, got dtype float32",
    ),
    "targets of a loss for other classes": (
        lambda: softjax.of(losses.binary_cross_entropy, (H, z[:, 1:])),
        ValueError,
        r"`logits` must have one shape, got \(4, 5\) and \(4, 4\)",
    ),
}
DECODING = {
    "a flag that is a number": (lambda: ce(x, w, y, has_aux=1), TypeError, "`has_aux` must be True or False, got 1"),
    "tokens of another N": (
        lambda: softjax.log_probs(H, y[:3]),
        ValueError,
        r"`ids` must have shape \(4,\) \(the leading axes of the logits\), got \(3,\)",
    ),
    "tokens that are no integers": (
        lambda: softjax.log_probs(z, jnp.ones(N)),
        TypeError,
        "`ids` must be integers, got dtype float32",
    ),
    "metrics of fewer labels": (lambda: softjax.metrics(H, y[:3]), ValueError, r"`labels` must have shape \(4,\)"),
    "an axis of logits that are not in memory": (
        lambda: softjax.entropy(H, axis=0),
        ValueError,
        "`axis` must be -1 for logits that are not in memory, got 0",
    ),
    "the softmax of logits that are not in memory": (
        lambda: softjax.softmax(H),
        TypeError,
        "`x` must be an array or a number that JAX can hold, got Logits",
    ),
    "more classes than there are": (
        lambda: softjax.top_k(H, 6),
        ValueError,
        "`k` must be at most the number of classes, 5, got 6",
    ),
    "no classes": (lambda: softjax.top_k(H, 0), ValueError, "`k` must be positive, got 0"),
    "numbers for a key": (
        lambda: softjax.sample(words, H),
        TypeError,
        r"`key` must be a key of `jax.random`, got float32\[3\]",
    ),
    "two keys": (
        lambda: softjax.sample(jax.random.split(key), H),
        ValueError,
        r"`key` must be one key, got an array of shape \(2,\)",
    ),
    "fewer than no samples": (
        lambda: softjax.sample(key, H, shape=(2, -1)),
        ValueError,
        r"`shape` must hold sizes of at least 0, got \(2, -1\)",
    ),
}
LOSSES = {
    "a cross entropy without labels": (
        lambda: softjax.of(no_weights, H),
        ValueError,
        "`C` needs `Columns` with `labels`, got none",
    ),
    "a pair of numbers": (
        lambda: ce(x, w, (0, 1.0)),
        ValueError,
        r"`labels` must be a pair of arrays \[..., T\], got a single number",
    ),
    "an embedding table of rank 1": (
        lambda: ce(x, w[0], y, class_axis=0),
        ValueError,
        r"`kernel` must have shape \[K, D\] with at least one class, got \(5,\)",
    ),
    "an entropy without its sum": (
        lambda: softjax.of(Loss(lambda z, *_: Columns(z), lambda q, _: q.H), H),
        ValueError,
        "`H` needs `Columns` with `entropies`, got none",
    ),
    "no number of examples": (
        lambda: softjax.placement(None, 1, 1),
        TypeError,
        "`examples` must be a positive integer, got None",
    ),
    "a number for a loss": (
        lambda: softjax.of(2.5, z),
        TypeError,
        r"`loss` must be a `softjax.Loss` or a tuple of these, got 2\.5",
    ),
    "a smoothing of what has no labels": (
        lambda: softjax.of(losses.label_smoothing(losses.entropy, 0.1, 0.2), z),
        ValueError,
        "`label_smoothing` must be given a loss whose columns have weights `labels`, got one without",
    ),
    "a flag that is none": (
        lambda: softjax.logsumexp(z, keepdims=jnp.ones(2)),
        TypeError,
        r"`keepdims` must be True or False, got float32\[2\]",
    ),
    "a type that is none": (
        lambda: softjax.placement(1, 1, 1, dtype="abc"),
        TypeError,
        "`dtype` must be a floating-point type, got 'abc'",
    ),
    "an unknown precision": (
        lambda: ce(x, w, y, precision="exact"),
        ValueError,
        r"`precision` must be one of \('default', 'high', 'highest'\), a `jax.lax.Precision` or None, got 'exact'",
    ),
    "a type of integers for products": (
        lambda: ce(x, w, y, dtype=jnp.int32),
        TypeError,
        "`dtype` must be a floating-point type, got",
    ),
    "a platform that is none": (
        lambda: softjax.placement(1, 1, 1, platform=3),
        TypeError,
        "`platform` must be the name of one or None, got 3",
    ),
    "a triple as labels": (
        lambda: softjax.of(losses.cross_entropy, z, (y, y, y)),
        ValueError,
        r"`example` must be labels or a pair \(classes, weights\) for this loss, got 3",
    ),
    "a pair of rank 1": (
        lambda: softjax.of(losses.cross_entropy, z, (y, jnp.ones(N))),
        ValueError,
        r"`example` must be a pair of shapes \[N, T\] .* got \(4,\) and \(4,\)",
    ),
    "no labels": (
        lambda: softjax.of(losses.cross_entropy, z),
        TypeError,
        r"`example` must be integer labels \[N\] for this loss, got None",
    ),
    "soft labels for integer labels": (
        lambda: softjax.of(losses.brier, z, z),
        ValueError,
        r"`example` must be labels \[N\], one each, for this loss, got shape \(4, 5\)",
    ),
    "labels that are no integers": (
        lambda: softjax.of(losses.cross_entropy, z, jnp.ones(N)),
        TypeError,
        "`example` must be integer labels for this loss, got dtype float32",
    ),
    "no payoffs": (
        lambda: softjax.of(losses.eol, z, z),
        TypeError,
        "`example` and `per_class` must be arrays for this loss, got None",
    ),
    "a hinge without the labels' logits": (
        lambda: softjax.of(losses.weston_watkins(), z, y),
        ValueError,
        r"`example` must be a pair of labels \[N\] and their logits \[N\] for this loss",
    ),
    "a hinge with other logits": (
        lambda: softjax.of(losses.weston_watkins(), z, (y, z)),
        ValueError,
        r"`example` must have a logit for each label for this loss, got shape \(4, 5\)",
    ),
    "data of another E": (
        lambda: softjax.of(losses.mixture_autoencoder, z, x, jnp.ones((K, 2))),
        ValueError,
        r"`example` must have shape \[N, E\] with the E of the classes for this loss, got \(4, 3\)",
    ),
    **{
        f"a {reduction} of several numbers per example, {place}": (
            lambda reduction=reduction, size=size: softjax.of(
                losses.expectation, softjax.linear(x, w, block_size=size), None, w.T, reduction=reduction
            ),
            ValueError,
            r"`reduction` must be 'none' for a loss of several numbers per example, got losses \(\d, 3\)",
        )
        for reduction, place, size in (
            ("sum", "whole", None),
            ("mean", "in blocks", 2),
            ("mean", "forward", softjax.Placement(2, 2, "forward")),
        )
    },
    **{
        f"{argument} of any number": (
            lambda function=function, shapes=shapes: jax.eval_shape(
                function, *(jax.ShapeDtypeStruct(shape, "float32") for shape in shapes)
            ),
            ValueError,
            rf"`{argument}` must hold a known number of classes, got the symbolic shape \(",
        )
        for argument, function, shapes in (
            ("kernel", lambda x, w: softjax.entropy(softjax.linear(x, w)), [(N, D), (D, MANY)]),
            ("centers", lambda z, c: softjax.entropy(softjax.distances(z, c)), [(N, D), (MANY, D)]),
            ("classes", lambda x, w: of_own(laplacian, x, w), [(N, D), (MANY, D)]),
            ("x", softjax.contrastive_loss, [(MANY, D), (MANY, D)]),
        )
    },
    "tiles of any number of examples": (
        lambda: jax.eval_shape(
            lambda x: softjax.entropy(softjax.linear(x, w, block_size=softjax.Placement(2, 2))),
            jax.ShapeDtypeStruct((MANY, D), "float32"),
        ),
        ValueError,
        "`block_size` must be an integer or None for a symbolic number of examples, got tile 2",
    ),
    "a prior of rank 2": (
        lambda: losses.label_smoothing(losses.cross_entropy, 0.1, z),
        ValueError,
        r"`prior` must be a scalar or have shape \[K\], got \(4, 5\)",
    ),
    "class weights of rank 2": (
        lambda: losses.class_weights(losses.cross_entropy, z),
        ValueError,
        r"`weights` must have shape \[K\], got \(4, 5\)",
    ),
    "half an example": (
        lambda: softjax.placement(2.5, 1, 1),
        TypeError,
        r"`examples` must be a positive integer, got 2\.5",
    ),
    "a function that makes a loss": (
        lambda: softjax.of(losses.focal, H),
        TypeError,
        "`loss` must be a `softjax.Loss` or a tuple of these, got .*focal",
    ),
    "class weights of a loss without labels": (
        lambda: softjax.of(losses.class_weights(losses.entropy, jnp.ones(K)), H),
        ValueError,
        "`class_weights` must be given a loss whose columns have weights",
    ),
    "weights of classes of rank 2": (
        lambda: softjax.of(losses.cross_entropy, z, y, jnp.ones((K, 2))),
        ValueError,
        r"`per_class` must be weights \[K\] for this loss, got an array of rank 2",
    ),
}


def over_data(function, **options):
    return jax.shard_map(function, mesh=cases.mesh(2, 4), in_specs=P("data"), out_specs=P("data"), **options)


OF_LOGITS = {
    "an engine that is none": (
        lambda: softjax.linear(x, w, engine="fast"),
        TypeError,
        "`engine` must be a `softjax.engines.Engine` or None, got 'fast'",
    ),
    "the type of engines for distances": (
        lambda: softjax.distances(x, w.T, engine=softjax.engines.Engine),
        TypeError,
        "`engine` must be a `softjax.engines.Engine` or None, got <class",
    ),
    "no function": (lambda: of_own(1), TypeError, "`function` must be a function, got 1"),
    "examples that are a number": (
        lambda: of_own(laplacian, 1.0),
        ValueError,
        r"`examples` must hold arrays \[N, ...\], got shapes",
    ),
    "examples of two numbers": (
        lambda: of_own(lambda x, y: laplacian(x[0], y), (x, x[:2])),
        ValueError,
        r"`examples` must hold arrays whose shapes begin with \(4,\) \(\[N\]\), got \(2, 3\)",
    ),
    "no classes of a function": (
        lambda: of_own(laplacian, classes=w.T[:0]),
        ValueError,
        "`classes` must hold at least one class",
    ),
    "a function that returns a vector": (
        lambda: of_own(lambda x, y: x),
        ValueError,
        r"`function` must be a function of one example and one class that returns a floating-point number, got float32",
    ),
    "a function that returns an integer": (
        lambda: of_own(lambda x, y: (x > y).sum()),
        ValueError,
        r"`function` must be a function of one example and one class that returns a floating-point number, got int32",
    ),
    "a bias of rank 2": (
        lambda: softjax.linear(x, w, jnp.ones((1, K))),
        ValueError,
        r"`bias` must have shape \(5,\) .* got \(1, 5\)",
    ),
    "a number that is complex": (
        lambda: softjax.entropy(H + jnp.ones(K, complex)),
        TypeError,
        "`other` must be real numbers",
    ),
    "an array of another shape": (
        lambda: jnp.ones(3) + H,
        ValueError,
        r"`other` must broadcast to the logits \(4, 5\), got shape \(3,\)",
    ),
    "text for a number": (lambda: H * "abc", TypeError, "`other` must be an array or a number .*, got str"),
    "other logits of another shape": (
        lambda: H + OF_FEWER,
        ValueError,
        r"`other` logits must have the shape \(4, 5\), got \(4, 4\)",
    ),
    "other logits of another block": (
        lambda: softjax.linear(x, w, block_size=2) - softjax.linear(x, w, block_size=3),
        ValueError,
        "`other` must have the block size 2, got 3",
    ),
    "other logits on a mesh": (
        lambda: placed(classes="classes") + H,
        ValueError,
        "`other` must be placed on the same mesh as the other logits",
    ),
    "a map that is no function": (lambda: H.map(2), TypeError, "`function` must be a function, got 2"),
    "a map to booleans": (
        lambda: H.map(lambda z: z > 0),
        ValueError,
        r"`function` must be .* that returns a floating-point number, got bool\[\]",
    ),
    "a map of all classes": (
        lambda: H.map(jax.nn.softmax),
        ValueError,
        "`function` must be a function of one example and one class",
    ),
    "a mask that is none": (lambda: H.where(None), TypeError, "`mask` must be an array or a number .*, got NoneType"),
    "a mask of floats": (lambda: H.where(jnp.ones(K)), TypeError, "`mask` must be booleans, got dtype float32"),
    "a mask of rank 3": (
        lambda: H.where(jnp.ones((1, N, K), bool)),
        ValueError,
        r"`mask` must broadcast to the logits \(4, 5\), got shape \(1, 4, 5\)",
    ),
    "a mask by a function of numbers": (
        lambda: H.where(lambda i, k: i + k),
        ValueError,
        r"`mask` must be a function of one example and one class that returns a boolean, got int32\[\]",
    ),
    "a mask by lists of floats": (lambda: H.where_ids(z), TypeError, "`ids` must be integers, got dtype float32"),
    "a mask by lists of other examples": (
        lambda: H.where_ids(jnp.zeros((3, 2), int)),
        ValueError,
        r"`ids` must have shape \(4, 2\) .* got \(3, 2\)",
    ),
    "logits of classes of other examples": (
        lambda: H.take(jnp.zeros((3, 2), int)),
        ValueError,
        r"`ids` must have shape \(4, 2\) .* got \(3, 2\)",
    ),
    "a shape with other classes": (
        lambda: H.reshape(5, 4),
        ValueError,
        r"`shape` must keep the last axis of \(4, 5\), got \(5, 4\)",
    ),
    "an axis name outside of a mesh": (
        lambda: softjax.linear(x, w, axis_name="i"),
        ValueError,
        "`axis_name` must name axes of the mesh of a `jax.shard_map`, got 'i'",
    ),
    "an axis name that is a number": (
        lambda: softjax.distances(x, w.T, axis_name=3),
        TypeError,
        "`axis_name` must be the name of a mesh axis, a tuple of such or None, got 3",
    ),
    "a kernel that all devices have": (
        lambda: over_data(lambda x: softjax.entropy(softjax.linear(x, w, axis_name="classes")))(x),
        ValueError,
        r"`kernel` must vary over the axes \('classes',\) of `axis_name`",
    ),
    "features that all devices have": (
        lambda: over_data(lambda _: softjax.entropy(softjax.linear(x, w, batch_axis_name="data")))(x),
        ValueError,
        r"`features` must vary over the axes \('data',\) of `batch_axis_name`",
    ),
    "a mesh without types": (
        lambda: over_data(lambda x: softjax.entropy(softjax.linear(x, w, batch_axis_name="data")), check_vma=False)(x),
        ValueError,
        "`batch_axis_name` must name axes of a `jax.shard_map` with check_vma=True, got 'data'",
    ),
}


def placed(**axes):
    return softjax.shard(H, cases.mesh(2, 4), **axes)


SHARD = {
    "an array to be sharded": (
        lambda: softjax.shard(z, cases.mesh(2, 4), classes="classes"),
        TypeError,
        r"`logits` must be `softjax.Logits`, got float32\[4, 5\]",
    ),
    "no axis": (placed, ValueError, "`examples` or `classes` must name an axis of the mesh, got None"),
    "no mesh": (
        lambda: softjax.shard(H, classes="classes"),
        ValueError,
        "`mesh` must be a mesh of devices, or set by `jax.set_mesh`, got None",
    ),
    "the name of a mesh": (
        lambda: softjax.shard(H, "classes", classes="classes"),
        ValueError,
        "`mesh` must be a mesh of devices, or set by `jax.set_mesh`, got 'classes'",
    ),
    **{
        f"{name} over an axis that is none": (
            lambda name=name: placed(**{name: "model"}),
            ValueError,
            rf"`{name}` must name axes of the mesh, \('data', 'classes'\), got 'model'",
        )
        for name in ("classes", "examples")
    },
    **{
        f"{name} over a number": (
            lambda name=name: placed(**{name: 3}),
            TypeError,
            f"`{name}` must be the name of a mesh axis, a tuple of such or None, got 3",
        )
        for name in ("classes", "examples")
    },
    "both over one axis": (
        lambda: placed(classes="data", examples="data"),
        ValueError,
        r"`examples` must name other axes than `classes`, got \('data',\) and \('data',\)",
    ),
    "an axis twice": (
        lambda: placed(classes=("data", "data")),
        ValueError,
        r"`classes` must not name an axis twice, got \('data', 'data'\)",
    ),
    "an axis of the map around": (
        lambda: over_data(lambda x: softjax.entropy(softjax.shard(softjax.linear(x, w), examples="data")))(x),
        ValueError,
        "`examples` must not name an axis of the `jax.shard_map` around, got 'data'",
    ),
    "logits of a device": (
        lambda: over_data(
            lambda x: softjax.shard(softjax.linear(x, w, batch_axis_name="data"), classes="classes").dense()
        )(x),
        ValueError,
        "`logits` must be of global arrays, got logits that are made with `axis_name`",
    ),
    "examples that the devices do not divide": (
        lambda: softjax.entropy(softjax.shard(H[:3], cases.mesh(2, 4), examples="data")),
        ValueError,
        r"`logits` must have leading axes that 2 devices of \('data',\) divide, got \(3, 5\)",
    ),
    "one example over devices": (
        lambda: softjax.entropy(softjax.shard(H[0], cases.mesh(2, 4), examples="data")),
        ValueError,
        r"`logits` must have leading axes to be sharded over \(\('data',\),\), got \(5,\)",
    ),
    "logits on two meshes": (
        lambda: kl(placed(classes="classes"), placed(examples="data")),
        ValueError,
        "`logits` must be sharded over the same mesh and axes",
    ),
    "weights of other examples on a mesh": (
        lambda: softjax.of(losses.cross_entropy, placed(examples="data"), y, weights=jnp.ones(3)),
        ValueError,
        r"`weights` must have a shape that begins with \(4,\), the leading axes of the logits, got \(3,\)",
    ),
    "labels of other examples on a mesh": (
        lambda: softjax.metrics(placed(examples="data"), y[:3]),
        ValueError,
        r"`labels` must have a shape that begins with \(4,\), the leading axes of the logits, got \(3,\)",
    ),
    "a mask of other classes on a mesh": (
        lambda: softjax.entropy(placed(classes="classes"), where=jnp.ones(3, bool)),
        ValueError,
        r"`where` must .* got .*\(3,\)",
    ),
    "labels that are no integers on a mesh": (
        lambda: softjax.log_probs(placed(classes="classes"), jnp.ones(N)),
        TypeError,
        "`ids` must be integers, got dtype float32",
    ),
    "payoffs of other classes on a mesh": (
        lambda: softjax.of(losses.expectation, placed(classes="classes"), None, x),
        ValueError,
        r"`per_class` must .* begin.* with \(\d,\).* got \(4, 3\)",
    ),
    "a number for a loss on a mesh": (
        lambda: softjax.of(2.5, placed(examples="data"), y),
        TypeError,
        r"`loss` must be a `softjax.Loss` or a tuple of these, got 2\.5",
    ),
}
LABELLED, BOTH = (losses.cross_entropy, losses.entropy), (y, None)
SEVERAL = {
    "no loss": (lambda: softjax.of((), z), TypeError, r"`loss` must be a `softjax.Loss` or a tuple of these, got \(\)"),
    "a number among losses": (
        lambda: softjax.of((losses.cross_entropy, 2.5), z, BOTH),
        TypeError,
        r"`loss` must be a `softjax.Loss`, got 2\.5",
    ),
    "one example of several losses": (
        lambda: softjax.of(LABELLED, z, y),
        ValueError,
        r"`example` must be a tuple of 2 parts, one of each loss, got int32\[4\]",
    ),
    "fewer examples than losses": (
        lambda: softjax.of(LABELLED, z, (y,)),
        ValueError,
        "`example` must be a tuple of 2 parts, one of each loss, got",
    ),
    "one class array of several losses": (
        lambda: softjax.of(LABELLED, z, BOTH, jnp.ones(K)),
        ValueError,
        r"`per_class` must be a tuple of 2 parts, one of each loss, got float32\[5\]",
    ),
    "factors of one loss": (
        lambda: softjax.of(losses.entropy, z, loss_weights=(1.0,)),
        ValueError,
        "`loss_weights` must be None for one loss",
    ),
    "fewer factors than losses": (
        lambda: softjax.of(LABELLED, z, BOTH, reduction="mean", loss_weights=(1.0,)),
        ValueError,
        r"`loss_weights` must be a tuple of 2 numbers, got \(1\.0,\)",
    ),
    "a factor of several losses": (
        lambda: softjax.of(LABELLED, z, BOTH, reduction="mean", loss_weights=0.5),
        ValueError,
        r"`loss_weights` must be a tuple of 2 numbers, got 0\.5",
    ),
    "factors without a reduction": (
        lambda: softjax.of(LABELLED, z, BOTH, loss_weights=(1.0, 1.0)),
        ValueError,
        "`reduction` must be 'sum' or 'mean' with `loss_weights`, got 'none'",
    ),
    "a factor for each example": (
        lambda: softjax.of(LABELLED, z, BOTH, reduction="mean", loss_weights=(1.0, jnp.ones(N))),
        ValueError,
        r"`loss_weights` must be a scalar, got shape \(4,\)",
    ),
    "factors that are text": (
        lambda: softjax.of(LABELLED, z, BOTH, reduction="mean", loss_weights=("one", "two")),
        TypeError,
        "`loss_weights` must be an array or a number .*, got str",
    ),
    **{
        f"a mean of vectors among losses, {name}": (
            lambda more=more: softjax.of(
                (losses.entropy, losses.expectation), z, None, (None, w.T), reduction="mean", **more
            ),
            ValueError,
            "`reduction` must be 'none' for a loss of several numbers per example, got losses",
        )
        for name, more in (("apart", {}), ("in a sum", {"loss_weights": (1.0, 1.0)}))
    },
    "logits of other shapes": (
        lambda: softjax.of(losses.kl_divergence, (H, OF_FEWER)),
        ValueError,
        r"`logits` must have one shape, got \(4, 5\) and \(4, 4\)",
    ),
    **{
        f"{count} logits for a loss of two": (
            lambda logits=logits: softjax.of(losses.kl_divergence, logits),
            ValueError,
            "`logits` must ",
        )
        for count, logits in (("no", ()), ("one", H), ("a tuple of one", (H,)), ("three", (H, H, H)))
    },
    **{
        f"two logits for {name}": (lambda loss=loss, y=y: softjax.of(loss, (H, H), y), ValueError, "`logits` must ")
        for name, loss, y in (("an entropy", losses.entropy, None), ("a Brier score", losses.brier, y))
    },
    "labels beside soft labels": (
        lambda: softjax.of(losses.cross_entropy, (H, z), y),
        ValueError,
        "`example` must be None",
    ),
    "a distribution for a loss of one label": (
        lambda: softjax.of(losses.focal(), z, (y[:, None], jnp.ones((4, 1)))),
        ValueError,
        r"`example` must be labels \[N\] for this loss",
    ),
    "labels that may be targets": (
        lambda: softjax.sigmoid_binary_cross_entropy(z, jnp.ones(z.shape, int)),
        ValueError,
        "`labels` of shape .* may be class ids or the targets of all classes",
    ),
    "a list of logits": (
        lambda: softjax.of(losses.kl_divergence, [H, H]),
        TypeError,
        "`logits` must be an array or a number .*, got list",
    ),
}


def out_of_range(name, wanted, *calls):
    """Python numbers; a traced one is not refused."""
    numbers = {"in [0, 1]": (-0.1, 1.5), "positive": (0, -2.0), "at least 0": (-1,)}[wanted]
    message = f"`{name}` must be {wanted}, got ".replace("[", r"\[")
    return {
        f"{name} of {number} in call {i}": (lambda call=call, number=number: call(number), ValueError, message)
        for i, call in enumerate(calls)
        for number in numbers
    }


NUMBERS = {
    **out_of_range(
        "label_smoothing",
        "in [0, 1]",
        lambda n: softjax.linear_softmax_cross_entropy(x, w, y, label_smoothing=n),
        lambda n: ce(x, w, y, label_smoothing=n),
        lambda n: softjax.softmax_cross_entropy_with_integer_labels(z, y, label_smoothing=n),
    ),
    **out_of_range(
        "temperature",
        "positive",
        lambda n: softjax.contrastive_loss(x, x, temperature=n),
        lambda n: softjax.nt_xent_loss(x, x, temperature=n),
        lambda n: softjax.supervised_contrastive_loss(x, y, temperature=n),
        lambda n: softjax.siglip_loss(x, x, temperature=n),
        lambda n: mixture(temperature=n),
        lambda n: softjax.eol_loss(**MIX, temperature=n),
        lambda n: softjax.leop_loss(**MIX, temperature=n),
        lambda n: softjax.soft_quantize(x, w.T, temperature=n),
    ),
    **out_of_range(
        "margin",
        "at least 0",
        lambda n: softjax.multiclass_svm_loss(z, y, margin=n),
        lambda n: softjax.multiclass_hinge_loss(H, y, margin=n),
        lambda n: losses.weston_watkins(n),
        lambda n: losses.crammer_singer(n),
    ),
    **out_of_range("gamma", "at least 0", losses.focal),
    **out_of_range("cap", "positive", lambda n: softjax.softcap(z, n)),
    **out_of_range(
        "rate",
        "in [0, 1]",
        lambda n: losses.label_smoothing(losses.cross_entropy, n, 0.2),
        lambda n: losses.label_smoothing(losses.cross_entropy, n),
    ),
}
REFUSALS = ARRAYS | LINEAR | PAIRS | DECODING | LOSSES | OF_LOGITS | SHARD | SEVERAL | NUMBERS
