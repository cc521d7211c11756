"""The audit finds planted faults, and its truth is right."""

import inspect
import json
import sys

import jax
import numpy as np
import pytest

import softjax
from softjax import __main__, tools
from softjax.tools import audit, truth

PUBLIC = {
    value.__name__  # `softargmax` is `softmax`
    for value in (getattr(softjax, name) for name in softjax.__all__)
    if inspect.isfunction(value)
    # integers, which have no error, and what makes logits, which is measured by the functions of these
    and value not in (softjax.placement, softjax.argmax, softjax.sample)
    and value not in (softjax.linear, softjax.distances, softjax.pairwise, softjax.shard)
}


@pytest.fixture
def run_audit(tmp_path, capsys):
    """(name of functions) -> (exit code, printed text, the rows of the report)."""

    def run(text):
        report = tmp_path / "audit.json"
        code = __main__.main(["audit", "--quick", "-k", text, "--json", str(report)])
        return code, capsys.readouterr().out, json.loads(report.read_text())["rows"]

    return run


@pytest.mark.slow
def test_every_public_function_is_within_its_limits_in_the_quick_run(run_audit):
    code, printed, rows = run_audit("")
    assert code == 0, "\n".join(line for line in printed.splitlines() if "is off by" in line)
    assert all(row["within"] for row in rows)
    assert {row["function"] for row in rows} == PUBLIC
    assert all(name in printed for name in PUBLIC)
    assert {row["mode"] for row in rows} == {"value", "reverse", "forward"}
    peers = {row["function"] for row in rows if row["peer"] is not None}
    assert {"softmax", "logsumexp", "multiclass_hinge_loss", "linear_softmax_cross_entropy"} <= peers


@pytest.mark.parametrize("quick", [False, True])
def test_every_public_function_has_its_work(quick):
    works = list(audit.works(quick))
    assert {work.function for work in works} == PUBLIC
    scenarios = [scenario for work in works for scenario in work.scenarios]
    assert {dtype for s in scenarios for dtype in s.dtypes} >= {"float32", "bfloat16"}
    if not quick:
        assert {s.place for s in scenarios} == {"logits", *audit.PLACES}
        assert {mode for s in scenarios for mode in s.modes} == set(audit.LIMITS)


def off_in_value(function):
    return lambda *args, **options: function(*args, **options) * (1 + 1e-5)


def off_in_gradient(function):
    def wrong(*args, **options):
        out = function(*args, **options)
        return out + 1e-5 * (out - jax.lax.stop_gradient(out))

    return wrong


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "modes"), [(off_in_value, {"value"}), (off_in_gradient, {"reverse", "forward"})])
@pytest.mark.parametrize("name", ["multiclass_svm_loss", "logsumexp"])
def test_a_planted_fault_is_found_and_named(run_audit, monkeypatch, name, fault, modes):
    monkeypatch.setattr(softjax, name, fault(getattr(softjax, name)))
    code, printed, rows = run_audit(name)
    assert code == 1
    assert {row["function"] for row in rows} == {name}
    found = [row for row in rows if not row["within"]]
    assert modes <= {row["mode"] for row in found if row["dtype"] == "float32"}
    if fault is off_in_gradient:
        assert all(row["within"] for row in rows if row["mode"] == "value")
    for row in found:
        where = f"{name}, {row['scenario']}, {row['dtype']}, {row['placement']}: {row['mode']}"
        assert where in printed
    assert f"{len(found)} beyond their limits" in printed


@pytest.mark.slow
def test_a_precision_that_is_taken_for_a_lower_one_is_found(run_audit, monkeypatch):
    given = softjax.linear
    lower = lambda precision: "default" if precision == "high" else precision
    taken = lambda *args, precision=None, **options: given(*args, precision=lower(precision), **options)
    monkeypatch.setattr(softjax, "linear", taken)
    code, _, rows = run_audit("with_integer_labels")
    assert code == 1
    found = [row for row in rows if not row["within"]]
    assert found
    assert all(row["scenario"].endswith(", high") and row["mode"] != "value" for row in found)


@pytest.mark.slow
def test_the_usual_cross_entropy_loses_all_digits_of_a_sure_row(run_audit):
    code, _, rows = run_audit("with_integer_labels")
    assert code == 0
    of_arrays = [row for row in rows if row["placement"] == audit.LOGITS and row["dtype"] == "float32"]
    errors = {row["mode"]: row["peer"] for row in of_arrays}
    assert errors["value"] == 1  # 0 for 8e-8, and less
    assert errors["reverse"] > 0.01


@pytest.mark.slow
def test_a_value_without_gradients_is_compared_too():
    """Its program may round otherwise, and here is off."""
    traced = []

    def off_without_gradients(logits):
        traced.append(logits)
        return softjax.entropy(logits) * (1.01 if len(traced) == 2 else 1)

    scenario = audit.Scenario("", {"logits": Z}, ("float32",), ("value",), audit.LOGITS)
    work = audit.Work("entropy", truth.entropy, [scenario], {}, adapter=lambda _: off_without_gradients)
    (entry,) = audit.measure(work)
    assert entry.error == pytest.approx(0.01, rel=0.01)
    assert entry.worst_array == "['alone']"


