"""The command line: `python -m softjax` with `demo`, `explain` or `audit`."""

import argparse
import re
from pathlib import Path

from .options import picture, positive, report, run, seed


def _bytes(text: str) -> int:
    units = {"": 1, "MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
    parts = re.fullmatch(r"(\d+\.?\d*(?:e\d+)?) ?([MG]i?B)?", text)
    size = float(parts[1]) * units[parts[2] or ""] if parts else 0
    if not 1 <= size < 1e18:
        raise argparse.ArgumentTypeError(f"must be a number of bytes, as 16e9, 16GB or 16GiB, got {text!r}")
    return int(size)


# Those of `explain`, which is imported when it is needed.
DEVICES = ("here", "cpu", "v4", "v5e", "v5p", "v6e", "a100", "h100", "h200")


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    parser = argparse.ArgumentParser("python -m softjax", description="Softmax-family losses for JAX.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="train a mixture autoencoder on handwritten digits, and draw the result")
    demo.add_argument("--steps", type=positive, default=3000, help="steps of Adam (default: %(default)s)")
    demo.add_argument(
        "-K", "--classes", type=positive, default=256, help="centers of the mixture (default: %(default)s)"
    )
    demo.add_argument("-D", "--latents", type=positive, default=2, help="dimensions of z (default: %(default)s)")
    demo.add_argument(
        "--seed", type=seed, default=0, help="seed of the split, the model and the batches (default: %(default)s)"
    )
    demo.add_argument(
        "-o", "--output", type=picture, default=Path("digits.png"), help="the PNG file to write (default: %(default)s)"
    )
    explain = commands.add_parser(
        "explain",
        help="will it fit? memory and products of a linear cross entropy, beside dense logits; nothing runs",
        description="Memory and matrix products of a linear cross entropy with its gradients, beside dense logits, and "
        "whether they fit in the memory of a device. Nothing runs. The figures are those of the compiled program where "
        "there is a compiler for the device, else of a model of cost; the output says which. The exit code is 0 "
        "whether or not it fits.",
    )
    explain.add_argument("N", type=positive, help="examples, for a language model the tokens of a batch")
    explain.add_argument("D", type=positive, help="features of an example")
    explain.add_argument("K", type=positive, help="classes")
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
    audit.add_argument("--json", type=report, help="a JSON file to write")
    options = parser.parse_args(argv)
    if options.command == "demo":
        return run(
            "demo", "demo", ["softjax.tools.demo"],
            lambda tool: tool.run(options.steps, options.classes, options.latents, options.seed, options.output),
        )  # fmt: skip
    if options.command == "explain":
        problem = options.N, options.D, options.K, options.dtype, options.reduction
        return run(
            "explain", "demo", ["softjax.tools.explain"],
            lambda tool: tool.run(
                tool.Problem(*problem), options.device, options.memory, options.json, not options.model
            ),
        )  # fmt: skip
    return run(
        "audit", "audit", ["softjax.tools.audit"],
        lambda tool: tool.run(options.quick, options.text, options.json),
    )  # fmt: skip
