"""The functions of the library, with all that logits can be made of as arguments: what the tests vary.

`linear_log_probs(features, kernel, tokens, softcap=30.0, block_size=8, mesh=mesh)` is what a user writes as

    logits = 30 * (softjax.linear(features, kernel, block_size=8) / 30).map(jnp.tanh)
    softjax.log_probs(softjax.shard(logits, mesh), tokens)
"""

import functools as ft

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import softjax
from softjax import losses

HOW = ("block_size", "engine", "axis_name", "batch_axis_name")


def changed(
    logits,
    *,
    log_prior=None,
    where=None,
    softcap=None,
    temperature=1.0,
    mesh=None,
    class_axis_name=None,
    batch_axis_name=None,
):
    """Logits after a softcap, a temperature, a prior and a mask, placed on a mesh."""
    if softcap is not None:
        logits = softcap * (logits / softcap).map(jnp.tanh)
    if not (isinstance(temperature, float) and temperature == 1):
        logits = logits / temperature
    if log_prior is not None:
        logits = logits + log_prior
    if where is not None:
        logits = logits.where(where)
    if mesh is None and class_axis_name is None and batch_axis_name is None:
        return logits
    return softjax.shard(logits, mesh, examples=batch_axis_name, classes=class_axis_name)


def split_options(options, *names):
    """(the options of these names, taken out of the others)."""
    return {name: options.pop(name) for name in names if name in options}


def linear(features, kernel, options):
    """Logits of a linear layer, from options that are taken out."""
    on_mesh = "mesh" in options or "class_axis_name" in options
    how = ("bias", "class_axis", "precision", "dtype", "block_size", "engine", "axis_name")
    made = softjax.linear(features, kernel, **split_options(options, *how, *(() if on_mesh else ("batch_axis_name",))))
    names = ("where", "softcap", "temperature", "mesh", "class_axis_name", "batch_axis_name")
    return changed(made, **split_options(options, *names))


def mixture(z, centers, options):
    """Logits of a mixture, likewise."""
    on_mesh = "mesh" in options or "class_axis_name" in options
    how = ("precisions", "block_size", "engine", "axis_name")
    made = softjax.distances(z, centers, **split_options(options, *how, *(() if on_mesh else ("batch_axis_name",))))
    names = ("log_prior", "where", "temperature", "mesh", "class_axis_name", "batch_axis_name")
    return changed(made, **split_options(options, *names))


def of_linear(loss, features, kernel, example=None, per_class=None, **options):
    logits = linear(features, kernel, options)
    return softjax.of(loss, logits, example, per_class, **options)


def of_mixture(loss, z, centers, example=None, per_class=None, **options):
    logits = mixture(z, centers, options)
    return softjax.of(loss, logits, example, per_class, **options)


def of_logits(loss, logits, example=None, per_class=None, *, where=None, **options):
    logits = logits if where is None else jnp.where(where, logits, -jnp.inf)
    return softjax.of(loss, logits, example, per_class, **options)


def linear_softmax_cross_entropy(features, kernel, labels, *, class_weights=None, **options):
    logits = linear(features, kernel, options)
    if class_weights is None:
        return softjax.softmax_cross_entropy_with_integer_labels(logits, labels, **options)
    return weighted_cross_entropy(logits, labels, class_weights, **options)


def weighted_cross_entropy(
    logits,
    labels,
    class_weights,
    *,
    ignore_index=None,
    label_smoothing=0.0,
    z_loss=0.0,
    weights=None,
    reduction="none",
    has_aux=False,
):
    """With class weights w_k, whose mean is sum(w L) / sum(w v) for the class weight v of the label."""
    if has_aux:
        options = {"ignore_index": ignore_index, "z_loss": z_loss, "label_smoothing": label_smoothing}
        _, metrics = softjax.softmax_cross_entropy_with_integer_labels(logits, labels, has_aux=True, **options)
        options |= {"weights": weights, "reduction": reduction}
        return weighted_cross_entropy(logits, labels, class_weights, **options), metrics
    loss = losses.cross_entropy
    loss = losses.label_smoothing(loss, label_smoothing)
    loss = losses.z_loss(losses.class_weights(loss, class_weights), z_loss)
    kept = None
    if ignore_index is not None and not isinstance(labels, tuple):
        kept = labels != ignore_index
        labels = jnp.where(kept, labels, 0)
    of_examples = softjax.of(loss, logits, labels)
    w = jnp.ones_like(of_examples) if weights is None else weights
    w = w if kept is None else jnp.where(kept, w, 0)
    if reduction == "none":
        return w * of_examples
    shares = 1.0 if isinstance(labels, tuple) else _at(class_weights, labels)
    total, of_all = (w * of_examples).sum(), (w * shares).sum()
    return total if reduction == "sum" else jnp.where(of_all == 0, 0, total / jnp.where(of_all == 0, 1, of_all))


def _at(class_weights, labels):
    """The class weights of labels, sharded as these are."""
    sharding = jax.typeof(jnp.asarray(labels)).sharding
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    return jnp.asarray(class_weights).at[labels].get(out_sharding=sharding if explicit else None)


def linear_log_probs(features, kernel, tokens, bias=None, **options):
    options["bias"] = bias
    return softjax.log_probs(linear(features, kernel, options), tokens, **options)


