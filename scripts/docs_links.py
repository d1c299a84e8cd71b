"""A hook of mkdocs: pages link to files beside `docs/`, such as `../results/search-cpu.png`; the site gets them too."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

BESIDE = re.compile(r"\]\(\.\./([^)#]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file that some page links to."""
    root = Path(config.docs_dir).parent
    linked = {path for page in Path(config.docs_dir).glob("*.md") for path in BESIDE.findall(page.read_text("utf-8"))}
    for path in sorted(linked):
        if (root / path).is_file():  # a folder, or a file that is not there, stays a link that --strict refuses
            files.append(File.generated(config, path, abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Where the links find them."""
    return BESIDE.sub(r"](\1)", markdown)
