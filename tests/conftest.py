import jax
import jax.numpy as jnp
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
# What the definitions multiply is exact to float32 on accelerators too; the library says so by itself.
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """The type of the test's numbers; float64 exists only where it is asked for, as for users."""
    with jax.enable_x64(request.param == "float64"):
        yield jnp.dtype(request.param)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
