"""The network traffic and the memory of a device, from the compiled programs of 2 to 64 devices.

`python -m tests.test_network 64` compiles for that many devices and prints what was found.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from softjax import Placement
from softjax.parallel import network
from softjax.testing import Collective, collectives

from . import spelled

ROOT = Path(__file__).parent.parent
N, D, E = 64, 16, 32
BLOCK = 32
FEW, MANY = 64, 1024  # classes on each device


def compiled(name, data, classes, k, *, block_size=BLOCK, reduction="none", n=N):
    """The compiled value and gradients, for a mesh of (data, classes) devices."""
    devices = jax.devices()[: data * classes]
    mesh = jax.make_mesh((data, classes), ("data", "classes"), axis_types=(AxisType.Auto,) * 2, devices=devices)
    array = lambda shape, *spec, dtype="float32": jax.ShapeDtypeStruct(
        shape, dtype, sharding=NamedSharding(mesh, P(*spec))
    )
    over = {"mesh": mesh, "class_axis_name": "classes", "batch_axis_name": "data"}
    options = over | {"block_size": block_size, "reduction": reduction}
    if name == "linear":
        args = array((n, D), "data"), array((D, k), None, "classes"), array((n,), "data", dtype="int32")
        loss = lambda x, w, y: spelled.linear_softmax_cross_entropy(x, w, y, **options).sum()
        moving = (0, 1)
    else:
        args = (array((n, D), "data"), array((n, E), "data"), array((k, D), "classes"), array((k, E), "classes"))
        loss = lambda *args: getattr(spelled, name)(*args, **options).sum()
        moving = (0, 1, 2, 3)
    return jax.jit(jax.value_and_grad(loss, moving)).lower(*args).compile()


def found(devices):
    """Of every function and number of classes: the collectives, and the bytes that a device holds."""

    def of(name, data, k, **options):
        program = compiled(name, data, devices // data, k, **options)
        memory = program.memory_analysis()
        return collectives(program), memory.argument_size_in_bytes, memory.temp_size_in_bytes

    few, many = FEW * devices, MANY * devices
    names = WANTED if devices == 8 else ("linear", "mixture_autoencoder_loss")
    yield from (((name, k), of(name, 1, k)) for name in names for k in (few, many))
    yield ("data alone", 256), of("linear", devices, 256, reduction="mean")
    tiles = Placement(16, BLOCK, "forward")
    yield ("forward", many), of("linear", 1, many, block_size=tiles, reduction="mean")


def floats(count):
    return 4 * count


WANTED = {  # bytes of each exchange, in the order of the computation
    "linear": {
        "the largest scores [N]": floats(N),
        "sums relative to them [N, 6]: weights, who has the largest, and the label's": floats(6 * N),
        "dx [N, D]": floats(N * D),
    },
    "mixture_autoencoder_loss": {
        "the largest scores [N]": floats(N),
        "their classes [N]": floats(N),
        "sums, the top class's values and a mean [N, 2 + 2 E]": floats(N * (2 + 2 * E)),
        "means [N, E]": floats(N * E),
        "dz [N, D]": floats(N * D),
    },
    "eol_loss": {
        "the largest scores [N]": floats(N),
        "their classes [N]": floats(N),
        "sums [N, 2 + 2]": floats(4 * N),
        "means [N]": floats(N),
        "scores and payoffs of the top classes [N, 2]": floats(2 * N),
        "dz [N, D]": floats(N * D),
        "dx [N, E]": floats(N * E),
    },
    "leop_loss": {
        "the largest scores [N, 2]": floats(2 * N),
        "their classes [N, 2]": floats(2 * N),
        "sums [N, 4]": floats(4 * N),
        "scores and payoffs of the top classes, of both [N, 4]": floats(4 * N),
        "dz [N, D]": floats(N * D),
        "dx [N, E]": floats(N * E),
    },
}


def added(sent):
    """The bytes of all sums and maxima over devices."""
    return sum(c.bytes * c.times for c in sent if c.operation == "all-reduce")


def found_by_a_process(devices):
    """The same, in a process with so many devices."""
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "tests.test_network", str(devices)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=kept, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("devices", [2, 4, 8, 64])
def test_network_traffic_and_memory_as_the_classes_grow(devices):
    measured = found(devices) if devices <= jax.device_count() else found_by_a_process(devices)
    of_all = {tuple(key): ([Collective(*c) for c in sent], *sizes) for key, (sent, *sizes) in measured}
    of = lambda name: (of_all[name, k * devices] for k in (FEW, MANY))
    for name in {name for name, _ in of_all} & set(WANTED):
        (few, arguments, temporaries), (many, *more) = of(name)
        assert_the_same_crosses(devices, name, few, many)
        assert_a_device_holds_its_part(name, (arguments, temporaries), more)

    in_tiles, *_ = of_all["forward", MANY * devices]
    assert sorted((c.bytes, c.times) for c in in_tiles) == [
        (floats(16), N // 16),
        (floats(16 * 6), N // 16),
        (floats(N * D), 1),
    ]
    # Devices that have other examples and the same classes exchange the gradient of these, and a sum.
    shared, *_ = of_all["data alone", 256]
    assert added(shared) == floats(D * 256) + floats(1)


def assert_the_same_crosses(devices, name, few, many):
    assert sorted(few) == sorted(many)
    assert {c.devices for c in many} == {devices}
    assert {c.operation for c in many} <= {"all-reduce", "all-gather"}
    assert added(many) == sum(WANTED[name].values())
    samples = [c.bytes for c in many if c.operation == "all-gather"]
    rows = max(32 // devices, 1) * devices  # some centers of each device, of which the median is taken
    assert samples == ([] if name == "linear" else [floats(rows * D)])
    assert len(many) <= len(WANTED[name]) + len(samples)


def assert_a_device_holds_its_part(name, few, many):
    """Of bytes (arguments, temporaries), for a few and for many classes on each device."""
    per_class = D if name == "linear" else D + E
    assert many[0] - few[0] == floats((MANY - FEW) * per_class)
    # The gradients and centers that were moved, a few arrays of the examples, and some blocks of scores.
    of_classes, of_examples, blocks = 2 * per_class + 4, N * (6 * (D + E) + 32), 8 * N * BLOCK
    assert blocks < N * MANY / 2
    assert many[1] < floats(MANY * of_classes + of_examples + blocks)
    assert many[1] - few[1] <= floats((MANY - FEW) * of_classes)


def test_class_parameters_per_device_fall_as_one_by_the_number_of_devices():
    """The same 2^16 classes on 1 to 8 devices."""
    k = 2**16
    sizes = {d: compiled("linear", 1, d, k).memory_analysis().argument_size_in_bytes for d in (1, 2, 4, 8)}
    of_examples = floats(N * (D + 1))
    assert {d: size - of_examples for d, size in sizes.items()} == {d: floats(D * k) // d for d in sizes}


def test_the_collectives_of_a_program_are_listed():
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)

    def f(x):
        total, _ = jax.lax.scan(lambda c, _: (jax.lax.psum(c, "b") * x, None), x * 2, length=3)
        return jax.lax.all_gather(total, "a")

    spread = jax.shard_map(f, mesh=mesh, in_specs=P("a", "b"), out_specs=P("a", None, "b"))
    sent = collectives(jax.jit(spread).lower(jnp.ones((2, 8), jnp.bfloat16)).compile())
    assert {(c.operation, c.devices, c.times) for c in sent} == {("all-reduce", 4, 3), ("all-gather", 2, 1)}
    assert {c.bytes for c in sent} <= {4, 8, 16}  # of 2 numbers or 4, which CPUs may hold as float32


def test_a_permutation_is_a_collective_of_two_devices():
    mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,))

    def sent_to(targets):
        send = lambda x: jax.lax.ppermute(x, "i", [*enumerate(targets)])
        spread = jax.shard_map(send, mesh=mesh, in_specs=P("i"), out_specs=P("i"))
        return collectives(jax.jit(spread).lower(jnp.ones(12)).compile())

    assert sent_to([1, 2, 3, 0]) == [Collective("collective-permute", 12, 2, 1)]
    assert sent_to([0, 1, 2, 3]) == []


def test_groups_that_are_counted_and_not_listed():
    """As compilers for many devices write them."""
    assert network._devices("all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%sum") == 4
    assert network._devices("all-reduce(%x), replica_groups=[8,1]<=[8], to_apply=%sum") == 1
    of_mesh = "all-gather(%x), channel_id=1, replica_groups=mesh['x'=2,'y'=4]{order} {{{axes}}}, dimensions={{1}}"
    assert network._devices(of_mesh.format(order="", axes="'y'")) == 4
    assert network._devices(of_mesh.format(order=", device_ids=([4,2]T(1,0))", axes="'x'")) == 2
    assert network._devices(of_mesh.format(order="", axes="'x','y'")) == 8


def test_a_function_in_place_of_a_program_is_refused():
    with pytest.raises(TypeError, match="`compiled` must be a compiled program with a text, got function"):
        collectives(lambda x: x)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
    print(json.dumps([*found(int(sys.argv[1]))]))
