"""Softmax-family losses for JAX: one derivative, any number of classes."""

from . import engines as engines
from . import losses as losses
from . import testing as testing
from ._contrastive import contrastive_loss as contrastive_loss
from ._contrastive import nt_xent_loss as nt_xent_loss
from ._contrastive import siglip_loss as siglip_loss
from ._contrastive import supervised_contrastive_loss as supervised_contrastive_loss
from ._cross_entropies import linear_softmax_cross_entropy as linear_softmax_cross_entropy
from ._cross_entropies import sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy
from ._cross_entropies import softmax_cross_entropy as softmax_cross_entropy
from ._cross_entropies import softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels
from ._decoding import TopK as TopK
from ._decoding import argmax as argmax
from ._decoding import sample as sample
from ._decoding import top_k as top_k
from ._dense import log_softmax as log_softmax
from ._dense import softargmax as softargmax
from ._dense import softmax as softmax
from ._divergences import js_divergence as js_divergence
from ._divergences import kl_divergence as kl_divergence
from ._hinges import multiclass_hinge_loss as multiclass_hinge_loss
from ._hinges import multiclass_svm_loss as multiclass_svm_loss
from ._labelled import Metrics as Metrics
from ._mixtures import Quantized as Quantized
from ._mixtures import eol_loss as eol_loss
from ._mixtures import gaussian_mixture_nll_loss as gaussian_mixture_nll_loss
from ._mixtures import leop_loss as leop_loss
from ._mixtures import mixture_autoencoder_loss as mixture_autoencoder_loss
from ._mixtures import soft_quantize as soft_quantize
from ._of import of as of
from ._statistics import entropy as entropy
from ._statistics import expectation as expectation
from ._statistics import log_probs as log_probs
from ._statistics import logsumexp as logsumexp
from ._statistics import metrics as metrics
from .compute.placement import Placement as Placement
from .compute.placement import placement as placement
from .logits import Logits as Logits
from .logits import distances as distances
from .logits import linear as linear
from .logits import pairwise as pairwise
from .logits import shard as shard
from .logits import softcap as softcap
from .losses import Loss as Loss
from .sums.columns import Columns as Columns
from .sums.columns import Weights as Weights
from .sums.pair import Pair as Pair
from .sums.sums import Totals as Totals

__version__ = "0.2.0"
__all__ = sorted(name for name, value in vars().items() if callable(value))
