"""The planner as a page: one file that holds all it needs, or one that its own server feeds."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path

from isocost.reporting.page import plotly_source, script_json, templates
from isocost.reporting.planner import Planner

TEMPLATES = Path(__file__).parent / "templates"
MEDIA_TYPES = {".csv": "text/csv; charset=utf-8", ".yaml": "text/yaml; charset=utf-8"}


def static_page(planner: Planner) -> str:
    """One HTML file: plotly, figures, pictures and downloads are in it, and nothing is asked of anybody."""
    links = {name: _data_uri(name, content) for name, content in planner.files.items()}
    return _page(planner, links, (*_scripts(), plotly_source()), "'none'")


def served_page(planner: Planner, links: Mapping[str, str], plotly_at: str) -> tuple[str, str]:
    """The same page with downloads and plotly at addresses of its server; the page, and its content-security policy."""
    scripts = _scripts()
    return _page(planner, links, scripts, "'self'", plotly_at), policy(scripts, "'self'")


def empty_page(reason: str) -> tuple[str, str]:
    """A page that says why there is no answer yet; the page and its content-security policy."""
    rules = policy((), "'none'")
    return templates().get_template("planner_empty.html.j2").render(reason=reason, policy=rules), rules


def policy(scripts: tuple[str, ...], own: str) -> str:
    """A content-security policy: these very scripts, and else what comes from `own` ("'self'" or "'none'").

    plotly sets styles of its own, so those are free; a style can neither run nor fetch anything here.
    """
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts]
    run = " ".join([*hashes, *(["'self'"] if own == "'self'" else [])]) or "'none'"
    images = "data: 'self'" if own == "'self'" else "data:"
    return (
        f"default-src 'none'; script-src {run}; style-src 'unsafe-inline'; img-src {images}; base-uri 'none'; "
        "form-action 'none'"
    )


def _scripts() -> tuple[str, ...]:
    return tuple((TEMPLATES / name).read_text(encoding="utf-8") for name in ("plan.js", "planner.js"))


def _page(
    planner: Planner, links: Mapping[str, str], scripts: tuple[str, ...], own: str, plotly_at: str | None = None
) -> str:
    return (
        templates()
        .get_template("planner.html.j2")
        .render(
            data=planner.data,
            links=links,
            json=script_json(planner.data),
            scripts=scripts,
            plotly_at=plotly_at,
            policy=policy(scripts, own),
        )
    )


def _data_uri(name: str, content: str) -> str:
    kind = MEDIA_TYPES[Path(name).suffix].replace(" ", "")
    return f"data:{kind};base64,{base64.b64encode(content.encode()).decode()}"
