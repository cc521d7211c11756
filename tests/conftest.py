import collections
import contextlib
import gc
import sys

import jax
import jax.numpy as jnp
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
# The products in the definitions are exact to float32 on accelerators too; the library sets its own precision.
jax.config.update("jax_default_matmul_precision", "highest")
# Compiling takes most of the time, and most programs run once or twice. The fixture `optimised` is for the others.
jax.config.update("jax_disable_most_optimizations", True)


def _compile_quickly(options):
    """Programs that are not optimised get these options of the compiler too, where this version of JAX lets them."""
    compiler = sys.modules.get("jax._src.compiler")
    given = getattr(compiler, "get_compile_options", None)
    if given is None:
        return

    def get_compile_options(*args, **kwargs):
        made = given(*args, **kwargs)
        if jax.config.read("jax_disable_most_optimizations"):
            own = {name for name, _ in made.env_option_overrides}
            made.env_option_overrides += [(name, options[name]) for name in options if name not in own]
        return made

    compiler.get_compile_options = get_compile_options


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test marked `one_case_in(n)`, one case in n is fast, and the others are slow.

    Of one marked `each_value_once`, case i has value i of each parameter, from the start again where there are fewer.
    """
    seen, crossed = collections.Counter(), collections.defaultdict(dict)
    for item in items:
        if item.get_closest_marker("slow"):
            continue
        thinned = item.get_closest_marker("one_case_in")
        if thinned:
            if seen[item.function] % thinned.args[0]:
                item.add_marker(pytest.mark.slow)
            seen[item.function] += 1
        if item.get_closest_marker("each_value_once"):
            crossed[item.function][item] = tuple(item.callspec._idlist)
    for cells in crossed.values():
        values = [list(dict.fromkeys(of_parameter)) for of_parameter in zip(*cells.values(), strict=True)]
        fast = {tuple(of[i % len(of)] for of in values) for i in range(max(map(len, values)))}
        for item, cell in cells.items():
            if cell not in fast:
                item.add_marker(pytest.mark.slow)


def pytest_collection_finish():
    """Programs are compiled quickly from here on, as the options that the compiler has are known from trying them.

    The modules that are now loaded live to the end: the garbage collector need not look at them again.
    """
    from .cases import QUICKLY

    _compile_quickly(QUICKLY)
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


@contextlib.contextmanager
def _optimised():
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def optimised():
    """The programs of the test's own `jax.jit` are compiled as users compile them."""
    with _optimised():
        yield


@pytest.fixture
def checking_leaks():
    """JAX looks for leaked tracers after each trace, by a full garbage collection, here of new objects alone."""
    gc.freeze()
    with jax.checking_leaks():
        yield
    gc.unfreeze()


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """The type of the test's numbers; float64 exists only where it is asked for, as for users."""
    with jax.enable_x64(request.param == "float64"):
        yield jnp.dtype(request.param)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