NAMES_OF_LOGITS = (
    *("class_axis", "precision", "dtype", "block_size", "engine", "axis_name", "batch_axis_name"),
    *("where", "softcap", "temperature", "mesh", "class_axis_name"),
)


def linear_sigmoid_binary_cross_entropy(features, kernel, labels, **options):
    return softjax.sigmoid_binary_cross_entropy(linear(features, kernel, options), labels, **options)


def linear_expectation(features, kernel, values, **options):
    return softjax.of(losses.expectation, linear(features, kernel, options), None, values, **options)


def linear_logsumexp(features, kernel, **options):
    return softjax.logsumexp(linear(features, kernel, options), axis=-1, **options)


def linear_argmax(features, kernel, bias=None, **options):
    options["bias"] = bias
    return softjax.argmax(linear(features, kernel, options), **options)


def linear_top_k(features, kernel, k, bias=None, **options):
    options["bias"] = bias
    return softjax.top_k(linear(features, kernel, options), k, **options)


def linear_sample(key, features, kernel, bias=None, **options):
    options["bias"] = bias
    return softjax.sample(key, linear(features, kernel, options), **options)


def linear_distillation_loss(
    features,
    kernel,
    *,
    teacher_features=None,
    teacher_kernel=None,
    teacher_bias=None,
    teacher_probs=None,
    teacher_softcap=None,
    divergence="forward",
    **options,
):
    """The divergence of a student from a teacher, which is a constant."""
    same = {name: options[name] for name in NAMES_OF_LOGITS if name in options and name not in ("softcap",)}
    student = linear(features, kernel, options)
    if teacher_probs is None:
        made = linear(teacher_features, teacher_kernel, same | {"bias": teacher_bias, "softcap": teacher_softcap})
        teacher = jax.lax.stop_gradient(made)
    elif isinstance(teacher_probs, tuple):
        teacher = teacher_probs[0], jax.lax.stop_gradient(teacher_probs[1])
    else:
        probs = jax.lax.stop_gradient(teacher_probs)
        teacher = jnp.where(probs > 0, jnp.log(jnp.where(probs > 0, probs, 1)), -jnp.inf)
    if divergence == "jensen_shannon":
        return softjax.js_divergence(teacher, student, **options)
    return softjax.kl_divergence(*((teacher, student) if divergence == "forward" else (student, teacher)), **options)


def mixture_expectation(z, centers, values, **options):
    return softjax.of(losses.expectation, mixture(z, centers, options), None, values, **options)


def _of_data(name, loss, z, x, centers, values, **options):
    if not set(options) & {*HOW, "mesh", "class_axis_name"}:
        return getattr(softjax, name)(z, x, centers, values, **options)
    return softjax.of(loss, mixture(z, centers, options), x, values, **options)


def mixture_autoencoder_loss(*args, **options):
    return _of_data("mixture_autoencoder_loss", losses.mixture_autoencoder, *args, **options)


def eol_loss(*args, **options):
    return _of_data("eol_loss", losses.eol, *args, **options)


def leop_loss(*args, **options):
    return _of_data("leop_loss", losses.leop, *args, **options)


def gaussian_mixture_nll_loss(x, centers, precisions=None, **options):
    if not set(options) & {*HOW, "mesh", "class_axis_name"}:
        return softjax.gaussian_mixture_nll_loss(x, centers, precisions, **options)
    logits = mixture(x[..., :0], centers[:, :0], options)
    of_all = precisions is not None and jnp.ndim(precisions) == 1
    loss = losses.gaussian_mixture(precisions if of_all else 1.0)
    of_classes = centers if precisions is None or of_all else (centers, precisions)
    return softjax.of(loss, logits, x, of_classes, **options)


def soft_quantize(*args, **options):
    split_options(options, "block_size")
    return softjax.soft_quantize(*args, **options)


def _of_views(function, *arrays, mesh=None, batch_axis_name=None, **options):
    if batch_axis_name is None:
        return function(*arrays, **options)
    weights = options.pop("weights", None)
    numbers = split_options(options, "temperature", "logit_bias")

    def local(arrays, weights, numbers):
        return function(*arrays, weights=weights, axis_name=batch_axis_name, **numbers, **options)

    of_examples = P(batch_axis_name)
    out = of_examples if options.get("reduction", "none") == "none" else P()
    over = jax.shard_map(local, mesh=mesh, in_specs=(of_examples, of_examples, P()), out_specs=out)
    if AxisType.Explicit in mesh.axis_types:
        place = lambda a: jax.sharding.reshard(a, NamedSharding(mesh, of_examples))
        arrays, weights = jax.tree.map(place, (arrays, weights))
    return over(arrays, weights, jax.tree.map(jnp.asarray, numbers))


def _of_two(function, x, y, **options):
    return _of_views(function, x, y, **options)


contrastive_loss = ft.partial(_of_two, softjax.contrastive_loss)
nt_xent_loss = ft.partial(_of_two, softjax.nt_xent_loss)
siglip_loss = ft.partial(_of_two, softjax.siglip_loss)


def supervised_contrastive_loss(x, labels, **options):
    return _of_views(softjax.supervised_contrastive_loss, x, labels, **options)


def __getattr__(name):
    return getattr(softjax, name)
