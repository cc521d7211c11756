"""The language model trains alike over a mesh of devices and on one, and goes on where it stopped."""

import base64
import json
import math
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from benchmarks import __main__

pytestmark = pytest.mark.slow


def command(folder, *options):
    files = ["--json", str(folder / "lm.json"), "-o", str(folder / "lm.png")]
    return [sys.executable, "-m", "benchmarks", "lm", *files, *options]


def losses(folder):
    return {name: curve["losses"] for name, curve in json.loads((folder / "lm.json").read_text())["curves"].items()}


def compared(folder, *options):
    """(the output of the command, its losses over the mesh), after comparing these with the losses of one device."""
    done = subprocess.run(
        command(folder, "--compare", *options), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    over_mesh, alone = losses(folder).values()
    np.testing.assert_allclose(over_mesh, alone, rtol=1e-5)
    return done.stdout, over_mesh


def test_eight_devices_train_50000_classes_as_one_does(tmp_path):
    printed, curve = compared(tmp_path, "--mesh", "2x4", "--steps", "4")
    assert curve[0] == pytest.approx(math.log(50_000), rel=0.01)
    assert (np.diff(curve) < 0).all()
    assert printed.count("held (12500, 64) of the output embedding (50000, 64)") == 8
    assert (tmp_path / "lm.png").read_bytes().startswith(base64.b64decode("iVBORw0KGgo="))


def test_after_ctrl_c_training_goes_on_as_if_nothing_had_been(tmp_path, capsys):
    """Over another mesh too, with classes that its devices do not divide."""
    checkpoints = tmp_path / "checkpoints"
    options = ["--checkpoints", str(checkpoints), "--vocabulary", "1001"]
    first = command(tmp_path, "--mesh", "2x4", "--steps", "10000000", "--every", "2", *options)
    with subprocess.Popen(first, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as lm:
        end = time.monotonic() + 120
        while not (checkpoints / "2").exists() and lm.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        lm.send_signal(signal.SIGINT)
        out, err = lm.communicate(timeout=120)
    assert lm.returncode == 130, err
    assert "Traceback" not in err
    before = losses(tmp_path)["2x4"]
    assert f"Stopped after {len(before)} of 10000000 steps" in out

    printed, curve = compared(tmp_path, "--mesh", "1x4", "--steps", str(len(before) + 2), *options)
    assert len(curve) == len(before) + 2
    assert curve[: len(before)] == before
    assert printed.count("held (251, 64) of the output embedding (1004, 64)") == 4

    assert jax.devices()  # the number of which is left as it is
    assert __main__.main(["lm", "--mesh", "1x1", "--seed", "1", *options]) == 1
    assert "The checkpoint is of {'tokens': " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mesh", "8"], "must be devices along data x along classes, as 2x4, got '8'"),
        (["--mesh", "0x8"], "got '0x8'"),
        (["--vocabulary", "1"], "must be an integer of at least 2, got '1'"),
        (["--steps", "-1"], "must be a positive integer, got '-1'"),
        (["--checkpoints", __file__], "must be a folder, or a new one in a folder that exists"),
        (["--json", "lm.txt"], "must be a .json file in a folder that exists, got 'lm.txt'"),
    ],
)
def test_bad_options_are_refused_in_words(options, message, capsys):
    with pytest.raises(SystemExit):
        __main__.main(["lm", *options])
    assert message in capsys.readouterr().err


def test_a_mesh_that_cannot_be_is_refused_in_words(capsys):
    devices = jax.devices()
    for mesh, message in [
        ("1x4096", f"The mesh needs 4096 devices, and JAX has {len(devices)} ({devices[0].platform})."),
        ("3x1", "The devices along data must divide the 16 examples of a batch, got 3."),
    ]:
        assert __main__.main(["lm", "--mesh", mesh]) == 1
        assert capsys.readouterr().err == message + "\n"
