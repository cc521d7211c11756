"""What the benchmark reads in compiled programs, on small texts, and the program for a TPU where its compiler is."""

import contextlib
import json
import math
import types

import jax
import pytest

from benchmarks import __main__, compilers, costs
from softjax import _jax
from softjax.tools import programs, targets

LOOP = """HloModule step
%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %a = f32[4]{0} get-tuple-element(%p), index=1
  %inner = f32[4]{0} negate(%a), backend_config={"estimated_cycles":"10"}
  ROOT %t = (s32[], f32[4]{0}) tuple(%i, %inner)
}
%condition (q: (s32[], f32[4])) -> pred[] {
  %limit = s32[] constant(7)
  %q = (s32[], f32[4]{0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  ROOT %lt = pred[] compare(%j, %limit), direction=LT
}
%cheap (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %x1 = f32[4]{0} negate(%x), backend_config={"estimated_cycles":"3"}
}
%dear (y: f32[4]) -> f32[4] {
  %y = f32[4]{0} parameter(0)
  ROOT %y1 = f32[4]{0} exponential(%y), backend_config={"estimated_cycles":"50"}
}
ENTRY %main (start: f32[4]) -> f32[4] {
  %start = f32[4]{0} parameter(0)
  %zero = s32[] constant(0)
  %first = f32[4]{0} negate(%start), backend_config={"estimated_cycles":"100"}
  %unknown = f32[4]{0} negate(%first), backend_config={"estimated_cycles":"9223372036854775807"}
  %pair = (s32[], f32[4]{0}) tuple(%zero, %first)
  %loop = (s32[], f32[4]{0}) while(%pair), condition=%condition, body=%body
  %out = f32[4]{0} get-tuple-element(%loop), index=1
  ROOT %either = f32[4]{0} conditional(%zero, %out, %out), branch_computations={%cheap, %dear}
}
"""


def cycles(text):
    return programs.total(programs.parse(text), costs.cycles)


def test_cycles_are_summed_over_loops_and_the_dearest_branches():
    assert cycles(LOOP) == 100 + 7 * 10 + 50
    assert cycles(LOOP.replace('"50"', '"2"')) == 100 + 7 * 10 + 3
    assert cycles(LOOP.replace("constant(7)", "constant(8)")) == 100 + 8 * 10 + 50
    both = "true_computation=%cheap, false_computation=%dear"
    assert cycles(LOOP.replace("branch_computations={%cheap, %dear}", both)) == 220
    called = LOOP.replace(
        "conditional(%zero, %out, %out), branch_computations={%cheap, %dear}", "call(%out), to_apply=%dear"
    )
    assert cycles(called) == 220


def test_the_trips_of_a_loop_are_known_or_counted_or_refused():
    known = 'body=%body, backend_config={"known_trip_count":{"n":"5"}}'
    assert cycles(LOOP.replace("body=%body", known)) == 100 + 5 * 10 + 50
    in_fusion = LOOP.replace("%limit = s32[] constant(7)", "").replace(
        "compare(%j, %limit), direction=LT", "fusion(%j), kind=kLoop, calls=%less"
    )
    less = """%less (k: s32[]) -> pred[] {
  %k = s32[] parameter(0)
  %most = s32[]{:T(128)} constant(9)
  ROOT %ls = pred[] compare(%k, %most), direction=LT
}
"""
    assert cycles(in_fusion.replace("%cheap (x", f"{less}%cheap (x")) == 100 + 9 * 10 + 50
    carried = LOOP.replace("%limit = s32[] constant(7)", "%limit = s32[] get-tuple-element(%q), index=2").replace(
        "tuple(%zero, %first)", "tuple(%zero, %first, %end)"
    )
    copied = "%six = s32[] constant(6)\n  %end = s32[] copy(%six)\n  %pair = (s32[]"
    assert cycles(carried.replace("%pair = (s32[]", copied)) == 100 + 6 * 10 + 50
    with pytest.raises(ValueError, match="'loop' must count to a constant"):
        cycles(LOOP.replace("constant(7)", "parameter(1)"))


