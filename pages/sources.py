"""Adds the pages from outside of docs/ to the site: the README, other texts, notebooks, and the files they link to."""

import os
from pathlib import Path

import notebook
from mkdocs.structure.files import File
from paths import ROOT, TEXTS, moved_links, notebook_paths, site_path
from pymdownx.slugs import slugify


def on_config(config):
    """Lists the notebooks in the navigation, and gives titles the anchors that they have in the repository."""
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    for entry in config.nav:
        if "Notebooks" in entry:
            entry["Notebooks"] = [site_path(path) for path in notebook_paths()]
    config.watch.extend(str(ROOT / path) for path in (*TEXTS, "notebooks", "pages", "softjax"))
    return config


def on_files(files, config):
    """Adds the files from outside of docs/."""
    for path in TEXTS:
        files.append(_generated(config, path, (ROOT / path).read_text()))
    for path in notebook_paths():
        markdown, pictures = notebook.markdown(ROOT / path)
        files.append(_generated(config, path, markdown))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    for path in ("LICENSE", "notebooks/*.png", "benchmarks/results/*"):
        for found in sorted(ROOT.glob(path)):
            name = found.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(found)))
    files.append(File.generated(config, "pages.css", abs_src_path=str(ROOT / "pages" / "pages.css")))
    return files


def _generated(config, path, markdown):
    return File.generated(config, site_path(path), content=moved_links(markdown, path))


def on_page_markdown(markdown, page, config, files):  # noqa: ARG001
    """Rewrites the links of the pages in docs/ that lead outside of it. A page alone in its section needs no list."""
    if page.file.src_uri in ("index.md", "README.zh.md"):
        page.meta["hide"] = ["navigation"]
    source = page.file.abs_src_path
    if source is None or page.file.generated_by is not None:
        return markdown
    return moved_links(markdown, Path(os.path.relpath(source, ROOT)).as_posix())
