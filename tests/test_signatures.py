"""What `help()` shows of signatures, and the types behind it."""

import inspect
import pydoc
import re
import typing

import pytest

import softjax
from softjax import engines, losses, testing
from softjax.arguments import signatures

COMBINATORS = ("margin", "label_smoothing", "class_weights", "z_loss")
OF_MODULES = {
    softjax: softjax.__all__,
    losses: ("focal", "poly_1", "weston_watkins", "crammer_singer", *COMBINATORS),
    testing: [name for name in testing.__all__ if name != "MODES"],
    engines: engines.__all__,
}
PUBLIC = {f"{module.__name__}.{name}": getattr(module, name) for module, names in OF_MODULES.items() for name in names}
LONG = re.compile(r"^'|numpy|_src|jaxlib|ForwardRef|Union|(\|[^|]*){3}")


def long(named):
    """The annotations that are quoted, spelled out or unions of more than three."""
    signature = inspect.signature(named)
    annotations = [*(p.annotation for p in signature.parameters.values()), signature.return_annotation]
    texts = [inspect.formatannotation(a) for a in annotations if a is not inspect.Signature.empty]
    return [text for text in texts if LONG.search(text)]


def shown(named):
    """The signatures that `help()` prints: of a function, or of a class and its methods."""
    text = pydoc.plain(pydoc.render_doc(named))
    return re.findall(rf"^(?: \|  )?(?:class )?(?:{named.__name__}|__new__|__init__)(\(.*)", text, re.MULTILINE)


@pytest.mark.parametrize("name", PUBLIC)
def test_signatures_are_short(name):
    assert long(PUBLIC[name]) == []
    lines = shown(PUBLIC[name])
    assert lines
    assert not any(re.search(r"numpy|_src|jaxlib|ForwardRef|Union", line) for line in lines), lines


def test_the_swap_reads_as_it_is_written():
    text = str(inspect.signature(softjax.linear_softmax_cross_entropy))
    assert text.startswith(
        "(features: ArrayLike, kernel: ArrayLike, labels: ArrayLike | tuple[ArrayLike, ArrayLike], *, "
        "bias: ArrayLike | None = None, class_axis: int = -1, ignore_index: int | None = None, "
    )
    divergence = str(inspect.signature(softjax.kl_divergence))
    assert divergence.startswith("(p: LogitsLike | tuple[ArrayLike, ArrayLike], q: LogitsLike, *, ")
    mesh = str(inspect.signature(softjax.shard))
    assert mesh.endswith("*, examples: AxisName = None, classes: AxisName = None) -> Logits")


LOGITS = [name for name, f in vars(softjax.Logits).items() if inspect.isfunction(f) and name[0] != "_"]


@pytest.mark.parametrize("name", LOGITS)
def test_signatures_of_the_methods_of_logits_are_short(name):
    assert long(getattr(softjax.Logits, name)) == []
    assert {"where", "where_ids", "map", "take", "dense", "reshape"} <= set(LOGITS)


@pytest.mark.parametrize("name", PUBLIC)
def test_the_types_behind_the_texts_are_known(name):
    """What runtime checkers read."""
    hints = typing.get_type_hints(PUBLIC[name])
    assert not any(isinstance(hint, str | typing.ForwardRef) for hint in hints.values())


def test_a_class_shows_its_own_fields_and_not_those_of_its_base():
    fields = lambda named: list(inspect.signature(named).parameters)
    assert fields(softjax.Pair) == ["base", "rest"]
    assert fields(engines.Mean) == ["base", "rest", "top"]


def test_a_function_without_texts_is_found():
    """The test above catches a function that was forgotten, and one whose module does not keep the texts."""

    def forgotten(x: typing.Union[int, str, bytes, float]):  # noqa: UP007
        return x

    assert len(long(signatures.readable(forgotten))) == 1
    forgotten.__annotations__ = {"x": "ArrayLike"}
    del forgotten.__signature__
    assert long(forgotten) == ["'ArrayLike'"]
    assert long(signatures.readable(forgotten)) == []
    assert str(inspect.signature(forgotten)) == "(x: ArrayLike)"
