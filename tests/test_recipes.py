"""The recipes run and print their comments, and what they compute is the formula on the dense logits.

A row of `DEFINITIONS` takes the names that a recipe has made. It returns functions (the recipe's, its definition) of
some arrays, whose values and gradients are compared.
"""

import functools as ft
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from . import snippets

FOLDER = Path(__file__).parent.parent / "docs" / "recipes"
INDEX = FOLDER / "README.md"
PAGES = {path.stem: path for path in sorted(FOLDER.glob("*.md")) if path != INDEX}
cross_entropy = optax.softmax_cross_entropy_with_integer_labels
SECTION = re.compile(r"^## (.*?)\n(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
RECIPES = {
    f"{page}: {title}": (path, text)
    for page, path in PAGES.items()
    for title, text in SECTION.findall(path.read_text())
    if "```python" in text
}


def mean_of_kept(losses, kept):
    return (losses * kept).sum() / kept.sum()


# --- models ------------------------------------------------------------------------------------------


def nnx_model(n):
    graph, state = nnx.split(n["model"])
    inputs, labels = n["tokens"][:, :-1], n["tokens"][:, 1:]

    def definition(state):
        model = nnx.merge(graph, state)
        return mean_of_kept(cross_entropy(model.head(model.features(inputs)), labels), labels != 0)

    return lambda state: n["loss"](nnx.merge(graph, state), n["tokens"]), definition, (state,)


def nnx_tied(n):
    graph, state = nnx.split(n["embedding"])

    def definition(state):
        embedding = nnx.merge(graph, state)
        logits = embedding.attend(nnx.tanh(embedding(n["tokens"][:, :-1])))
        return cross_entropy(logits, n["tokens"][:, 1:]).mean()

    return lambda state: n["loss"](nnx.merge(graph, state), n["tokens"]), definition, (state,)


def linen_inside(n):
    logits = lambda variables: n["model"].apply(variables, n["tokens"][:, :-1])
    definition = lambda variables: cross_entropy(logits(variables), n["tokens"][:, 1:]).mean()
    return lambda variables: n["loss"](variables, n["tokens"]), definition, (n["variables"],)


def linen_outside(n):
    logits = lambda params: n["model"].apply({"params": nn.unbox(params)}, n["tokens"][:, :-1])
    definition = lambda params: cross_entropy(logits(params), n["tokens"][:, 1:]).mean()
    return lambda params: n["loss"](params, n["tokens"]), definition, (n["params"],)


def equinox(n):
    import equinox

    arrays, rest = equinox.partition(n["model"], equinox.is_array)
    inputs, labels = n["tokens"][:, :-1], n["tokens"][:, 1:]

    def definition(arrays):
        model = equinox.combine(arrays, rest)
        logits = jax.vmap(jax.vmap(lambda token: model.head(model.features(token))))(inputs)
        return cross_entropy(logits, labels).mean()

    return lambda arrays: n["loss"](equinox.combine(arrays, rest), n["tokens"]), definition, (arrays,)


# --- training ----------------------------------------------------------------------------------------


def half_precision(n):
    """The definition rounds the operands, and sends their gradients back unrounded."""
    rounded = lambda a: a + jax.lax.stop_gradient(a.astype(jnp.bfloat16).astype(a.dtype) - a)
    definition = lambda x, w: cross_entropy(rounded(x) @ rounded(w), n["labels"]).mean()
    return n["loss"], definition, (n["features"], n["kernel"])


def multisteps(n):
    loss = lambda kernel: cross_entropy(n["features"] @ kernel, n["labels"]).mean()
    return lambda: n["trained"], lambda: n["kernel"] - jax.grad(loss)(n["kernel"]), ()


def padded_parts(n):
    x, labels = n["features"], n["labels"]
    loss = lambda kernel: mean_of_kept(cross_entropy(x @ kernel, labels * (labels != -1)), labels != -1)
    return lambda: n["gradient"](n["kernel"], x, labels), lambda: jax.grad(loss)(n["kernel"]), ()


def scanned_layers(n):
    graph, state = nnx.split(n["model"])

    def definition(state, x):
        model = nnx.to_pure_dict(state)
        for w, b in zip(model["layers"]["linear"]["kernel"], model["layers"]["linear"]["bias"], strict=True):
            x = x + jnp.tanh(x @ w + b)
        return cross_entropy(x @ model["head"], n["labels"]).mean()

    return lambda state, x: n["loss"](nnx.merge(graph, state), x, n["labels"]), definition, (state, n["x"])


def scanned_sequence(n):
    def definition(params, x):
        return cross_entropy(jax.nn.gelu(x @ params["inner"]) @ params["kernel"], n["labels"]).mean()

    params = {"inner": n["inner"], "kernel": n["kernel"]}
    return lambda params, x: n["loss"](params, x, n["labels"]), definition, (params, n["x"])


# --- many devices ------------------------------------------------------------------------------------


def over_devices(n):
    definition = lambda x, w: cross_entropy(x @ w, n["labels"]).mean()
    return lambda x, w: n["loss"](x, w, n["labels"]), definition, (n["features"], n["kernel"])


def fully_sharded(n):
    """The gradient stays where the kernel is."""
    assert n["dkernel"].sharding.is_equivalent_to(n["kernel"].sharding, 2)
    definition = lambda w, x: cross_entropy(x @ w, n["labels"]).mean()
    return lambda w, x: n["loss"](w, x, n["labels"]), definition, (n["kernel"], n["features"])


def unit(x):
    return x / jnp.sqrt((x**2).sum(-1, keepdims=True))


def clip_of(x, y, temperature):
    logits, labels = unit(x) @ unit(y).T / temperature, jnp.arange(x.shape[0])
    return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)).mean() / 2


