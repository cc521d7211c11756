"""The benchmark of accelerators: its definitions, its checks, its times, and that it runs."""

import base64
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softjax
from benchmarks import __main__, accelerator, bench
from softjax.tools import audit


def test_a_cpu_is_refused_in_one_sentence(capsys):
    assert __main__.main(["--accelerator"]) == 1
    wanted = "This benchmark needs a GPU or a TPU, and JAX finds a CPU alone: --small shows that it runs.\n"
    assert capsys.readouterr() == ("", wanted)


DEFINITIONS = {check.function: check for check in accelerator.checks(small=True)}


@pytest.mark.parametrize("function", DEFINITIONS)
def test_gradients_of_the_definitions_are_central_differences(function):
    check = DEFINITIONS[function]
    random = np.random.default_rng(3)
    along = [random.normal(size=a.shape) for a in check.arguments]
    at = lambda h: check.definition(*(a + h * b for a, b in zip(check.arguments, along, strict=True)))
    got = sum((g * b).sum() for g, b in zip(at(0)[1], along, strict=True))
    assert got == pytest.approx((at(1e-5)[0] - at(-1e-5)[0]) / 2e-5, rel=1e-7)


@pytest.mark.parametrize("function", DEFINITIONS)
@pytest.mark.one_case_in(3)
def test_checks_pass_and_find_faults(function):
    check = next(c for c in accelerator.checks(True) if c.function == function and c.precision == "highest")
    found = accelerator.errors(check)
    assert [e["mode"] for e in found] == ["value", "reverse", "forward", "HVP"]
    assert all(e["within"] for e in found)
    assert all(e["error"] > 0 for e in found[1:])
    wrong = accelerator.errors(check._replace(call=lambda *a: check.call(*a) * 1.001))
    assert not any(e["within"] for e in wrong)
    assert wrong[1]["error"] == pytest.approx(1e-3, rel=0.05)


def test_checks_have_every_precision_and_placement():
    of = {(c.function, c.dtype, c.precision, c.placement) for c in accelerator.checks(small=False)}
    assert len(of) == 3 * 5 + 3 * 4 + 2 * 5
    assert {c[3] for c in of} == {"default", "blocks", "tiles", "forward", "nothing kept"}


def test_contestants_take_turns_on_new_arguments_until_the_time_is_up(monkeypatch):
    seen = []

    def eager(name):
        def step(arguments):
            seen.append((name, float(arguments[0][0, 0])))

        step.eager = True
        return step

    shapes = jax.ShapeDtypeStruct((4, 3), "float32"), jax.ShapeDtypeStruct((3, 5), "float32")
    labels = jax.ShapeDtypeStruct((4,), "int32")
    contestants = {"a": eager("a"), "b": eager("b"), "broken": lambda x, w, y: x @ x}
    row = bench.Row("a row", (*shapes, labels), contestants)
    found = accelerator.times(row, seconds=60, rounds=3)
    assert [name for name, _ in seen] == ["a", "b", "a", "b", "a", "b", "a", "b"]  # each runs once untimed
    numbers = [number for _, number in seen]
    assert numbers[::2] == numbers[1::2]
    assert len(set(numbers)) == 4
    assert found["a"]["runs"] == 3
    assert found["broken"]["failed"].startswith("TypeError: ")
    hurried = accelerator.times(row, seconds=0, rounds=3)
    assert hurried["a"]["runs"] == 1
    assert hurried["b"] == {"failed": "left out for want of time"}
    monkeypatch.setattr(accelerator, "_fits", lambda analysis: analysis is None)
    row = row._replace(contestants={"large": lambda x, w, y: x @ w})
    assert "does not fit" in accelerator.times(row, 60)["large"]["failed"]


def test_arguments_are_of_the_row():
    shapes = [jax.ShapeDtypeStruct((400, 25), "bfloat16"), jax.ShapeDtypeStruct((400,), "int32")]
    x, y = accelerator._fresh(jax.random.key(0), shapes, 7)
    assert (x.dtype, y.dtype) == (jnp.bfloat16, jnp.int32)
    assert set(y.tolist()) == set(range(7))
    assert float(x.astype("float32").std()) == pytest.approx(0.2, rel=0.05)


@pytest.mark.slow
def test_the_benchmark_runs_at_small_sizes(tmp_path, capsys):
    assert accelerator.run(tmp_path, small=True) == 0
    name = jax.devices()[0].device_kind.lower()
    figures = json.loads((tmp_path / f"{name}.json").read_text())
    assert len(figures["rows"]) == 7
    assert figures["rows"][0]["results"]["softjax"]["seconds"] > 0
    assert {e["function"] for e in figures["checks"]} == set(DEFINITIONS)
    assert {e["function"] for e in figures["audit"]} == {"of"}
    assert "0 beyond their limits" in (tmp_path / f"{name}.txt").read_text()
    assert (tmp_path / f"{name}.png").read_bytes().startswith(base64.b64decode("iVBORw0KGgo="))
    assert "Figures: " in capsys.readouterr().out


def test_errors_beyond_their_limits_are_printed_and_returned(monkeypatch, capsys):
    check = DEFINITIONS["eol_loss"]
    monkeypatch.setattr(
        accelerator, "checks", lambda small: 2 * [check._replace(call=lambda *a: softjax.eol_loss(*a).sum())]
    )
    monkeypatch.setattr(accelerator, "comparisons", lambda kind, small: [])
    monkeypatch.setattr(
        audit, "works", lambda quick: [audit.Work("of", None, [], {}), audit.Work("log_probs", None, [], {})]
    )
    assert accelerator.run(small=True, seconds=-1) == 1
    printed = capsys.readouterr().out
    assert "is beyond its limit" in printed
    assert "left out for want of time: 1 checks and 1 functions of the audit" in printed
