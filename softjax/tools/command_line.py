"""The command line: `python -m softjax` with `demo`, `lm`, `explain`, `bench` or `audit`."""

import argparse
import functools as ft
import importlib
import re
import sys
from pathlib import Path

from softjax import _checks


def _positive(text: str) -> int:
    try:
        return _checks.positive("value", int(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}") from error


def _mesh(text: str) -> tuple[int, int]:
    numbers = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if numbers is None:
        raise argparse.ArgumentTypeError(f"must be devices along data x along classes, as 2x4, got {text!r}")
    return int(numbers[1]), int(numbers[2])


def _at_least(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be an integer of at least {least}, got {text!r}")
    return int(text)


def _file(suffix: str, text: str) -> Path:
    path = Path(text)
    if path.suffix != suffix or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be a {suffix} file in a folder that exists, got {text!r}")
    return path


def _bytes(text: str) -> int:
    units = {"": 1, "MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
    parts = re.fullmatch(r"(\d+\.?\d*(?:e\d+)?) ?([MG]i?B)?", text)
    size = float(parts[1]) * units[parts[2] or ""] if parts else 0
    if not 1 <= size < 1e18:
        raise argparse.ArgumentTypeError(f"must be a number of bytes, as 16e9, 16GB or 16GiB, got {text!r}")
    return int(size)


def _folder(text: str) -> Path:
    path = Path(text)
    if not path.is_dir() and (path.exists() or not path.parent.is_dir()):
        raise argparse.ArgumentTypeError(f"must be a folder, or a new one in a folder that exists, got {text!r}")
    return path


# Those of `explain`, which is imported when it is needed.
DEVICES = ("here", "cpu", "v4", "v5e", "v5p", "v6e", "a100", "h100", "h200")
_seed, _several = ft.partial(_at_least, 0), ft.partial(_at_least, 2)
_picture, _report = ft.partial(_file, ".png"), ft.partial(_file, ".json")


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    parser = argparse.ArgumentParser("python -m softjax", description="Softmax-family losses for JAX.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="train a mixture autoencoder on handwritten digits, and draw the result")
    demo.add_argument("--steps", type=_positive, default=3000, help="steps of Adam (default: %(default)s)")
    demo.add_argument(
        "-K", "--classes", type=_positive, default=256, help="centers of the mixture (default: %(default)s)"
    )
    demo.add_argument("-D", "--latents", type=_positive, default=2, help="dimensions of z (default: %(default)s)")
    demo.add_argument(
        "--seed", type=_seed, default=0, help="seed of the split, the model and the batches (default: %(default)s)"
    )
    demo.add_argument(
        "-o", "--output", type=_picture, default=Path("digits.png"), help="the PNG file to write (default: %(default)s)"
    )
    bench = commands.add_parser("bench", help="time and memory beside optax, PyTorch, KeOps and the plain formulas")
    bench.add_argument("--rounds", type=_positive, default=7, help="runs of each contestant (default: %(default)s)")
    bench.add_argument("-k", dest="text", default="", help="only rows whose name contains this")
    bench.add_argument("--small", action="store_true", help="small sizes, to show that it runs")
    bench.add_argument("--placements", action="store_true", help="compare the default placement with others")
    bench.add_argument(
        "--compile-for",
        choices=("v5e", "v5p", "v6e", "h100"),
        help="a compiler's estimates for a device that is not there",
    )
    bench.add_argument("--accelerator", action="store_true", help="checks and times on a GPU or TPU, in 8 minutes")
    bench.add_argument("--chart", action="store_true", help="memory and time against the number of classes")
    bench.add_argument(
        "--folder",
        type=_folder,
        help="where --compile-for, --accelerator and --chart write (default: benchmarks/results)",
    )
    bench.add_argument("-o", "--output", type=_picture, help="a PNG file to write")
    bench.add_argument("--json", type=_report, help="a JSON file to write")
    explain = commands.add_parser(
        "explain",
        help="will it fit? memory and products of a linear cross entropy, beside dense logits; nothing runs",
        description="Memory and matrix products of a linear cross entropy with its gradients, beside dense logits, and "
        "whether they fit in the memory of a device. Nothing runs. The figures are those of the compiled program where "
        "there is a compiler for the device, else of a model of cost; the output says which. The exit code is 0 "
        "whether or not it fits.",
    )
    explain.add_argument("N", type=_positive, help="examples, for a language model the tokens of a batch")
    explain.add_argument("D", type=_positive, help="features of an example")
    explain.add_argument("K", type=_positive, help="classes")
    explain.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32",
        help="the type of features and kernel (default: %(default)s)",
    )  # fmt: skip
    explain.add_argument(
        "--reduction", choices=("mean", "sum", "none"), default="mean", help="of the losses (default: %(default)s)"
    )
    explain.add_argument(
        "--device", choices=DEVICES, default="here",
        help="the device: here is that on which JAX runs (default: %(default)s)",
    )  # fmt: skip
    explain.add_argument("--memory", type=_bytes, help="its memory, as 16e9, 16GB or 16GiB (default: all it has)")
    explain.add_argument("--model", action="store_true", help="take the model of cost, without compiling")
    explain.add_argument("--json", action="store_true", help="print JSON in place of the table; sizes are in bytes")
    audit = commands.add_parser("audit", help="errors of values and derivatives against 50 digits")
    audit.add_argument("--quick", action="store_true", help="fewer scenarios, with few classes")
    audit.add_argument("-k", dest="text", default="", help="only functions whose name contains this")
    audit.add_argument("--json", type=_report, help="a JSON file to write")
    lm = commands.add_parser("lm", help="train a language model whose classes are sharded over a mesh of devices")
    lm.add_argument("--steps", type=_positive, default=200, help="steps of Adam (default: %(default)s)")
    lm.add_argument(
        "--mesh", type=_mesh, default=(2, 4), help="devices along data x along classes; 1x1 is one (default: 2x4)"
    )
    lm.add_argument(
        "--vocabulary", type=_several, default=50_000, help="number of classes, that is, tokens (default: %(default)s)"
    )
    lm.add_argument("--seed", type=_seed, default=0, help="seed of the model and the batches (default: %(default)s)")
    lm.add_argument("--checkpoints", type=_folder, help="a folder to write checkpoints to, and to resume from")
    lm.add_argument("--every", type=_positive, default=100, help="steps between checkpoints (default: %(default)s)")
    lm.add_argument("--compare", action="store_true", help="train on one device too, and compare the losses")
    lm.add_argument(
        "-o", "--output", type=_picture, default=Path("lm.png"), help="the PNG file to write (default: %(default)s)"
    )
    lm.add_argument("--json", type=_report, help="a JSON file to write")
    options = parser.parse_args(argv)
    module = {"lm": "language_model"}.get(options.command, options.command)
    if options.command == "bench":
        ways = {"compilers": options.compile_for, "accelerator": options.accelerator, "chart": options.chart}
        module = next((name for name, asked in ways.items() if asked), "bench")
    try:
        tool = importlib.import_module(f"softjax.tools.{module}")
        if getattr(options, "output", None):  # what draws is missing before the work, and not after it
            importlib.import_module("softjax.tools.pictures")
    except ModuleNotFoundError as error:
        extra = "audit" if options.command == "audit" else "demo"
        advice = f"pip install '.[{extra}]' in a clone of the repository"
        print(f"The {options.command} needs {error.name}: {advice}", file=sys.stderr)
        return 1
    try:
        if options.command == "demo":
            return tool.run(options.steps, options.classes, options.latents, options.seed, options.output)
        if options.command == "lm":
            return tool.run(
                options.mesh, options.steps, options.vocabulary, options.seed, options.checkpoints, options.every,
                options.compare, options.output, options.json,
            )  # fmt: skip
        if options.command == "explain":
            problem = tool.Problem(options.N, options.D, options.K, options.dtype, options.reduction)
            return tool.run(problem, options.device, options.memory, options.json, not options.model)
        if options.command == "audit":
            return tool.run(options.quick, options.text, options.json)
        if module == "compilers":
            return tool.run(options.compile_for, options.folder, options.small)
        if module == "accelerator":
            return tool.run(options.folder, options.small)
        if module == "chart":
            return tool.run(options.rounds, options.folder, options.small)
        if options.placements:
            return tool.run_placements(options.rounds, options.small)
        return tool.run(options.rounds, options.small, options.text, options.output, options.json)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
