"""A notebook with its outputs, as Markdown. Nothing is executed."""

import base64
import html
import re

import nbformat

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def markdown(path):
    """(the text, the pictures: a dictionary from names to bytes)."""
    pictures = {}
    cells = [
        _cell(cell, f"{path.stem}-{i}", pictures) for i, cell in enumerate(nbformat.read(path, as_version=4).cells)
    ]
    return "\n\n".join(cells) + "\n", pictures


def _cell(cell, name, pictures):
    if cell.cell_type != "code":
        return cell.source
    source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
    shown = [_output(output, f"{name}-{i}", pictures) for i, output in enumerate(_joined(cell.outputs))]
    return "\n\n".join([f"```python\n{source}\n```", *shown])


def _joined(outputs):
    """The outputs, with consecutive pieces of text in one."""
    joined = []
    for output in outputs:
        if output.output_type == "stream" and joined and joined[-1].output_type == "stream":
            joined[-1] = nbformat.from_dict({**joined[-1], "text": joined[-1].text + output.text})
        else:
            joined.append(output)
    return joined


def _output(output, name, pictures):
    if output.output_type == "stream":
        return _text(output.text)
    if output.output_type == "error":
        return _text("\n".join(output.traceback))
    data = output.data
    if "image/png" in data:
        pictures[f"{name}.png"] = base64.b64decode(data["image/png"])
        return f"![{_alternative(data)}]({name}.png)"
    if "image/svg+xml" in data:
        pictures[f"{name}.svg"] = data["image/svg+xml"].encode()
        return f"![{_alternative(data)}]({name}.svg)"
    if "text/html" in data:
        return f'<div class="output">\n{data["text/html"]}\n</div>'
    if "text/latex" in data:
        formula = data["text/latex"].strip().strip("$").removeprefix("\\displaystyle").strip()
        return f"$$\n{formula}\n$$"
    return _text(data.get("text/plain", ""))


def _alternative(data):
    return "A figure" if data.get("text/plain", "<").startswith("<") else data["text/plain"]


def _text(text):
    return f'<pre class="output">{html.escape(_COLOURS.sub("", text).rstrip())}</pre>'
