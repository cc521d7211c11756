"""The table of refused arguments: a call, its error, and a pattern of its message."""

import jax
import jax.numpy as jnp

import softjax
from softjax import Columns, Loss, losses, scores

N, K, D = 4, 5, 3
(MANY,) = jax.export.symbolic_shape("n")
LOGITS = jnp.zeros((2, 3))
LABELS = jnp.array([0, 1])
MIX = {"z": jnp.zeros((4, 2)), "x": jnp.zeros((4, 5)), "centers": jnp.zeros((3, 2)), "values": jnp.zeros((3, 5))}
x, w, y, z = jnp.ones((N, D)), jnp.ones((D, K)), jnp.zeros(N, int), jnp.ones((N, K))
no_weights = Loss(lambda z, ids, _, __: Columns(z), lambda q, _: q.C)
ce = softjax.linear_softmax_cross_entropy


def mixture(**changes):
    return softjax.mixture_autoencoder_loss(**{**MIX, **changes})


def of_own(function, examples=x, classes=w.T):
    return softjax.of(losses.entropy, scores.of(function, examples, classes))


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
        r"`scores` must have shape \[..., K\] with at least one class, got \(\)",
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
        r"`where` must have shape \(3,\) \(\[K\] for the K of `centers`\), got \(4,\)",
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
    "block_size 0": (lambda: mixture(block_size=0), ValueError, "`block_size` must be positive, got 0"),
    "block_size no integer": (
        lambda: mixture(block_size=2.5),
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
        r"`features` must have shape \(4, 5\) .* got \(4, 3\)",
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
        r"`where` must have shape \(5,\)",
    ),
    "weights of another N": (lambda: ce(x, w, y, weights=jnp.ones(5)), ValueError, r"`weights` must have shape \(4,\)"),
    "class weights of another K": (
        lambda: ce(x, w, y, class_weights=jnp.ones(4)),
        ValueError,
        r"`class_weights` must have shape \(5,\)",
    ),
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
    "two softcaps": (lambda: ce(x, w, y, softcap=jnp.ones(2)), ValueError, r"`softcap` must be a scalar"),
    "two temperatures": (lambda: ce(x, w, y, temperature=jnp.ones(2)), ValueError, r"`temperature` must be a scalar"),
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
        lambda: softjax.linear_expectation(x, w, y),
        ValueError,
        r"`values` must have shape \[K, E\]",
    ),
    "values of another K for a layer": (
        lambda: softjax.linear_expectation(x, w, x),
        ValueError,
        r"`values` must have shape \(5, 3\)",
    ),
    "views of other shapes": (lambda: softjax.contrastive_loss(x, w), ValueError, r"`y` must have shape \(4, 3\)"),
    "a view of rank 1": (lambda: softjax.contrastive_loss(y, y), ValueError, r"`x` must have shape \[N, D\]"),
    "labels of another N": (
        lambda: softjax.of_linear(softjax.losses.cross_entropy, x, w, y[:3]),
        ValueError,
        r"`example` must hold arrays whose shapes begin with \(4,\)",
    ),
    "payoffs of another K": (
        lambda: softjax.of_linear(softjax.losses.expectation, x, w, None, x),
        ValueError,
        r"`per_class` must hold arrays whose shapes begin with \(5,\)",
    ),
    "a single logit": (
        lambda: softjax.of_logits(softjax.losses.entropy, 1.0),
        ValueError,
        r"`logits` must have shape \[..., K\]",
    ),
    "latents of another D": (
        lambda: softjax.of_mixture(softjax.losses.entropy, x, w),
        ValueError,
        r"`z` must have shape",
    ),
    "no examples": (lambda: softjax.placement(0, 1, 1), ValueError, r"`examples` must be positive, got 0"),
}
key, words = jax.random.key(0), jnp.zeros(3)
distilled = softjax.linear_distillation_loss
PAIRS = {
    "a kernel [K, D] without its class axis": (
        lambda: ce(x, w.T, y),
        ValueError,
        r"for the D of `kernel`; its classes are on the other axis with another `class_axis`\), got \(4, 3\)",
    ),
    "a divergence of another name": (
        lambda: distilled(x, w, teacher_probs=z, divergence="backward"),
        ValueError,
        r"`divergence` must be one of \('forward', 'reverse', 'jensen_shannon'\), got 'backward'",
    ),
    "no teacher": (lambda: distilled(x, w), ValueError, "`teacher_probs`, or `teacher_features` and `teacher_kernel`"),
    "two teachers": (
        lambda: distilled(x, w, teacher_probs=z, teacher_features=x, teacher_kernel=w),
        ValueError,
        "`teacher_probs`, or `teacher_features` and `teacher_kernel`, must be given, and not both",
    ),
    "half a teacher": (
        lambda: distilled(x, w, teacher_kernel=w),
        ValueError,
        "`teacher_probs`, or `teacher_features` and `teacher_kernel`, must be given",
    ),
    "a teacher of other classes": (
        lambda: distilled(x, w, teacher_features=x, teacher_kernel=w[:, 1:]),
        ValueError,
        r"`teacher_features` and `teacher_kernel` must have the leading axes \(4,\) and the 5 classes of the student",
    ),
    "probabilities of other classes": (
        lambda: distilled(x, w, teacher_probs=z[:, 1:]),
        ValueError,
        r"`teacher_probs` must have shape \(4, 5\) \(\[..., K\] for the K of `kernel`\), got \(4, 4\)",
    ),
    "a pair for the reverse divergence": (
        lambda: distilled(x, w, teacher_probs=(y[:, None], jnp.ones((N, 1))), divergence="reverse"),
        ValueError,
        "`divergence` must be 'forward' or 'jensen_shannon' for a pair, got 'reverse'",
    ),
    "smoothing under a mask of examples": (
        lambda: ce(x, w, y, where=z > 0, label_smoothing=0.1),
        ValueError,
        "`label_smoothing` must be 0 where `where` differs between examples",
    ),
    "a mask of other examples": (
        lambda: ce(x, w, y, where=z[1:] > 0),
        ValueError,
        r"`where` must have shape \(4, 5\) \(\[K\], or \[..., K\] with the leading axes of the examples\), got \(3,",
    ),
    "a function of ids that returns numbers": (
        lambda: ce(x, w, y, where=lambda i, k: i + k),
        TypeError,
        "`where` must be booleans, got dtype int32",
    ),
    "a function of ids of another shape": (
        lambda: ce(x, w, y, where=lambda i, k: jnp.ones(7, bool)),
        ValueError,
        r"`where` must be broadcastable to shape \(4, 5\) \(that of a tile of examples and a block of classes\)",
    ),
    "a mask of other views": (
        lambda: softjax.contrastive_loss(x, x, where=z > 0),
        ValueError,
        r"`where` must have shape \(4, 4\) \(\[N, N\] for the N of `x`\), got \(4, 5\)",
    ),
    "a mask of views on a mesh": (
        lambda: softjax.sharded.contrastive_loss(
            x, x, where=jnp.ones((4, 4), bool), mesh=jax.make_mesh((2,), ("data",)), batch_axis_name="data"
        ),
        ValueError,
        "`where` must be a function of ids where the examples are sharded, got an array",
    ),
    "labels of other views": (
        lambda: softjax.supervised_contrastive_loss(x, y[1:]),
        ValueError,
        r"`labels` must have shape \(4,\) \(\[N\] for the N of `x`\), got \(3,\)",
    ),
    "targets of other classes": (
        lambda: softjax.linear_sigmoid_binary_cross_entropy(x, w, z[:, 1:]),
        ValueError,
        r"`labels` must have shape \(4, 5\) \(\[..., K\] for the K of `kernel`\), got \(4, 4\)",
    ),
    "targets of a loss in place of blocks of them": (
        lambda: softjax.of_linear(losses.binary_cross_entropy, x, w, z, block_size=2),
        ValueError,
        r"`example` of `Columns` must have shape \[N, K\] of targets for this loss, got \(4, 5\)",
    ),
    "data of each example and class of other classes": (
        lambda: softjax.of_linear(losses.binary_cross_entropy, x, w, softjax.PerPair(z[:, 1:])),
        ValueError,
        r"`example` must have shape \(4, 5\) \(`PerPair` of \[N, K\] for the K of `kernel`\), got \(4, 4\)",
    ),
}
DECODING = {
    "a flag that is a number": (lambda: ce(x, w, y, has_aux=1), TypeError, "`has_aux` must be True or False, got 1"),
    "tokens of another N": (
        lambda: softjax.linear_log_probs(x, w, y[:3]),
        ValueError,
        r"`tokens` must have shape \(4,\) \(the leading axes of `features`\), got \(3,\)",
    ),
    "more classes than there are": (
        lambda: softjax.linear_top_k(x, w, 6),
        ValueError,
        "`k` must be at most the number of classes, 5, got 6",
    ),
    "no classes": (lambda: softjax.linear_top_k(x, w, 0), ValueError, "`k` must be positive, got 0"),
    "numbers for a key": (
        lambda: softjax.linear_sample(words, x, w),
        TypeError,
        r"`key` must be a key of `jax.random`, got float32\[3\]",
    ),
    "two keys": (
        lambda: softjax.linear_sample(jax.random.split(key), x, w),
        ValueError,
        r"`key` must be one key, got an array of shape \(2,\)",
    ),
    "fewer than no samples": (
        lambda: softjax.linear_sample(key, x, w, shape=(2, -1)),
        ValueError,
        r"`shape` must hold sizes of at least 0, got \(2, -1\)",
    ),
}
LOSSES = {
    "a cross entropy without labels": (
        lambda: softjax.of_linear(no_weights, x, w),
        ValueError,
        "`C` needs `Columns` with weights `y`, got none",
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
    "values of rank 1": (
        lambda: softjax.mixture_expectation(x, w.T, jnp.ones(K)),
        ValueError,
        r"`values` must have shape \[K, E\], got \(5,\)",
    ),
    "no number of examples": (
        lambda: softjax.placement(None, 1, 1),
        TypeError,
        "`examples` must be a positive integer, got None",
    ),
    "a number for a loss": (
        lambda: softjax.of_logits(2.5, z),
        TypeError,
        r"`loss` must be a `softjax.Loss`, got 2\.5",
    ),
    "a smoothing of what has no labels": (
        lambda: softjax.of_logits(losses.label_smoothing(losses.entropy, 0.1, 0.2), z),
        ValueError,
        "`label_smoothing` must be given a loss whose columns have weights `y`, got one without",
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
        lambda: softjax.of_logits(losses.cross_entropy, z, (y, y, y)),
        ValueError,
        r"`example` must be labels or a pair \(classes, weights\) for this loss, got 3",
    ),
    "a pair of rank 1": (
        lambda: softjax.of_logits(losses.cross_entropy, z, (y, jnp.ones(N))),
        ValueError,
        r"`example` must be a pair of shapes \[N, T\] .* got \(4,\) and \(4,\)",
    ),
    "no labels": (
        lambda: softjax.of_logits(losses.cross_entropy, z),
        TypeError,
        r"`example` must be integer labels \[N\] for this loss, got None",
    ),
    "soft labels for integer labels": (
        lambda: softjax.of_logits(losses.brier, z, z),
        ValueError,
        r"`example` must be labels \[N\], one each, for this loss, got shape \(4, 5\)",
    ),
    "labels that are no integers": (
        lambda: softjax.of_logits(losses.cross_entropy, z, jnp.ones(N)),
        TypeError,
        "`example` must be integer labels for this loss, got dtype float32",
    ),
    "no payoffs": (
        lambda: softjax.of_logits(losses.eol, z, z),
        TypeError,
        "`example` and `per_class` must be arrays for this loss, got None",
    ),
    "a hinge without the labels' logits": (
        lambda: softjax.of_logits(losses.weston_watkins(), z, y),
        ValueError,
        r"`example` must be a pair of labels \[N\] and their logits \[N\] for this loss",
    ),
    "a hinge with other logits": (
        lambda: softjax.of_logits(losses.weston_watkins(), z, (y, z)),
        ValueError,
        r"`example` must have a logit for each label for this loss, got shape \(4, 5\)",
    ),
    "data of another E": (
        lambda: softjax.of_logits(losses.mixture_autoencoder, z, x, jnp.ones((K, 2))),
        ValueError,
        r"`example` must have shape \[N, E\] with the E of the classes for this loss, got \(4, 3\)",
    ),
    **{
        f"a {reduction} of several numbers per example, {place}": (
            lambda reduction=reduction, size=size: softjax.of_linear(
                losses.expectation, x, w, None, w.T, reduction=reduction, block_size=size
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
            ("kernel", softjax.linear_logsumexp, [(N, D), (D, MANY)]),
            ("centers", softjax.mixture_expectation, [(N, D), (MANY, D), (MANY, 2)]),
            ("classes", lambda x, w: of_own(lambda a, b: a @ b.T, x, w), [(N, D), (MANY, D)]),
            ("x", softjax.contrastive_loss, [(MANY, D), (MANY, D)]),
        )
    },
    "tiles of any number of examples": (
        lambda: jax.eval_shape(
            lambda x: softjax.linear_logsumexp(x, w, block_size=softjax.Placement(2, 2)),
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
        lambda: softjax.of_linear(losses.focal, x, w),
        TypeError,
        "`loss` must be a `softjax.Loss`, got focal",
    ),
    "class weights of a loss without labels": (
        lambda: softjax.of_linear(losses.class_weights(losses.entropy, jnp.ones(K)), x, w),
        ValueError,
        "`class_weights` must be given a loss whose columns have weights",
    ),
    "weights of classes of rank 2": (
        lambda: softjax.of_logits(losses.cross_entropy, z, y, jnp.ones((K, 2))),
        ValueError,
        r"`per_class` must be weights \[K\] for this loss, got an array of rank 2",
    ),
}
SCORES = {
    "logits for scores": (
        lambda: softjax.of(losses.entropy, z),
        TypeError,
        r"`scores` must be made by a function of `softjax.scores`, got float32\[4, 5\]",
    ),
    "an engine that is none": (
        lambda: softjax.of(losses.entropy, scores.dense(z), engine="fast"),
        TypeError,
        "`engine` must be a .*, got 'fast'",
    ),
    "no function": (lambda: of_own(1), TypeError, "`function` must be a function of examples and classes, got 1"),
    "examples that are a number": (
        lambda: of_own(lambda x, y: x @ y.T, 1.0),
        ValueError,
        r"`examples` must hold arrays \[N, ...\], got shapes",
    ),
    "no classes": (
        lambda: of_own(lambda x, y: x @ y.T, classes=w.T[:0]),
        ValueError,
        "`classes` must hold at least one class",
    ),
    "scores of another shape": (
        lambda: of_own(lambda x, y: x),
        ValueError,
        r"`function` must return floating-point scores of shape \(4, 5\) for 4 examples and 5 classes, got",
    ),
    "dense logits that all devices have": (
        lambda: jax.shard_map(
            lambda z: softjax.of(losses.entropy, scores.dense(z, batch_axis_name="i")),
            mesh=jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,)),
            in_specs=jax.sharding.PartitionSpec(),
            out_specs=jax.sharding.PartitionSpec("i"),
        )(z),
        ValueError,
        r"`logits` must vary over the axes \('i',\) of `batch_axis_name`",
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
    **out_of_range("label_smoothing", "in [0, 1]", lambda n: ce(x, w, y, label_smoothing=n)),
    **out_of_range(
        "temperature",
        "positive",
        lambda n: ce(x, w, y, temperature=n),
        lambda n: softjax.linear_logsumexp(x, w, temperature=n),
        lambda n: softjax.linear_log_probs(x, w, y, temperature=n),
        lambda n: softjax.linear_top_k(x, w, 2, temperature=n),
        lambda n: softjax.linear_sample(key, x, w, temperature=n),
        lambda n: softjax.linear_expectation(x, w, w.T, temperature=n),
        lambda n: softjax.contrastive_loss(x, x, temperature=n),
        lambda n: mixture(temperature=n),
        lambda n: scores.distances(x, w.T, temperature=n),
        lambda n: losses.temperature(losses.entropy, n),
    ),
    **out_of_range(
        "softcap", "positive", lambda n: ce(x, w, y, softcap=n), lambda n: softjax.linear_logsumexp(x, w, softcap=n)
    ),
    **out_of_range("cap", "positive", lambda n: losses.softcap(losses.entropy, n)),
    **out_of_range(
        "margin",
        "at least 0",
        lambda n: softjax.multiclass_svm_loss(z, y, margin=n),
        lambda n: softjax.multiclass_hinge_loss(z, y, margin=n),
        lambda n: losses.weston_watkins(n),
        lambda n: losses.crammer_singer(n),
    ),
    **out_of_range("gamma", "at least 0", losses.focal),
    **out_of_range("rate", "in [0, 1]", lambda n: losses.label_smoothing(losses.cross_entropy, n, 0.2)),
}
REFUSALS = ARRAYS | LINEAR | PAIRS | DECODING | LOSSES | SCORES | NUMBERS