def clip(n):
    def definition(params):
        x, y = n["images"] @ params["image"], n["texts"] @ params["text"]
        return clip_of(x, y, jnp.exp(-params["logit_scale"]))

    return lambda params: n["loss"](params, n["images"], n["texts"]), definition, (n["params"],)


# --- policies ----------------------------------------------------------------------------------------


def tokens_of(kernel, features, tokens, temperature=1.0):
    """(log p of the tokens, the entropies), 0 for the token -1."""
    log_p = jax.nn.log_softmax(features @ kernel / temperature)
    of_tokens = jnp.take_along_axis(log_p, jnp.maximum(tokens, 0)[..., None], -1)[..., 0]
    kept = tokens != -1
    return of_tokens * kept, -(jnp.exp(log_p) * log_p).sum(-1) * kept


def grpo(n):
    """The policy has moved, so that some ratios are clipped."""
    tokens, kept = n["tokens"], n["tokens"] != -1
    old, _ = tokens_of(n["kernel"], n["features"], tokens, 0.9)
    of_reference, _ = tokens_of(n["reference"], n["features"], tokens, 0.9)

    def definition(kernel, features):
        new, entropies = tokens_of(kernel, features, tokens, 0.9)
        ratio, gained = jnp.exp(new - old), (n["rewards"] - n["rewards"].mean())[:, None]
        advantages = gained / (n["rewards"].std() + 1e-6)
        beyond = jnp.where(advantages > 0, ratio > 1.2, ratio < 0.8)
        gain = jnp.where(beyond, jnp.where(advantages > 0, 1.2, 0.8), ratio) * advantages
        kl = jnp.exp(of_reference - new) - of_reference + new - 1
        return -mean_of_kept(gain - 0.04 * kl + 0.01 * entropies, kept)

    ours = lambda kernel, features: n["loss"](kernel, features, n["old"], n["of_reference"])
    moved = n["kernel"] + 0.05 * jax.random.normal(jax.random.key(9), n["kernel"].shape)
    ratio = jnp.exp(tokens_of(moved, n["features"], tokens, 0.9)[0] - old)
    assert (ratio > 1.2).any()
    assert (ratio < 0.8).any()
    return ours, definition, (moved, n["features"])


def dpo(n):
    of_answers = lambda kernel, x: tokens_of(kernel, x, n["tokens"])[0].sum(-1)

    def definition(kernel, x):
        chosen, rejected = of_answers(kernel, x) - of_answers(n["reference"], n["features"])
        return jnp.log1p(jnp.exp(-0.1 * (chosen - rejected))).mean()

    return lambda kernel, x: n["loss"](kernel, x, n["of_reference"]), definition, (n["kernel"], n["features"])


# --- decoding ----------------------------------------------------------------------------------------


def cold_decoding(n):
    """At a temperature near 0 a sample is the likeliest token."""

    def definition():
        state, token, tokens = jnp.zeros((4, 32)), jnp.array([1, 2, 3, 4]), []
        for _ in range(10):
            state = jnp.tanh(state @ n["recurrent"] + n["embedding"][token])
            token = (state @ n["embedding"].T).argmax(-1)
            tokens.append(token)
        return jnp.stack(tokens, -1)

    return lambda: n["decode"](n["keys"][2], jnp.array([1, 2, 3, 4]), 10, 1e-6), definition, ()


