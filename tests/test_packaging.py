"""The wheel and the source archive: what is in them, and that the wheel works with JAX alone."""

import email
import pathlib
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

import softjax
from benchmarks import __main__

ROOT = pathlib.Path(softjax.__file__).parents[1]
COMMANDS = {"demo": "demo", "audit": "audit"}
BENCHMARKS = {"benchmark": [], "lm": ["lm"]}
NAME = f"softjax_losses-{softjax.__version__}"
# A program of a package, where only JAX and what it needs can be imported besides.
ALONE = """
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
sys.argv = ["{package}", *sys.argv[1:]]
runpy.run_module("{package}", run_name="__main__")
"""
OPTIONAL = {"optax", "rich", "matplotlib", "flax", "sklearn", "mpmath", "orbax", "chex", "equinox", "sympy", "torch"}


def done(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)


def benchmark_modules():
    return {path.name for path in (ROOT / "benchmarks").glob("*.py") if not path.name.startswith("__")}


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    pytest.importorskip("hatchling", reason="builds the archives")
    folder = tmp_path_factory.mktemp("archives")
    built = done(sys.executable, "-m", "hatchling", "build", "-d", str(folder), cwd=ROOT)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def installed(archives):
    """The folder that the wheel is installed in, without anything else."""
    with zipfile.ZipFile(archives / f"{NAME}-py3-none-any.whl") as wheel:
        wheel.extractall(archives / "site")
    return archives / "site"


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_needs_jax_alone(archives):
    with zipfile.ZipFile(archives / f"{NAME}-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())
        metadata = email.message_from_bytes(wheel.read(f"{NAME}.dist-info/METADATA"))
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "softjax").rglob("*.py")}
    others = {name for name in names if not name.startswith(f"{NAME}.dist-info/")}
    assert others == package | {"softjax/py.typed"}
    assert benchmark_modules()
    assert not {pathlib.PurePath(name).name for name in others} & benchmark_modules()
    needed = [line.partition(">")[0] for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert needed == ["jax", "jaxlib"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload(decode=True).decode().strip() == (ROOT / "README.md").read_text().strip()


@pytest.mark.slow
def test_the_source_archive_holds_what_its_tests_need_and_nothing_else(archives):
    with tarfile.open(archives / f"{NAME}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    files = done("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    if files.returncode == 0:  # else the tests run in a source archive
        assert names - {"PKG-INFO"} == {name for name in files.stdout.split() if not name.startswith(".ci/")}
    assert {"softjax/__init__.py", "tests/conftest.py", "README.md", "LICENSE", "notebooks/digits.png"} <= names
    assert not any("__pycache__" in name or name.startswith("dist") for name in names)


@pytest.mark.slow
def test_a_loss_works_with_jax_alone(installed, tmp_path):
    code = (
        "import softjax, jax, jax.numpy as jnp; print(softjax.__file__); "
        "print(jax.grad(lambda x: softjax.linear_softmax_cross_entropy(x, jnp.zeros((2, 4)), jnp.array([1]), "
        "reduction='mean'))(jnp.ones((1, 2))).shape)"
    )
    absent = f"import sys; sys.modules.update(dict.fromkeys({sorted(OPTIONAL)})); "
    ran = done(sys.executable, "-c", absent + code, cwd=tmp_path, env={"PYTHONPATH": str(installed)})
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [str(installed / "softjax" / "__init__.py"), "(1, 2)"]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_without_its_extra_says_in_a_line_what_to_install(command, installed, tmp_path):
    code = ALONE.format(absent=sorted(OPTIONAL), package="softjax")
    ran = done(sys.executable, "-c", code, command, cwd=tmp_path, env={"PYTHONPATH": str(installed)})
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"The {command} needs ")
    assert line.endswith(f": pip install '.[{COMMANDS[command]}]' in a clone of the repository")


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_without_its_extra_says_in_a_line_what_to_install(name):
    code = ALONE.format(absent=sorted(OPTIONAL), package="benchmarks")
    ran = done(sys.executable, "-c", code, *BENCHMARKS[name], cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"The {name} needs ")
    assert line.endswith(": pip install '.[demo]' in a clone of the repository")


def test_the_wheel_is_made_of_the_package_alone():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert build["wheel"] == {"packages": ["softjax"]}
    assert not {path.name for path in (ROOT / "softjax").rglob("*.py")} & benchmark_modules()


@pytest.mark.slow
def test_the_answer_whether_it_fits_needs_no_extra(installed, tmp_path):
    code = ALONE.format(absent=sorted(OPTIONAL), package="softjax")
    arguments = ("explain", "64", "8", "128", "--device", "cpu")
    ran = done(sys.executable, "-c", code, *arguments, cwd=tmp_path, env={"PYTHONPATH": str(installed)})
    assert ran.returncode == 0, ran.stderr
    assert "fits: " in ran.stdout


def test_a_picture_that_cannot_be_drawn_is_refused_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "benchmarks.drawings", None)
    assert __main__.main(["-o", str(tmp_path / "bench.png")]) == 1
    assert "pip install '.[demo]'" in capsys.readouterr().err
