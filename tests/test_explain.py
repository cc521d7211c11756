"""Will it fit? The model of cost against compiled programs, and what the command prints."""

import json
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import optax
import pytest

import softjax
from softjax import __main__
from softjax.tools import command_line, explain, targets

RESULTS = pathlib.Path(softjax.__file__).parents[1] / "benchmarks" / "results"
CPU = explain.Device("cpu", "cpu", 10**10)
# The temporaries of the model, as ratios to those of the compiled program.
OF_CPUS, OF_ACCELERATORS = (0.8, 1.3), (0.9, 1.55)
SIZES = [
    (1024, 256, 8192, "float32", "mean"),
    (1024, 64, 8192, "float32", "none"),
    (512, 256, 20000, "float32", "none"),
    (1000, 128, 9000, "bfloat16", "mean"),
    (1000, 128, 9000, "float32", "mean"),
    (1024, 32, 20000, "float32", "sum"),
    (300, 128, 5000, "float32", "none"),
]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("way", explain.WAYS)
@pytest.mark.usefixtures("optimised")
def test_the_model_of_cost_is_near_the_compiled_program(sizes, way):
    problem = explain.Problem(*sizes)
    found, wanted = explain.modelled(problem, CPU, way), explain.compiled(problem, CPU, way)
    assert wanted.source == "compiled program"
    assert OF_CPUS[0] <= found.temporaries / wanted.temporaries <= OF_CPUS[1]
    assert found.arguments == wanted.arguments
    assert found.gradients == pytest.approx(wanted.gradients, rel=1e-2)
    assert found.operations == pytest.approx(wanted.operations, rel=0.02)


def compiled_rows():
    for path in sorted(RESULTS.glob("*-compiled.json")):
        report = json.loads(path.read_text())
        for row in report["rows"]:
            if row["name"].startswith("cross entropy"):
                yield pytest.param(report["kind"], row, id=f"{report['kind']} {row['name']}")


@pytest.mark.parametrize(("kind", "row"), list(compiled_rows()))
def test_the_model_of_cost_is_near_the_programs_for_accelerators(kind, row):
    _, dtype, sizes = row["name"].split(", ")
    n, d, k = (int(part.split("=")[1]) for part in sizes.split())
    problem = explain.Problem(n, d, k, dtype, "mean")
    device = explain.Device(kind, targets.KINDS[kind].platform, explain.MEMORY[kind] * 10**9)
    for way, name in (("softjax", "softjax"), ("dense logits", "optax")):
        ratio = explain.modelled(problem, device, way).temporaries / row["results"][name]["temporaries"]
        assert OF_ACCELERATORS[0] <= ratio <= OF_ACCELERATORS[1], (way, ratio)


@pytest.mark.usefixtures("optimised")
def test_dense_logits_are_those_of_optax():
    problem = explain.Problem(512, 32, 2048, "float32", "mean")
    function, arguments = explain.function_of(problem, CPU, "dense logits")
    theirs = jax.value_and_grad(
        lambda x, w, y: optax.softmax_cross_entropy_with_integer_labels(x @ w, y).mean(), (0, 1)
    )
    programs_of = [jax.jit(f).lower(*arguments).compile() for f in (function, theirs)]
    ours, optaxs = (program.memory_analysis().temp_size_in_bytes for program in programs_of)
    assert ours == pytest.approx(optaxs, rel=0.05)
    x, w, y = jnp.ones((512, 32)), jnp.ones((32, 2048)), jnp.zeros(512, "int32")
    assert jnp.allclose(function(x, w, y)[0], theirs(x, w, y)[0])


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_products_are_counted_in_the_compiled_program(reduction):
    problem = explain.Problem(300, 128, 9000, "float32", reduction)
    fused = 3 if reduction != "none" else 3 + 8192 / 9000  # blocks are computed twice, the last smaller one once
    for way, products in (("softjax", fused), ("dense logits", 3)):
        assert explain.compiled(problem, CPU, way).operations == pytest.approx(products * problem.product, rel=0.02)


def test_nothing_is_allocated_and_nothing_runs(capsys):
    """50 TB of logits."""
    before = len(jax.live_arrays())
    assert __main__.main(["explain", "1000000", "128", "12500000", "--device", "cpu", "--memory", "100GB"]) == 0
    assert len(jax.live_arrays()) == before
    out = capsys.readouterr().out
    assert "figures of the          compiled program  compiled program" in out
    assert "dense logits, 100,0" in out
    assert out.rstrip().endswith("GB, do not fit")