def ranked(n):
    log_p = jax.nn.log_softmax(n["features"] @ n["kernel"] / 0.8)
    values, ids = jax.lax.top_k(log_p, 50)
    p = np.exp(values)
    nucleus = [[row[:i].sum() < 0.9 for i in range(50)] for row in p]
    assert 0 < np.sum(nucleus) < 200
    for name, allowed in (("tokens", np.ones((4, 50), bool)), ("within", nucleus)):
        for token, of_row, kept in zip(n[name], np.asarray(ids), allowed, strict=True):
            assert token in of_row[np.array(kept)]
    beams, _ = jax.lax.top_k(jax.nn.log_softmax(n["features"] @ n["kernel"]).reshape(-1), 4)
    got = n["best"].log_probs, n["best"].ids, n["nucleus"], n["scores"]
    return lambda: got, lambda: (values, ids, jnp.array(nucleus), beams), ()


def evaluated(n):
    labels, log_p = n["labels"], jax.nn.log_softmax(n["features"] @ n["kernel"])
    kept = labels != -1
    of_labels = -cross_entropy(log_p, labels * kept)
    want = jnp.exp(-mean_of_kept(of_labels, kept)), mean_of_kept(log_p.argmax(-1) == labels, kept)
    entropy = mean_of_kept(-(jnp.exp(log_p) * log_p).sum(-1), kept)
    return lambda: (n["perplexity"], n["accuracy"], n["entropy"]), lambda: (*want, entropy), ()


# --- teachers and views -------------------------------------------------------------------------------


def divergence(q, z):
    log_q = jnp.log(jnp.where(q > 0, q, 1))
    return (q * (log_q - jax.nn.log_softmax(z))).sum(-1).mean()


def distilled(n):
    def definition(kernel, x):
        z = x @ kernel
        q = jax.nn.softmax(n["teacher_features"] @ n["teacher_kernel"] / 2)
        return 2 * divergence(q, z / 2) + cross_entropy(z, n["labels"]).mean() / 2

    return n["loss"], definition, (n["kernel"], n["features"])


def distilled_from_pairs(n):
    q = (jax.nn.one_hot(n["ids"], 1000) * n["probs"][..., None]).sum(-2)
    return n["loss"], lambda kernel, x: divergence(q, x @ kernel), (n["kernel"], n["features"])


def simclr(n):
    def definition(kernel, views):
        v = unit(views @ kernel).reshape(512, 16)
        s = jnp.where(jnp.eye(512, dtype=bool), -jnp.inf, v @ v.T / 0.5)
        return cross_entropy(s, (jnp.arange(512) + 256) % 512).mean()

    return n["loss"], definition, (n["kernel"], n["views"])


def without_false_negatives(n):
    same = (n["products"][:, None] == n["products"]) & ~jnp.eye(256, dtype=bool)

    def definition(x, y):
        s = jnp.where(same, -jnp.inf, x @ y.T)
        return (cross_entropy(s, jnp.arange(256)) + cross_entropy(s.T, jnp.arange(256))).mean() / 2

    return n["loss"], definition, (n["x"], n["y"])


def supervised_and_sigmoid(n):
    others, labels = 1 - jnp.eye(256), n["labels"]

    def definition(x, y, logit_scale, logit_bias):
        s = unit(x) @ unit(x).T / 0.1
        log_p = s - jnp.log((jnp.exp(s) * others).sum(-1, keepdims=True))
        positive = (labels[:, None] == labels) * others
        of_classes = -((positive * log_p).sum(-1) / positive.sum(-1)).mean()
        z = jnp.exp(logit_scale) * unit(x) @ unit(y).T + logit_bias
        return of_classes - jax.nn.log_sigmoid((2 * jnp.eye(256) - 1) * z).sum(-1).mean()

    return n["loss"], definition, (n["x"], n["y"], jnp.log(10.0), -10.0)


def many_labels(n):
    y = jax.nn.one_hot(n["labels"], 5000).sum(-2)  # a row of zeros for -1
    definition = lambda kernel, x: optax.sigmoid_binary_cross_entropy(x @ kernel, y).sum(-1).mean()
    return n["loss"], definition, (n["kernel"], n["features"])


