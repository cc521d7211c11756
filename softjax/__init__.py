"""Softmax-family losses for JAX: one derivative, any number of classes."""

from . import engines as engines
from . import losses as losses
from . import scores as scores
from . import sharded as sharded
from . import testing as testing
from ._contrastive import contrastive_loss as contrastive_loss
from ._contrastive import nt_xent_loss as nt_xent_loss
from ._contrastive import siglip_loss as siglip_loss
from ._contrastive import supervised_contrastive_loss as supervised_contrastive_loss
from ._decoding import TopK as TopK
from ._decoding import linear_argmax as linear_argmax
from ._decoding import linear_sample as linear_sample
from ._decoding import linear_top_k as linear_top_k
from ._distillation import linear_distillation_loss as linear_distillation_loss
from ._dtypes import PerPair as PerPair
from ._evaluate import of as of
from ._gibbs import Columns as Columns
from ._gibbs import Totals as Totals
from ._gibbs import Weights as Weights
from ._linear import Metrics as Metrics
from ._linear import linear_expectation as linear_expectation
from ._linear import linear_log_probs as linear_log_probs
from ._linear import linear_logsumexp as linear_logsumexp
from ._linear import linear_sigmoid_binary_cross_entropy as linear_sigmoid_binary_cross_entropy
from ._linear import linear_softmax_cross_entropy as linear_softmax_cross_entropy
from ._linear import of_linear as of_linear
from ._logits import entropy as entropy
from ._logits import expectation as expectation
from ._logits import log_softmax as log_softmax
from ._logits import logsumexp as logsumexp
from ._logits import multiclass_hinge_loss as multiclass_hinge_loss
from ._logits import multiclass_svm_loss as multiclass_svm_loss
from ._logits import of_logits as of_logits
from ._logits import softargmax as softargmax
from ._logits import softmax as softmax
from ._logits import softmax_cross_entropy as softmax_cross_entropy
from ._logits import softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels
from ._mixture import Quantized as Quantized
from ._mixture import eol_loss as eol_loss
from ._mixture import gaussian_mixture_nll_loss as gaussian_mixture_nll_loss
from ._mixture import leop_loss as leop_loss
from ._mixture import mixture_autoencoder_loss as mixture_autoencoder_loss
from ._mixture import mixture_expectation as mixture_expectation
from ._mixture import of_mixture as of_mixture
from ._mixture import soft_quantize as soft_quantize
from ._pair import Pair as Pair
from ._placement import Placement as Placement
from ._placement import placement as placement
from .losses import Loss as Loss

__version__ = "0.1.0"
__all__ = sorted(name for name, value in vars().items() if callable(value))
