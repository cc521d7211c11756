"""Logits that are never in memory: the value, its operations, and what makes it.

functions.py  functions that users write, with the arrays that they close over
nodes.py      linear layers, distances, functions of pairs, arrays, and operations on these
value.py      `Logits`, and the operations on them
constructors.py  what makes them
softcap.py    the soft cap
scores.py     their tiles and blocks
gathered.py   the logits of gathered classes
over_mesh.py  functions of placed logits
products.py   matrix products
"""

from .constructors import LogitsLike as LogitsLike
from .constructors import as_logits as as_logits
from .constructors import distances as distances
from .constructors import linear as linear
from .constructors import pairwise as pairwise
from .constructors import shard as shard
from .softcap import softcap as softcap
from .value import Logits as Logits
