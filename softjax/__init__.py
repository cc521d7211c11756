"""Softmax-family losses for JAX: one derivative, any number of classes."""

from . import losses as losses
from . import testing as testing
from ._hinge import multiclass_hinge_loss as multiclass_hinge_loss
from ._hinge import multiclass_svm_loss as multiclass_svm_loss
from ._logits import entropy as entropy
from ._logits import expectation as expectation
from ._logits import log_softmax as log_softmax
from ._logits import logsumexp as logsumexp
from ._logits import softargmax as softargmax
from ._logits import softmax as softmax
from ._logits import softmax_cross_entropy as softmax_cross_entropy
from ._logits import softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels
from ._mixture import eol_loss as eol_loss
from ._mixture import leop_loss as leop_loss
from ._mixture import mixture_autoencoder_loss as mixture_autoencoder_loss
from ._mixture import mixture_expectation as mixture_expectation

__version__ = "0.1.0"
__all__ = sorted(name for name, value in vars().items() if callable(value))