def test_the_answer_as_text_and_as_json(capsys):
    command = ["explain", "8192", "2304", "256000", "--dtype", "bfloat16", "--device", "h200", "--memory", "12GB"]
    assert __main__.main(command) == 0
    text = capsys.readouterr().out
    assert "h200 is not described to a compiler" in text
    assert __main__.main([*command, "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert known["verdict"] == text.splitlines()[-1]
    assert known["device"] == {"name": "h200", "platform": "gpu", "memory": 12 * 10**9}
    assert known["problem"]["classes"] == 256000
    place = softjax.placement(8192, 256000, 2304, reduction="mean", dtype="bfloat16", platform="gpu", memory=12 * 10**8)
    assert softjax.Placement(**known["placement"]) == place
    ours, theirs = known["costs"]["softjax"], known["costs"]["dense logits"]
    assert ours["fits"]
    assert not theirs["fits"]
    assert theirs["temporaries"] == 8192 * 256000 * 6
    assert ours["total"] == ours["arguments"] + ours["gradients"] + ours["temporaries"]
    assert ours["source"] == "model of cost"


@pytest.mark.parametrize(
    ("memory", "verdict"),
    [(10**9, "does not fit: 3 GB of 1 GB; dense logits, 5 GB, do not fit"),
     (4 * 10**9, "fits: 3 GB of 4 GB; dense logits, 5 GB, do not fit"),
     (9 * 10**9, "fits: 3 GB of 9 GB; dense logits, 5 GB, fit")],
)  # fmt: skip
def test_the_verdict_compares_all_bytes_with_the_memory(memory, verdict):
    cost = explain.Cost("model of cost", 10**9, 10**9, 10**9, 0.0)
    costs = {"softjax": cost, "dense logits": cost._replace(temporaries=3 * 10**9)}
    assert explain._verdict(explain.Device("v5e", "tpu", memory), costs) == verdict


def test_a_program_that_a_compiler_refuses_does_not_fit(monkeypatch, capsys):
    def refuse(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: used 25 G of 16 G")

    monkeypatch.setattr(explain, "compiled", refuse)
    assert __main__.main(["explain", "64", "8", "128", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "model of cost: the compiler says that it does not fit" in out
    assert "does not fit: " in out

    def fail(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: another fault")

    monkeypatch.setattr(explain, "compiled", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="another fault"):
        __main__.main(["explain", "64", "8", "128", "--device", "cpu"])


@pytest.mark.parametrize("kind", targets.KINDS)
def test_without_a_compiler_the_model_says_so(kind, monkeypatch, capsys):
    monkeypatch.setattr(targets, "missing", lambda kind: "the-compiler")
    assert __main__.main(["explain", "64", "8", "128", "--device", kind]) == 0
    out = capsys.readouterr().out
    assert "model of cost: without the-compiler, which `make compilers` installs" in out
    assert f"fits in {explain.MEMORY[kind]} GB" in out


def test_with_a_compiler_the_device_is_compiled_for(monkeypatch, capsys):
    """With the compiler of this machine in place of another's."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    monkeypatch.setattr(targets, "device", lambda kind: here)
    monkeypatch.setattr(targets, "missing", lambda kind: None)
    prepared = []
    monkeypatch.setattr(targets, "prepare", lambda: prepared.append(1))
    assert __main__.main(["explain", "64", "8", "128", "--device", "v5e"]) == 0
    assert prepared
    assert "compiled program  compiled program" in capsys.readouterr().out


def test_a_device_that_does_not_state_its_memory_is_refused():
    class Silent:
        platform = "gpu"

        def memory_stats(self):
            return None

    with pytest.raises(SystemExit, match="--memory"):
        explain._memory_of(Silent())
    Silent.memory_stats = lambda self: {"bytes_limit": 7}
    assert explain._memory_of(Silent()) == 7


def test_the_memory_of_a_container_is_its_limit(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(explain, "_LIMITS", (limit, tmp_path / "absent"))
    device = jax.devices("cpu")[0]
    machine = explain._memory_of(device)
    assert machine > 10**8
    limit.write_text("max\n")
    assert explain._memory_of(device) == machine
    limit.write_text("123456\n")
    assert explain._memory_of(device) == 123456


@pytest.mark.parametrize(
    ("text", "size"), [("16e9", 16 * 10**9), ("16GB", 16 * 10**9), ("1.5GiB", 3 * 2**29), ("200 MB", 2 * 10**8)]
)
def test_bytes_are_read(text, size):
    assert command_line._bytes(text) == size


@pytest.mark.parametrize("text", ["", "16 G", "-1", "0", "many", "1e999"])
def test_other_sizes_are_refused(text, capsys):
    with pytest.raises(SystemExit):
        __main__.main(["explain", "1", "1", "1", f"--memory={text}"])
    assert "must be a number of bytes, as 16e9, 16GB or 16GiB" in capsys.readouterr().err


def test_the_devices_of_the_command_line_are_those_of_the_table():
    assert ("here", "cpu", *explain.MEMORY) == command_line.DEVICES
    assert set(targets.KINDS) <= set(explain.MEMORY)
    assert all(targets.KINDS[name].gibibytes == explain.MEMORY[name] for name in targets.KINDS)


def test_products_whose_sizes_are_not_in_the_text_are_not_counted():
    """As in a TPU's program."""
    text = "ENTRY %main (x: f32[2]) -> f32[2] {\n  ROOT %x = f32[2] parameter(0)\n}"
    assert math.isnan(explain._multiplied(text))


def test_the_answer_in_the_docs_is_that_of_the_command(monkeypatch, capsys):
    document = pathlib.Path(softjax.__file__).parents[1] / "docs" / "performance.md"
    (block,) = re.findall(r"```\n\$ python -m softjax (explain .*)\n((?:.*\n)*?)```", document.read_text())
    monkeypatch.setattr(targets, "missing", lambda kind: "libtpu")
    assert __main__.main(block[0].split()) == 0
    assert capsys.readouterr().out == block[1]
