"""The command line: `python -m softjax demo`."""

import argparse
import sys
from pathlib import Path

from . import _arguments


def _positive(text: str) -> int:
    try:
        return _arguments.size("value", int(text)) or 1
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}") from error


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be an integer of at least 0, got {text!r}")
    return int(text)


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".png" or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be a .png file in a folder that exists, got {text!r}")
    return path


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    parser = argparse.ArgumentParser("python -m softjax", description="Softmax-family losses for JAX.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo", help="train a mixture autoencoder on handwritten digits, and draw what it learned"
    )
    demo.add_argument("--steps", type=_positive, default=3000, help="steps of Adam (default: %(default)s)")
    demo.add_argument(
        "-K", "--classes", type=_positive, default=256, help="centers of the mixture (default: %(default)s)"
    )
    demo.add_argument("-D", "--latents", type=_positive, default=2, help="dimensions of z (default: %(default)s)")
    demo.add_argument(
        "--seed", type=_seed, default=0, help="of the split, the model and the batches (default: %(default)s)"
    )
    demo.add_argument(
        "-o", "--output", type=_picture, default=Path("digits.png"), help="the PNG file to write (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    try:
        from . import _demo
    except ModuleNotFoundError as error:
        print(f"The demo needs {error.name}: pip install 'softjax-losses[demo]'", file=sys.stderr)
        return 1
    try:
        return _demo.run(options.steps, options.classes, options.latents, options.seed, options.output)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