FUSIONS = """HloModule fusions
%sliced (p: f32[100,8], i: s32[]) -> f32[10,8] {
  %p = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %view = f32[100,8]{1,0} bitcast(%p)
  %s = f32[10,8]{1,0} dynamic-slice(%view, %i, %i), dynamic_slice_sizes={10,8}
  ROOT %e = f32[10,8]{1,0} exponential(%s)
}
%updated (q: f32[100,8], u: f32[10,8], j: s32[]) -> f32[100,8] {
  %q = f32[100,8]{1,0} parameter(0)
  %u = f32[10,8]{1,0} parameter(1)
  %j = s32[] parameter(2)
  ROOT %d = f32[100,8]{1,0} dynamic-update-slice(%q, %u, %j, %j)
}
ENTRY %main (x: f32[100,8], k: s32[]) -> f32[100,8] {
  %x = f32[100,8]{1,0} parameter(0)
  %k = s32[] parameter(1)
  %block = f32[10,8]{1,0} fusion(%x, %k), kind=kLoop, calls=%sliced
  ROOT %new = f32[100,8]{1,0} fusion(%x, %block, %k), kind=kLoop, calls=%updated
}
"""


def moved(text):
    return programs.total(programs.parse(text), costs.traffic)


def test_a_fusion_moves_what_it_touches_of_a_slice_or_of_an_update_in_place():
    block, whole, index = 10 * 8 * 4, 100 * 8 * 4, 4
    assert moved(FUSIONS) == (block + index + block) + (block + index + block)
    read_whole = FUSIONS.replace("dynamic-slice(%view", "reduce(%view")
    assert moved(read_whole) == (whole + index + block) + (block + index + block)
    also_read = FUSIONS.replace("ROOT %d", "%q2 = f32[100,8]{1,0} negate(%q)\n  ROOT %d")
    assert moved(also_read) == (block + index + block) + (whole + block + index + block)
    assert moved(FUSIONS.replace("f32[", "bf16[")) == 2 * (block // 2 + index + block // 2)


@pytest.mark.parametrize(
    ("line", "nbytes"),
    [
        ("f32[10,8]{1,0} dynamic-slice(%x, %k, %k), dynamic_slice_sizes={10,8}", 320 + 4 + 320),
        ("f32[100,8]{1,0} dynamic-update-slice(%x, %u, %k, %k)", 320 + 4 + 320),
        ("f32[100,8]{1,0} scatter(%x, %k, %u), to_apply=%add", 4 + 320 + 2 * 320),
        ("f32[100,8]{1,0} add(%x, %x)", 2 * 3200),
        ("(f32[100,8]{1,0}, f32[100,8]{1,0:S(1)}, u32[]) copy-start(%x)", 2 * 3200),
        ("f32[100,8]{1,0} copy-done(%x)", 0),
        ('bf16[4096,2]{1,0} custom-call(), custom_call_target="AllocateBuffer"', 0),
        ("(f32[100,8]{1,0}, s32[]) tuple(%x, %k)", 0),
    ],
)
def test_the_bytes_of_an_operation(line, nbytes):
    text = f"""ENTRY %main (x: f32[100,8], u: f32[10,8], k: s32[]) -> f32[] {{
  %x = f32[100,8]{{1,0}} parameter(0)
  %u = f32[10,8]{{1,0}} parameter(1)
  %k = s32[] parameter(2)
  ROOT %o = {line}
}}
"""
    assert moved(text) == nbytes


def product_of(operands, attributes="", platform="tpu", kind="convolution"):
    """The product of a program whose fusion casts an operand before it is multiplied."""
    given, cast = operands
    text = f"""%product (a: {given}[32,16], b: bf16[16,8]) -> f32[32,8] {{
  %a = {given}[32,16]{{1,0}} parameter(0)
  %b = bf16[16,8]{{1,0}} parameter(1)
  %wide = {cast}[32,16]{{1,0}} convert(%a)
  %other = {cast}[16,8]{{1,0}} convert(%b)
  ROOT %c = f32[32,8]{{1,0}} {kind}(%wide, %other), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}{attributes}
}}
ENTRY %main (x: {given}[32,16], y: bf16[16,8]) -> f32[32,8] {{
  %x = {given}[32,16]{{1,0}} parameter(0)
  %y = bf16[16,8]{{1,0}} parameter(1)
  ROOT %f = f32[32,8]{{1,0}} fusion(%x, %y), kind=kOutput, calls=%product
}}
"""
    program = programs.parse(text)
    (found,) = costs.products(program, platform)
    main = program.computations[program.entry]
    assert list(costs.products_of(program, platform, main, main["f"])) == [found]
    return found


HIGHEST, HIGH = ", operand_precision={highest,highest}", ", operand_precision={high,high}"
BFLOAT16, FLOAT32, TF32 = ("bfloat16",) * 2, ("float32",) * 2, ("tf32",) * 2


@pytest.mark.parametrize(
    ("operands", "attributes", "platform", "wanted"),
    [
        (("bf16", "bf16"), "", "tpu", (BFLOAT16, "MXU", 1)),
        (("bf16", "f32"), "", "tpu", (BFLOAT16, "MXU", 1)),
        (("bf16", "f32"), HIGHEST, "tpu", (BFLOAT16, "MXU", 1)),
        (("f32", "f32"), "", "tpu", (BFLOAT16, "MXU", 1)),
        (("f32", "f32"), HIGH, "tpu", (("float32", "bfloat16"), "MXU", 3)),
        (("f32", "f32"), HIGHEST, "tpu", (("float32", "bfloat16"), "MXU", 6)),
        (("bf16", "bf16"), "", "gpu", (BFLOAT16, "tensor cores", 1)),
        (("bf16", "f32"), "", "gpu", (TF32, "tensor cores", 1)),
        (("bf16", "f32"), ", algorithm=dot_bf16_bf16_f32", "gpu", (BFLOAT16, "tensor cores", 1)),
        (("f32", "f32"), ", algorithm=dot_bf16_bf16_f32_x3", "gpu", (BFLOAT16, "tensor cores", 3)),
        (("f32", "f32"), ", algorithm=dot_tf32_tf32_f32", "gpu", (TF32, "tensor cores", 1)),
        (("f32", "f32"), HIGHEST, "gpu", (FLOAT32, "CUDA cores", 1)),
    ],
)
def test_a_product_has_the_types_and_the_unit_that_multiply(operands, attributes, platform, wanted):
    found = product_of(operands, attributes, platform)
    assert found[:3] == wanted
    assert found.flops == 2 * 32 * 8 * 16


def test_the_products_of_a_library_are_found():
    config = '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]},'
    config += '"precision_config":{"operand_precision":["HIGHEST","HIGHEST"],"algorithm":"ALG_UNSET"}}'
    text = f"""ENTRY %main (x: f32[32,16], y: f32[16,8]) -> f32[32,8] {{
  %x = f32[32,16]{{1,0}} parameter(0)
  %y = f32[16,8]{{1,0}} parameter(1)
  %z = (f32[32,8]{{1,0}}, s8[64]{{0}}) custom-call(%x, %y), custom_call_target="__cublas$gemm", backend_config={config}
  ROOT %o = f32[32,8]{{1,0}} get-tuple-element(%z), index=0
}}
"""
    (found,) = costs.products(programs.parse(text), "gpu")
    assert found == (FLOAT32, "CUDA cores", 1, 2 * 32 * 8 * 16)
    (found,) = costs.products(programs.parse(text.replace("ALG_UNSET", "ALG_DOT_BF16_BF16_F32")), "gpu")
    assert found[:3] == (BFLOAT16, "tensor cores", 1)
    assert not list(costs.products(programs.parse(text.replace("gemm", "sort")), "gpu"))


def test_a_roofline_is_the_longer_of_bytes_and_products():
    text = """ENTRY %main (x: f32[4096,4096]) -> f32[4096,4096] {
  %x = f32[4096,4096]{1,0} parameter(0)
  %y = f32[4096,4096]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}, PRECISION
  ROOT %z = f32[4096,4096]{1,0} negate(%y)
}
"""
    seconds = lambda text: programs.total(programs.parse(text), costs.roofline)
    array = 4 * 4096**2
    for precision, rate in (("operand_precision={highest,highest}", 67e12), ("metadata={}", 495e12)):
        wanted = 2 * 4096**3 / rate + 2 * array / 3.35e12
        assert seconds(text.replace("PRECISION", precision)) == pytest.approx(wanted)
    thin = text.replace("lhs_contracting_dims={1}", "lhs_contracting_dims={}")
    assert seconds(thin) == pytest.approx(4 * array / 3.35e12)


# --- the command -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "package"), [("v5e", "libtpu"), ("h100", "jax_cuda12_plugin")])
def test_a_missing_compiler_is_named_in_one_sentence(kind, package, monkeypatch, capsys):
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
    assert __main__.main(["--compile-for", kind]) == 1
    wanted = f"To compile for {kind}, {package} is needed: `make compilers` makes an environment with it.\n"
    assert capsys.readouterr().err == wanted


def test_an_unknown_device_is_refused(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["--compile-for", "v99"])
    assert "invalid choice: 'v99'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["v5e", "h100"])
def test_the_tables_are_printed_and_written(kind, tmp_path, monkeypatch, capsys):
    found = (costs.Product(BFLOAT16, "MXU", 1, math.nan), costs.Product(FLOAT32, "MXU", 6, math.nan))
    cost = iter(range(10**6, 10**9, 10**6))
    monkeypatch.setattr(compilers, "estimate", lambda *_: compilers.Estimate(next(cost), 2 * 10**9, found))
    monkeypatch.setattr(compilers, "missing", lambda kind: None)
    monkeypatch.setattr(compilers, "prepare", lambda: None)
    assert compilers.run(kind, tmp_path) == 0
    assert "nothing was run" in capsys.readouterr().out
    figures = json.loads((tmp_path / f"{kind}-compiled.json").read_text())
    assert figures["versions"]["jax"] == jax.__version__
    assert [len(row["results"]) for row in figures["rows"]] == [5] * 7
    table = (tmp_path / f"{kind}-compiled.md").read_text()
    assert table.startswith(f"Programs compiled for {kind}: an estimate of the compiler; nothing was run.")
    first = figures["rows"][0]["results"]
    assert first["softjax"]["ratio"] == 1.5  # the third program of the row
    if kind == "v5e":
        assert first["softjax"] == first["softjax, blocks of 2048"]  # one program
        assert "| optax | 2.0 | 1.000 | 2.000 | 1.000 | MXU, 6 passes: float32; MXU: bfloat16 |" in table
    monkeypatch.chdir(tmp_path)
    assert compilers.run(kind, small=True) == 0
    assert not compilers.RESULTS.exists()


def test_a_function_is_compiled_for_the_description(monkeypatch):
    """With the compiler of this machine in place of another's."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    monkeypatch.setattr(targets, "device", lambda kind: here)
    arguments = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((64, 32), (32, 16))]
    found = costs.estimate(targets.KINDS["v5e"], lambda a, b: a @ b, arguments)
    assert found.cost == 0  # a CPU's program has no estimates


@pytest.mark.parametrize("kind", ["v5e", "h100"])
def test_a_device_is_described(kind, monkeypatch):
    asked = {}

    def describe(**options):
        asked.update(options)
        return types.SimpleNamespace(devices=jax.devices())

    monkeypatch.setattr(_jax.topologies, "get_topology_desc", describe)
    with contextlib.closing(types.SimpleNamespace(close=targets.device.cache_clear)):
        targets.device.cache_clear()
        assert targets.device(targets.KINDS[kind]).device_set == {jax.devices()[0]}
    assert asked["platform"] == {"v5e": "tpu", "h100": "cuda"}[kind]
    assert ("core_count: 132" in asked.get("target_config", "")) == (kind == "h100")


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_the_program_for_a_tpu_multiplies_in_bfloat16_and_keeps_a_block():
    pytest.importorskip("libtpu", reason="needs the compiler of TPUs: make compilers")
    targets.prepare()
    kind = targets.KINDS["v5e"]
    layer = next(compilers.comparisons(kind)).row
    chosen = ("optax", compilers.ALL_SCORES, "softjax, blocks of 2048")
    layer = layer._replace(contestants={name: layer.contestants[name] for name in chosen})
    found = compilers.estimates(kind, layer)
    for name in chosen[1:]:
        assert len(found[name].products) >= 3
        assert {(p.types, p.unit, p.passes) for p in found[name].products} == {(BFLOAT16, "MXU", 1)}
    assert found["softjax, blocks of 2048"].temporaries < 0.2e9
    assert found[compilers.ALL_SCORES].cost <= 1.05 * found["optax"].cost