def test_nan_and_small_numbers_in_place_of_0_are_errors():
    places = {"z": np.zeros((2, 3))}
    scenario = audit.Scenario("", places, ("float32",), ("value",), audit.LOGITS)
    problem = audit._Problem(lambda z: z, lambda z: z, scenario, "float32")
    want = np.array([[0.0, 0.0, 0.0], [1e4, 1.0, 0.0]])
    error = lambda got: problem.error("value", np.asarray(got, np.float32), want)
    assert error(want) == 0
    assert error(want + np.array([[0, 0, 0], [0, 0.5, 0]])) == pytest.approx(5e-5)
    assert error(want + np.array([[0, 1e-30, 0], [0, 0, 0]])) == np.inf
    assert error(want * np.nan) == np.inf


@pytest.mark.slow
def test_a_missing_package_is_named_with_its_extra(monkeypatch, capsys):
    for name in ("audit", "truth"):
        monkeypatch.delitem(sys.modules, f"softjax.tools.{name}")
        monkeypatch.delattr(tools, name)
    monkeypatch.setitem(sys.modules, "mpmath", None)
    assert __main__.main(["audit"]) == 1
    assert "mpmath: pip install '.[audit]' in a clone of the repository" in capsys.readouterr().err


# --- the truth ----------------------------------------------------------------------------------

RANDOM = np.random.default_rng(0)
Z, T = RANDOM.normal(size=(3, 5)), RANDOM.normal(size=(5, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (lambda z, t: (truth.softmax(z) @ t) / (2 - t[0]), (Z, T)),
        (lambda z, y: truth.softmax_cross_entropy(z[:, [0, 2, 2]], y) - z.sum(), (Z, Z[:1, :3])),
        (lambda z: truth.logsumexp(z) * truth.tanh(z).sum(-1), (Z,)),
        (lambda z, c, t: truth.leop_loss(z, z, c, t, temperature=t[0, 0], reduction="mean"), (Z[:, :2], T, T + 2)),
        (lambda z: truth.multiclass_hinge_loss(z, np.arange(3)), (Z,)),
        (lambda z: truth.multiclass_svm_loss(z, np.arange(3)), (Z,)),
    ],
)
def test_gradients_of_the_tape_are_central_differences(function, arguments):
    inputs = [truth.Numbers(a) for a in arguments]
    out = function(*inputs)
    cotangent = RANDOM.normal(size=out.shape)
    direction = [RANDOM.normal(size=a.shape) for a in arguments]
    (difference,) = truth.along(lambda *inputs: [function(*inputs).value], arguments, direction)
    got = sum(
        (g * truth.Numbers(v).value).sum()
        for g, v in zip(truth.gradients(out, cotangent, inputs), direction, strict=True)
    )
    want = (difference * truth.Numbers(cotangent).value).sum() if out.shape else difference * cotangent
    assert abs(got / want - 1) < 1e-40


@pytest.mark.slow
def test_the_truth_is_that_of_known_numbers():
    sure = truth.Numbers([[80.0, 0.0]])
    (loss,) = truth.softmax_cross_entropy_with_integer_labels(sure, np.array([0])).value
    assert float(loss) == pytest.approx(np.exp(-80.0), rel=1e-15)
    assert truth.CONTEXT.almosteq(loss + truth.CONTEXT.exp(-160) / 2, truth.CONTEXT.exp(-80), 1e-68)


@pytest.mark.slow
def test_classes_that_attain_the_maximum_share_its_gradient():
    z = truth.Numbers([[1.0, 1.0, 0.0]])
    (gradient,) = truth.gradients(truth.largest(z), [1.0], [z])
    assert gradient.tolist() == [[0.5, 0.5, 0]]
    (gradient,) = truth.gradients(truth.positive(z - 1), [[1.0, 1.0, 1.0]], [z])
    assert gradient.tolist() == [[0.5, 0.5, 0]]


@pytest.mark.slow
def test_second_derivatives_are_compared_too():
    z = np.array([[0.0, 1.0, 2.0], [0.5, 0.0, -1.0]])
    scenario = audit.Scenario("", {"logits": z}, ("float32",), audit.ALL, audit.LOGITS)
    (entry,) = [e for e in audit.measure(audit.Work("entropy", truth.entropy, [scenario], {})) if e.mode == "HVP"]
    assert 0 < entry.error < 1e-5
    off = lambda logits: truth.entropy(logits) * 1.01
    (entry,) = [e for e in audit.measure(audit.Work("entropy", off, [scenario], {})) if e.mode == "HVP"]
    assert entry.error == pytest.approx(0.01, rel=0.1)


@pytest.mark.slow
def test_numbers_add_from_both_sides():
    assert float((1 + truth.Numbers(np.array([2.0]))).value[0]) == 3


@pytest.mark.slow
def test_without_a_report_it_prints_alone(capsys):
    assert __main__.main(["audit", "--quick", "-k", "multiclass_svm"]) == 0
    assert "0 beyond their limits" in capsys.readouterr().out
