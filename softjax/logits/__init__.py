"""Logits that are never in memory: the value, its operations, and what makes it.

functions.py  functions that users write, with the arrays that they close over
nodes.py      linear layers, distances, functions of pairs, arrays, and operations on these
value.py      `Logits`, and the functions that make them
scores.py     their tiles and blocks
"""

from .value import Logits as Logits
from .value import LogitsLike as LogitsLike
from .value import as_logits as as_logits
from .value import distances as distances
from .value import linear as linear
from .value import pairwise as pairwise
