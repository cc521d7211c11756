"""What is refused, and in which words: each sentence names the argument, what came and what was wanted."""

import jax
import jax.numpy as jnp
import pytest

import softjax

Z = jnp.zeros((2, 3))
Y = jnp.array([0, 1])
MIX = {"z": jnp.zeros((4, 2)), "x": jnp.zeros((4, 5)), "centers": jnp.zeros((3, 2)), "values": jnp.zeros((3, 5))}


def mixture(**changes):
    return softjax.mixture_autoencoder_loss(**{**MIX, **changes})


REFUSALS = {
    "axis out of range": (
        lambda: softjax.softmax(Z, 2),
        ValueError,
        r"`axis` must lie in \[-2, 2\) for an array of rank 2, got 2",
    ),
    "axis named twice": (lambda: softjax.softmax(Z, (1, -1)), ValueError, r"`axis` must not name an axis twice"),
    "axis no integer": (lambda: softjax.softmax(Z, 1.0), TypeError, r"`axis` must be an integer, .* got 1.0"),
    "axis of a scalar": (
        lambda: softjax.softmax(1.0),
        ValueError,
        "`axis` must name an axis of the array, got -1 for a single number",
    ),
    "no class": (lambda: softjax.softmax(jnp.zeros((2, 0))), ValueError, r"at least one class, got shape \(2, 0\)"),
    "complex logits": (
        lambda: softjax.softmax(Z.astype(complex)),
        TypeError,
        "`x` must be real numbers of 16 bits or more, got dtype complex64",
    ),
    "boolean logits": (
        lambda: softjax.softmax(Z == 0),
        TypeError,
        "`x` must be real numbers of 16 bits or more, got dtype bool",
    ),
    "no logits": (lambda: softjax.entropy(None), TypeError, "`logits` must be an array or a number .*, got NoneType"),
    "text for logits": (lambda: softjax.logsumexp("abc"), TypeError, "`a` must be an array or a number .*, got str"),
    "where of another shape": (
        lambda: softjax.softmax(Z, where=jnp.ones(4, bool)),
        ValueError,
        r"`where` must be broadcastable to shape \(2, 3\) \(that of the logits\), got \(4,\)",
    ),
    "where of a higher rank": (
        lambda: softjax.softmax(Z, where=jnp.ones((1, 2, 3), bool)),
        ValueError,
        r"`where` must be broadcastable to shape \(2, 3\)",
    ),
    "where of numbers": (
        lambda: softjax.softmax(Z, where=jnp.ones(3)),
        TypeError,
        "`where` must be booleans, got dtype float32",
    ),
    "values of another shape": (
        lambda: softjax.expectation(Z, jnp.zeros(4)),
        ValueError,
        r"`values` must be broadcastable against `logits`, got shapes \(4,\) and \(2, 3\)",
    ),
    "complex values": (lambda: softjax.expectation(Z, Z.astype(complex)), TypeError, "`values` must be real numbers"),
    "soft labels of another shape": (
        lambda: softjax.softmax_cross_entropy(Z, jnp.zeros((2, 4))),
        ValueError,
        r"`labels` must be broadcastable to shape \(2, 3\) \(that of the logits\), got \(2, 4\)",
    ),
    "labels of another shape": (
        lambda: softjax.softmax_cross_entropy_with_integer_labels(Z, jnp.zeros(3, int)),
        ValueError,
        r"`labels` must have shape \(2,\) \(that of the logits less `axis`\), got \(3,\)",
    ),
    "labels of numbers": (
        lambda: softjax.softmax_cross_entropy_with_integer_labels(Z, jnp.zeros(2)),
        TypeError,
        "`labels` must be integers, got dtype float32",
    ),
    "where per example of another shape": (
        lambda: softjax.softmax_cross_entropy_with_integer_labels(Z, Y, where=jnp.ones(4, bool)),
        ValueError,
        r"`where` must be broadcastable to shape \(2, 3\) .* got \(4,\)",
    ),
    "scores without classes": (
        lambda: softjax.multiclass_svm_loss(jnp.zeros(()), jnp.array(0)),
        ValueError,
        r"`scores` must have shape \[..., K\] with at least one class, got \(\)",
    ),
    "labels of scores": (
        lambda: softjax.multiclass_hinge_loss(Z, jnp.array(0)),
        ValueError,
        r"`labels` must have shape \(2,\) \(that of `scores` less its last axis\), got \(\)",
    ),
    "margins": (
        lambda: softjax.multiclass_svm_loss(Z, Y, margin=jnp.ones(2)),
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
    "where of another K": (
        lambda: mixture(where=jnp.ones((4, 3), bool)),
        ValueError,
        r"`where` must have shape \(3,\) \(\[K\] for the K of `centers`\), got \(4, 3\)",
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
    "no soft labels": (lambda: softjax.softmax_cross_entropy(Z, None), TypeError, "`labels` must be an array"),
    "no x": (lambda: mixture(x=None), TypeError, "`x` must be an array or a number .*, got NoneType"),
    "a number too large": (lambda: softjax.softmax(2**70), TypeError, "`x` must be an array or a number .*, got int"),
    "complex z": (lambda: mixture(z=MIX["z"].astype(complex)), TypeError, "`z` must be real numbers"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_bad_input_is_refused_in_words(name):
    call, error, message = REFUSALS[name]
    with pytest.raises(error, match=message) as refusal:
        call()
    sentence = str(refusal.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_bad_input_is_refused_while_tracing():
    with pytest.raises(ValueError, match="`labels` must have shape"):
        jax.jit(softjax.softmax_cross_entropy_with_integer_labels).lower(Z, jnp.zeros(3, int))


def test_arguments_may_be_lists_and_numbers():
    assert softjax.softmax([0.0, 0.0]).tolist() == [0.5, 0.5]
    assert softjax.logsumexp(3.0) == 3.0
    assert softjax.multiclass_svm_loss([[1, 3, 0]], [0], margin=1).tolist() == [3.0]
