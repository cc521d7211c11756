"""Each refusal names the argument, the value that came and the value wanted."""

import jax
import jax.numpy as jnp
import pytest

import softjax
from softjax import losses

from .refusals import LABELS, LOGITS, NUMBERS, REFUSALS, ce, w, x, y


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
        jax.jit(softjax.softmax_cross_entropy_with_integer_labels).lower(LOGITS, jnp.zeros(3, int))


def test_arguments_may_be_lists_and_numbers():
    assert softjax.softmax([0.0, 0.0]).tolist() == [0.5, 0.5]
    assert softjax.logsumexp(3.0) == 3.0
    assert softjax.multiclass_svm_loss([[1, 3, 0]], [0], margin=1).tolist() == [3.0]


def test_numbers_out_of_range_are_refused_unless_they_are_traced():
    """Their values are then not known."""
    assert len(NUMBERS) == 33
    loss = lambda smoothing, rate: ce(x, w, y, label_smoothing=smoothing)
    assert jax.eval_shape(loss, 1.5, -1.0).shape == y.shape
    of_loss = lambda margin, rate: softjax.of(
        losses.label_smoothing(losses.margin(losses.cross_entropy, margin), rate, 0.5), LOGITS, LABELS
    )
    assert jax.eval_shape(of_loss, -1.0, 2.0).shape == LABELS.shape