def lora_head(n):
    def definition(a, b, temperatures):
        z = n["x"] @ (n["kernel"] + 0.5 * a @ b)
        z = 30 * jnp.tanh(z / 30) / temperatures[..., None]
        log_p = jax.nn.log_softmax(z)
        return (cross_entropy(z, n["labels"]) + 0.01 * (jnp.exp(log_p) * log_p).sum(-1)).mean()

    return n["loss"], definition, (n["a"], n["b"], n["temperatures"])


def returned_logits(n):
    graph, state = nnx.split(n["model"])

    def definition(state):
        model = nnx.merge(graph, state)
        x = nnx.tanh(model.embedding(n["tokens"][:, :-1]))
        return cross_entropy(x @ model.head.kernel[...] + model.head.bias[...], n["tokens"][:, 1:]).mean()

    return lambda state: n["loss"](nnx.merge(graph, state), n["tokens"]), definition, (state,)


def truncated(n):
    def definition(features, kernel):
        z = features @ kernel / 0.9
        kept = z >= jax.lax.top_k(z, 50)[0][:, -1:]
        log_p = jax.nn.log_softmax(jnp.where(kept, z, -jnp.inf))
        return (jnp.take_along_axis(log_p, n["tokens"][:, None], -1)[:, 0] * n["weights"]).sum()

    n["weights"] = np.random.default_rng(1).normal(size=6).astype("float32")
    ours = lambda features, kernel: (n["log_probs"](features, kernel) * n["weights"]).sum()
    return ours, definition, (n["features"], n["kernel"])


DEFINITIONS = {
    "logits: A LoRA head, a softcap, and a temperature of each token": lora_head,
    "logits: A model that returns its logits": returned_logits,
    "logits: A policy that was truncated": truncated,
    "distillation: From the teacher's last layer": distilled,
    "distillation: From stored probabilities": distilled_from_pairs,
    "contrastive: SimCLR": simclr,
    "contrastive: False negatives": without_false_negatives,
    "contrastive: SupCon and SigLIP": supervised_and_sigmoid,
    "contrastive: Many labels per example": many_labels,
    "flax: NNX": nnx_model,
    "flax: NNX, tied embeddings": nnx_tied,
    "flax: Linen, inside of the module": linen_inside,
    "flax: Linen, outside of the module, with boxed parameters": linen_outside,
    "equinox: Equinox": equinox,
    "equinox: Plain Optax": lambda n: (n["after"], n["before"], (n["params"],)),
    "training: bfloat16 products, float32 parameters": half_precision,
    "training: Accumulating gradients with Optax": multisteps,
    "training: Accumulating gradients in a scan, with padding": padded_parts,
    "training: Remat, and layers in a scan": scanned_layers,
    "training: The loss inside a scan over the sequence": scanned_sequence,
    "sharding: Data parallel": over_devices,
    "sharding: FSDP": fully_sharded,
    "sharding: Vocabulary and data": over_devices,
    "clip: Plain jit": clip,
    "clip: Inside a shard_map": lambda n: (n["loss"], clip_of, (n["x"], n["y"], 0.07)),
    "policy: GRPO": grpo,
    "policy: DPO": dpo,
    "decoding: Sampling a continuation": cold_decoding,
    "decoding: Top-k sampling and beams": ranked,
    "decoding: Perplexity, accuracy and entropy of a test set": evaluated,
}


def close(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def value_and_pulled(function, cotangent, *args):
    value, pull = jax.vjp(function, *args)
    return value, pull(cotangent)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.one_case_in(5)
def test_a_recipe_prints_its_comments_and_is_the_definition_on_the_logits(recipe):
    path, text = RECIPES[recipe]
    if "import equinox" in text:
        pytest.importorskip("equinox")
    (block,), names = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE), {}
    assert snippets.run(block, path, names)
    with jax.numpy_dtype_promotion("standard"):
        ours, definition, args = DEFINITIONS[recipe](names)
        if not args:
            close(ours(), definition())
            return
        cotangent = np.float32(np.random.default_rng(0).normal())
        got, want = (jax.jit(ft.partial(value_and_pulled, f))(cotangent, *args) for f in (ours, definition))
        close(got, want)


def test_every_recipe_has_a_definition_and_every_page_is_in_the_index():
    assert set(RECIPES) == set(DEFINITIONS)
    for path in PAGES.values():
        assert f"]({path.name})" in INDEX.read_text(), path.name


def test_links_of_the_recipes_lead_to_files():
    for path in (*PAGES.values(), INDEX):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
            assert (FOLDER / link).exists(), f"{path.name}: {link}"
