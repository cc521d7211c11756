"""The code in the README, the pages and the notebooks runs, and so do the commands."""

import base64
import contextlib
import importlib
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import nbclient
import nbformat
import pytest

import benchmarks.__main__
from benchmarks import bench
from softjax import __main__

from . import snippets

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


README, CHINESE = ROOT / "README.md", ROOT / "README.zh.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = {f"{page.stem}-{i}": (page, block) for page in PAGES for i, block in enumerate(snippets.blocks(page))}


def of_pages():
    """The blocks of the README are fast, and one in two of the others."""
    for i, name in enumerate(BLOCKS):
        yield pytest.param(name, marks=[pytest.mark.slow] if i % 2 and not name.startswith("README") else [])


@pytest.mark.parametrize("name", list(of_pages()))
def test_a_block_of_code_runs_by_itself_and_prints_its_comments(name):
    page, block = BLOCKS[name]
    assert snippets.run(block, page, {})


def test_links_of_the_pages_lead_to_files_and_to_headings():
    for page in (*PAGES, CHINESE):
        for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", page.read_text()):
            target = page.parent / link if link else page
            assert target.exists(), f"{page.name}: {link}"
            if anchor:
                titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
                assert anchor in [re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles], link


def test_the_readme_is_short_and_has_both_commands():
    text = README.read_text()
    assert len(text.splitlines()) <= 220
    for command in ("make demo", "make test"):
        assert f"\n    {command} " in text


def test_the_chinese_readme_has_the_same_code_names_and_figures():
    assert snippets.blocks(CHINESE) == snippets.blocks(README)
    for pattern in (r"`[^`\n]+`", r"\d+\.\d+", r"\]\(([^)#]+)"):
        ours, wanted = (set(re.findall(pattern, page.read_text())) for page in (CHINESE, README))
        assert ours ^ wanted <= {"README.md", "README.zh.md"}


def test_the_readme_names_every_public_function():
    import softjax

    text = (ROOT / "README.md").read_text()
    public = [name for name in vars(softjax) if not name.startswith("_") and callable(getattr(softjax, name))]
    assert public
    assert [name for name in public if f"`{name}" not in text] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_holds_its_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert all(cell.execution_count for cell in code)
    kinds = [kind for cell in code for output in cell.outputs for kind in output.get("data", {})]
    assert "image/png" in kinds
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()


def test_there_is_a_notebook():
    assert "the_rule" in [path.stem for path in NOTEBOOKS]
    for path in NOTEBOOKS:
        assert str(ROOT) not in path.read_text()


def run(*arguments, package="softjax"):
    command = [sys.executable, "-m", package, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT)


@pytest.mark.slow
def test_the_demo_trains_measures_and_draws(tmp_path):
    picture = tmp_path / "digits.png"
    done = run("demo", "--steps", "60", "-K", "32", "--seed", "1", "-o", str(picture))
    assert done.returncode == 0, done.stderr
    errors = [float(e) for e in re.findall(r"error (\S+) in reverse mode, (\S+) in forward", done.stdout)[0]]
    assert max(errors) < 1e-5
    ours, pca = (float(p) for p in re.findall(r"autoencoder (\S+)%, PCA (\S+)%", done.stdout)[0])
    assert 0 < ours < 100
    assert 0 < pca < 100
    assert len(re.findall(r"[\d.]+ ms and [\d.]+ MB of temporaries", done.stdout)) == 2
    assert picture.read_bytes().startswith(base64.b64decode("iVBORw0KGgo="))


@pytest.mark.slow
def test_ctrl_c_ends_the_demo_cleanly(tmp_path):
    command = [sys.executable, "-u", "-m", "softjax", "demo", "--steps", "10000000", "-o", str(tmp_path / "digits.png")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stdout
        demo.stdout.readline()  # the check; training begins
        with contextlib.suppress(subprocess.TimeoutExpired):
            demo.wait(8)
        demo.send_signal(signal.SIGINT)
        out, err = demo.communicate(timeout=120)
    assert demo.returncode == 130
    assert "Traceback" not in err
    assert re.search(r"Stopped after \d+ of 10000000 steps", out)


@pytest.mark.slow
def test_the_benchmark_measures_reports_and_draws(tmp_path):
    picture, report = tmp_path / "bench.png", tmp_path / "bench.json"
    done = run("--small", "--rounds", "1", "--json", str(report), "-o", str(picture), package="benchmarks")
    assert done.returncode == 0, done.stderr
    figures = json.loads(report.read_text())
    assert figures["machine"]["versions"]["jax"] == jax.__version__
    assert len(figures["rows"]) == 21
    limits = [limit for row in figures["rows"] for limit in row.get("limits", ())]
    assert len(limits) == 37
    assert all(limit["ratio"] > 0 and limit["most"] is None for limit in limits if limit["what"] == "time")
    for row in figures["rows"]:
        assert row["name"] in done.stdout
        for result in row.get("results", {}).values():
            assert result["seconds"] > 0
    assert picture.read_bytes().startswith(base64.b64decode("iVBORw0KGgo="))


@pytest.mark.slow
def test_the_benchmark_compares_placements():
    done = run("--small", "--rounds", "1", "--placements", package="benchmarks")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("│ softjax ") == 5  # rows of tables


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["demo", "--steps", "0"], "must be a positive integer, got '0'"),
        (["demo", "--seed", "x"], "must be an integer of at least 0, got 'x'"),
        (["demo", "-o", "digits.jpg"], "must be a .png file in a folder that exists, got 'digits.jpg'"),
    ],
)
def test_options_are_read_with_care(options, message, capsys):
    with pytest.raises(SystemExit):
        __main__.main(options)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "main", "command"),
    [
        ("softjax.tools.demo", __main__.main, ["demo"]),
        ("softjax.tools.audit", __main__.main, ["audit"]),
        ("benchmarks.bench", benchmarks.__main__.main, []),
        ("benchmarks.language_model", benchmarks.__main__.main, ["lm"]),
    ],
)
def test_ctrl_c_ends_a_command_with_a_word(module, main, command, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(module), "run", interrupted)
    assert main(command) == 130
    assert capsys.readouterr().err == "Stopped.\n"


def test_a_slow_contestant_is_not_run_again_and_an_absent_one_has_no_ratio(monkeypatch, capsys):
    clock = iter(range(0, 10**6, 4))  # every look at it is 4 seconds later
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    runs = []

    def prepare():
        return lambda: runs.append(1)

    prepare.eager = True
    limits = (bench.Limit("absent", "time", 1.0), bench.Limit("eager", "temporaries", 1.0))
    row = bench.Row("a row", (), {bench.OURS: lambda: jax.numpy.zeros(()), "eager": prepare}, limits)
    results = bench.measure(row, 5)
    assert (results["eager"].runs, results[bench.OURS].runs) == (2, 5)
    assert results["eager"].seconds == 4
    assert [bench._ratio(results, limit) for limit in limits] == [None, None]
    monkeypatch.setattr(bench, "rows", lambda small: [row])
    monkeypatch.setattr(bench, "growth", lambda small: [])
    assert bench.run(1, True, "row", None, None) == 0
    assert "a row" in capsys.readouterr().out
    assert bench.run(1, True, "another", None, None) == 0
    assert "a row" not in capsys.readouterr().out


def test_bad_options_are_refused_in_words():
    done = run("demo", "--steps", "0")
    assert done.returncode == 2
    assert "must be a positive integer, got '0'" in done.stderr
    with pytest.raises(SystemExit) as ended:
        __main__.main([])
    assert ended.value.code == 2
