"""The command line: `python -m benchmarks`, and `python -m benchmarks lm`, from a clone of the repository."""

import argparse
import functools as ft
import re
import sys
from pathlib import Path
from types import ModuleType

from softjax.tools.options import at_least, picture, positive, report, run, seed


def _mesh(text: str) -> tuple[int, int]:
    numbers = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if numbers is None:
        raise argparse.ArgumentTypeError(f"must be devices along data x along classes, as 2x4, got {text!r}")
    return int(numbers[1]), int(numbers[2])


def _folder(text: str) -> Path:
    path = Path(text)
    if not path.is_dir() and (path.exists() or not path.parent.is_dir()):
        raise argparse.ArgumentTypeError(f"must be a folder, or a new one in a folder that exists, got {text!r}")
    return path


_several = ft.partial(at_least, 2)


def main(argv: list[str] | None = None) -> int:
    """Runs a benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description="Time and memory beside optax, PyTorch, KeOps and the plain formulas."
    )
    parser.add_argument("--rounds", type=positive, default=7, help="runs of each contestant (default: %(default)s)")
    parser.add_argument("-k", dest="text", default="", help="only rows whose name contains this")
    parser.add_argument("--small", action="store_true", help="small sizes, to show that it runs")
    parser.add_argument("--placements", action="store_true", help="compare the default placement with others")
    parser.add_argument(
        "--compile-for",
        choices=("v5e", "v5p", "v6e", "h100"),
        help="a compiler's estimates for a device that is not there",
    )
    parser.add_argument("--accelerator", action="store_true", help="checks and times on a GPU or TPU, in 8 minutes")
    parser.add_argument("--chart", action="store_true", help="memory and time against the number of classes")
    parser.add_argument(
        "--folder",
        type=_folder,
        help="where --compile-for, --accelerator and --chart write (default: benchmarks/results)",
    )
    parser.add_argument("-o", "--output", type=picture, help="a PNG file to write")
    parser.add_argument("--json", type=report, help="a JSON file to write")
    commands = parser.add_subparsers(dest="command")
    lm = commands.add_parser("lm", help="train a language model whose classes are sharded over a mesh of devices")
    lm.add_argument("--steps", type=positive, default=200, help="steps of Adam (default: %(default)s)")
    lm.add_argument(
        "--mesh", type=_mesh, default=(2, 4), help="devices along data x along classes; 1x1 is one (default: 2x4)"
    )
    lm.add_argument(
        "--vocabulary", type=_several, default=50_000, help="number of classes, that is, tokens (default: %(default)s)"
    )
    lm.add_argument("--seed", type=seed, default=0, help="seed of the model and the batches (default: %(default)s)")
    lm.add_argument("--checkpoints", type=_folder, help="a folder to write checkpoints to, and to resume from")
    lm.add_argument("--every", type=positive, default=100, help="steps between checkpoints (default: %(default)s)")
    lm.add_argument("--compare", action="store_true", help="train on one device too, and compare the losses")
    lm.add_argument(
        "-o", "--output", type=picture, default=Path("lm.png"), help="the PNG file to write (default: %(default)s)"
    )
    lm.add_argument("--json", type=report, help="a JSON file to write")
    options = parser.parse_args(argv)
    ways = {
        "language_model": options.command == "lm",
        "compilers": options.compile_for,
        "accelerator": options.accelerator,
        "chart": options.chart,
    }
    module = next((name for name, asked in ways.items() if asked), "bench")
    modules = [f"benchmarks.{module}"]
    if options.output:  # what draws is missing before the work, and not after it
        modules.append("benchmarks.drawings")
    return run(options.command or "benchmark", "demo", modules, ft.partial(_call, module, options))


def _call(module: str, options: argparse.Namespace, tool: ModuleType) -> int:
    if module == "language_model":
        return tool.run(
            options.mesh, options.steps, options.vocabulary, options.seed, options.checkpoints, options.every,
            options.compare, options.output, options.json,
        )  # fmt: skip
    if module == "compilers":
        return tool.run(options.compile_for, options.folder, options.small)
    if module == "accelerator":
        return tool.run(options.folder, options.small)
    if module == "chart":
        return tool.run(options.rounds, options.folder, options.small)
    if options.placements:
        return tool.run_placements(options.rounds, options.small)
    return tool.run(options.rounds, options.small, options.text, options.output, options.json)


if __name__ == "__main__":
    sys.exit(main())
