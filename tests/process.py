"""One of the processes that test_processes.py starts. Together they train over a mesh of all their devices.

    python -m tests.process localhost:PORT PROCESSES PROCESS --steps 5 --records FOLDER [--checkpoints FOLDER]

At each step it prints the losses; at the end it writes those and all gradients to FOLDER/PROCESS.npz.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import softjax

N, F, D = 8, 6, 3  # examples, and dimensions of the data and of the features
CLASSES, CENTERS = 13, 12  # no number of devices divides the first
SAVED = 2  # the step after which there is a checkpoint
OPTIMIZER = optax.adam(0.1)
CONFIG = {
    "jax_platforms": "cpu",
    "jax_num_cpu_devices": 2,
    "jax_cpu_collectives_implementation": "gloo",
    "jax_enable_x64": True,
}
# Seconds. A process whose collective failed waits for the dead one once more when it ends, until the coordinator has
# missed that one's heartbeats for so long; by default 100.
HEARTBEAT = 10


def parameters():
    """The parameters of a linear layer and of a mixture, each after a linear map of the data."""
    normal = np.random.default_rng(0).normal
    return {
        "linear": {"map": normal(size=(F, D)), "kernel": normal(size=(D, CLASSES))},
        "mixture": {
            "map": normal(size=(F, D)),
            "centers": normal(size=(CENTERS, D)),
            "values": normal(size=(CENTERS, F)),
        },
    }


def batch(step):
    """(data, labels). The first two examples, which lie on the first devices, have none."""
    random = np.random.default_rng(step)
    x, labels = random.normal(size=(N, F)), random.integers(CLASSES, size=N)
    labels[:2] = -1
    return x, labels


def by_name(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="."): a for path, a in jax.tree.leaves_with_path(tree)}


def losses(params, where, x, labels):
    """The axes of the mesh are named, or read off the arrays' types."""
    linear, mixture = params["linear"], params["mixture"]
    logits = softjax.linear(x @ linear["map"], linear["kernel"]).where(where)
    logits = softjax.shard(logits, examples="data", classes="classes")
    of_mixture = softjax.shard(softjax.distances(x @ mixture["map"], mixture["centers"]))
    return {
        "linear": softjax.softmax_cross_entropy_with_integer_labels(logits, labels, ignore_index=-1, reduction="mean"),
        "mixture": softjax.of(softjax.losses.mixture_autoencoder, of_mixture, x, mixture["values"], reduction="mean"),
    }


@jax.jit
def update(params, state, where, x, labels):
    def total(params):
        each = losses(params, where, x, labels)
        return each["linear"] + each["mixture"], each

    grads, each = jax.grad(total, has_aux=True)(params)
    updates, state = OPTIMIZER.update(grads, state)
    return optax.apply_updates(params, updates), state, {"loss": each, "gradient": grads}


def placed(x, *axes):
    x, sharding = np.asarray(x), NamedSharding(jax.sharding.get_mesh(), P(*axes))
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def gathered(x):
    """The whole of an array, of which every device of this process is seen to have its part."""
    whole = multihost_utils.process_allgather(x, tiled=True)
    for shard in x.addressable_shards:
        np.testing.assert_array_equal(shard.data, whole[shard.index])
    return whole


def begin():
    """(parameters, optimizer state, mask of the classes), over the mesh."""
    params, devices = parameters(), jax.sharding.get_mesh().shape["classes"]
    linear, mixture = params["linear"], params["mixture"]
    kernel = np.pad(linear["kernel"], ((0, 0), (0, -CLASSES % devices)))
    where = np.arange(kernel.shape[1]) < CLASSES
    params = {
        "linear": {"map": placed(linear["map"]), "kernel": placed(kernel, None, "classes")},
        "mixture": {
            "map": placed(mixture["map"]),
            "centers": placed(mixture["centers"], "classes"),
            "values": placed(mixture["values"], "classes"),
        },
    }
    return params, jax.jit(OPTIMIZER.init)(params), placed(where, "classes")


def train(steps, checkpoints):
    """The losses and gradients of each step after the latest checkpoint."""
    params, state, where = begin()
    first, save = 0, lambda *_: None
    if checkpoints:
        params, state, first, save = restored(params, state, checkpoints)
    records = []
    for step in range(first, steps):
        x, labels = (placed(a, "data") for a in batch(step))
        params, state, record = update(params, state, where, x, labels)
        records.append(by_name(jax.tree.map(gathered, record)))
        print("step", step + 1, records[-1]["loss.linear"], records[-1]["loss.mixture"], flush=True)
        if step + 1 == SAVED:
            save(step + 1, params, state)
    return records


def restored(params, state, folder):
    """(parameters, optimizer state, steps done, a function that saves them), from the latest checkpoint if any."""
    import orbax.checkpoint as ocp

    manager = ocp.CheckpointManager(folder)

    def save(step, params, state):
        manager.save(step, args=ocp.args.StandardSave((params, state)))
        manager.wait_until_finished()

    done = manager.latest_step()
    if done is None:
        return params, state, 0, save
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, (params, state))
    return *manager.restore(done, args=ocp.args.StandardRestore(like)), done, save


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("coordinator")
    parser.add_argument("processes", type=int)
    parser.add_argument("process", type=int)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path)
    given = parser.parse_args()
    for name, value in CONFIG.items():
        jax.config.update(name, value)
    jax.distributed.initialize(given.coordinator, given.processes, given.process, heartbeat_timeout_seconds=HEARTBEAT)
    jax.set_mesh(jax.make_mesh((2, given.processes), ("data", "classes")))
    records = train(given.steps, given.checkpoints)
    stacked = {name: np.stack([record[name] for record in records]) for name in records[0]}
    np.savez(given.records / f"{given.process}.npz", **stacked)


if __name__ == "__main__":
    main()
