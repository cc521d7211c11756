"""Losses, each in a few lines: payoffs and other terms per class, and a finish of their sums.

Give one to `softjax.of`; combinators turn a loss into another. A loss sees logits, but not how they are computed or
which device has which class. The numbers and arrays of a loss, such as the rate of a smoothing, have gradients: they
are in a `jax.tree_util.Partial` with the function that uses them.
"""

from ..sums.columns import CONSTANT_ENTROPY as CONSTANT_ENTROPY
from ..sums.columns import ENTROPY as ENTROPY
from .combinators import class_weights as class_weights
from .combinators import label_smoothing as label_smoothing
from .combinators import margin as margin
from .combinators import z_loss as z_loss
from .divergences import kl_divergence as kl_divergence
from .expectations import entropy as entropy
from .expectations import eol as eol
from .expectations import expectation as expectation
from .expectations import expectation_of_pairs as expectation_of_pairs
from .expectations import gaussian_mixture as gaussian_mixture
from .expectations import leop as leop
from .expectations import logsumexp as logsumexp
from .expectations import mixture_autoencoder as mixture_autoencoder
from .expectations import weighted_logsumexp as weighted_logsumexp
from .labelled import binary_cross_entropy as binary_cross_entropy
from .labelled import brier as brier
from .labelled import crammer_singer as crammer_singer
from .labelled import cross_entropy as cross_entropy
from .labelled import focal as focal
from .labelled import poly_1 as poly_1
from .labelled import weston_watkins as weston_watkins
from .loss import Loss as Loss
