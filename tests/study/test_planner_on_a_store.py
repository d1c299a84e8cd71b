"""The planner of a swept store: its page, its server, its pictures and its snippets."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.study.conftest import tiny_study

import isocost
from isocost import api
from isocost.cli import main
from isocost.errors import SpecError
from isocost.reporting.planner_store import draw_frontier, planner_of
from isocost.reporting.snippets import snippets
from isocost.study.store import Store

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = 'a red <img src=x onerror="document.title=1"> & "square"'


@pytest.fixture(scope="module")
def drawn(swept, tmp_path_factory) -> Path:
    """A copy of the swept store with pictures of its frontier."""
    store = Path(shutil.copytree(swept, tmp_path_factory.mktemp("drawn") / "store"))
    assert draw_frontier(store) >= 1
    return store


@pytest.fixture(scope="module")
def marked(drawn, tmp_path_factory) -> Path:
    """The same, with markup in a caption, and a cell that says it is the best of 2."""
    store = Path(shutil.copytree(drawn, tmp_path_factory.mktemp("marked") / "store"))
    expansion = json.loads((store / "expansion.json").read_text())
    chosen = next(cell for cell in expansion["cells"] if cell["steps"] == 2 and cell["guidance_scale"] == 1)
    chosen |= {"best_of": 2, "scorer": "scenes-clip-score"}
    (store / "expansion.json").write_text(json.dumps(expansion))
    strips = Store(store).strips()
    for strip in strips.values():
        strip["captions"][0] = EVIL
    (store / "strips.json").write_text(json.dumps(strips))
    return store


@pytest.fixture(scope="module")
def client(drawn):
    testclient = pytest.importorskip("fastapi.testclient")
    from isocost.reporting.server import create_app

    with testclient.TestClient(create_app(drawn), base_url="http://localhost:8000") as found:
        yield found


def test_a_page_is_written_with_the_answer_and_pictures(drawn, tmp_path, capsys):
    main(["plan", str(drawn), "--budget", "3", "--page", str(tmp_path / "planner.html"), "--json"])
    page = Path(json.loads(capsys.readouterr().out)["page"]).read_text(encoding="utf-8")
    assert isocost.plan(drawn, 3).sentence.partition(" use ")[2][:20] in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, flags=re.DOTALL)[1])
    assert data["answer"] == isocost.plan(drawn, 3).sentence
    assert all(source.startswith("data:image/png") for sources in data["pictures"].values() for source in sources)
    assert data["pictures"]


def test_the_page_opens_where_plan_was_asked(drawn, tmp_path):
    path = isocost.planner(drawn, tmp_path / "p.html", unit="gflops", filters={"member": "c8"}, draw=False)
    data = json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), flags=re.DOTALL)[1])
    assert data["start"]["unit"] == "gflops" and data["start"]["filters"] == {"member": ["c8"]}
    with pytest.raises(SpecError, match="cost unit"):
        isocost.planner(drawn, tmp_path / "p.html", unit="dollars", draw=False)


def test_published_results_have_a_planner_too(drawn, tmp_path, capsys):
    main(["store", "publish", str(drawn), str(tmp_path / "published")])
    data = planner_of(tmp_path / "published").data
    assert not data["pictures"] and [unit["unit"] for unit in data["units"]] == ["paper", "gflops"]
    budget = data["start"]["budget"]
    assert data["answer"] == isocost.plan(tmp_path / "published", budget).sentence


def test_pictures_that_cannot_be_drawn_leave_the_page(own_copy, tmp_path):
    shutil.rmtree(own_copy / "checkpoints")
    path = isocost.planner(own_copy, tmp_path / "p.html")
    assert "Pictures of the frontier could not be drawn" in path.read_text()


# --- the server ---


def test_the_server_shows_the_page_and_what_is_behind_its_links(client, drawn):
    page = client.get("/")
    assert page.status_code == 200 and "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    for link in set(re.findall(r'(?:href|src)="(?!data:)([^"]+)"', page.text)):
        found = client.get("/" + link)
        assert found.status_code == 200 and found.content, link
    data = client.get("/planner.json").json()
    assert data["answer"] == isocost.plan(drawn, data["start"]["budget"]).sentence
    source = next(iter(data["pictures"].values()))[1]
    assert client.get("/" + source).content.startswith(b"\x89PNG")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", ""])
def test_other_hosts_are_refused(client, host):
    assert client.get("/", headers={"host": host}).status_code == 400


@pytest.mark.parametrize("method", ["post", "put", "delete", "patch"])
def test_it_is_read_only(client, method):
    assert getattr(client, method)("/").status_code == 405


@pytest.mark.parametrize(
    "address",
    ["/files/study.yml", "/files/..%2F..%2Fstudy.yaml", "/pictures/0123/0.png", "/docs", "/openapi.json", "/static"],
)
def test_nothing_else_is_to_be_had(client, address):
    assert client.get(address).status_code == 404


def test_a_picture_that_is_not_there(client):
    source = next(iter(client.get("/planner.json").json()["pictures"].values()))[0]
    assert client.get("/" + source.replace("/0.png", "/99.png")).status_code == 404
    assert client.get("/" + source.replace("/0.png", "/-1.png")).status_code == 404


def test_serving_writes_nothing(client, drawn):
    def contents():
        return {path: path.stat().st_mtime_ns for path in drawn.rglob("*")}

    before = contents()
    client.get("/")
    assert contents() == before


def test_an_empty_store_says_so_until_there_are_scores(drawn, tmp_path):
    testclient = pytest.importorskip("fastapi.testclient")
    from isocost.reporting.server import create_app

    store = Store(tmp_path / "store")
    store.write_study(tiny_study())
    found = testclient.TestClient(create_app(store.path), base_url="http://127.0.0.1")
    assert "no scores yet" in found.get("/").text and found.get("/planner.json").status_code == 404
    for name in ("expansion.json", "cells", "index.json", "index.parquet"):
        copy = shutil.copytree if (drawn / name).is_dir() else shutil.copy
        copy(drawn / name, store.path / name)
    assert found.get("/").text.count("What a budget buys") == 1


def test_a_folder_that_is_no_store_and_a_port_that_is_taken(tmp_path, drawn, capsys):
    pytest.importorskip("fastapi")
    with pytest.raises(SystemExit, match="1"):
        main(["serve", str(tmp_path)])
    assert "not a store" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["serve", str(drawn), "--port", "99999"])
    assert "--port" in capsys.readouterr().err


# --- snippets ---


def test_the_isocost_snippet_draws_what_the_cell_draws(drawn, tmp_path, capsys):
    data = planner_of(drawn).data
    text = next(iter(data["snippets"].values()))["isocost"]
    tokens = shlex.split(text)[1:]
    main([*tokens, "--out", str(tmp_path / "a.png")])
    key = tokens[tokens.index("--cell") + 1]
    cell = next(cell for cell in Store(drawn).expansion()["cells"] if cell["sample_key"].startswith(key))
    same = api.sample(
        drawn, ["a large red circle in the centre on a blue background"], steps=cell["steps"], sampler=cell["sampler"],
        guidance_scale=cell["guidance_scale"], member=cell["member"], spacing=cell["spacing"],
    )  # fmt: skip
    again = api.sample(drawn, ["a large red circle in the centre on a blue background"], cell=key)
    assert Image.open(tmp_path / "a.png").size == (32, 32)
    assert (again == same).all()


def test_a_cell_that_is_not_there(drawn):
    with pytest.raises(SpecError, match="no cell's sample key begins with 'xyz'"):
        api.sample(drawn, ["a red heart"], cell="xyz")
    with pytest.raises(SpecError, match="cells' sample keys begin with ''"):
        api.sample(drawn, ["a red heart"], cell="")


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_the_diffusers_snippet_draws_the_same_image_from_the_same_noise(drawn, tmp_path, monkeypatch, sampler):
    import torch

    from isocost.diffusion.noise import batch_noise

    prompt, steps, scale = "a large red circle in the centre on a blue background", 4, 2.0
    row = planner_of(drawn).data["rows"]
    cell = {
        "sample_key": row["key"][0] + "0" * 48, "member": "c8", "checkpoint": "c8", "sampler": sampler, "eta": 0.0,
        "variance": "small", "spacing": "trailing", "steps": steps, "guidance_scale": scale, "stages": "",
        "best_of": 1, "guidance_mode": "cfg", "guidance_interval": "",
    }  # fmt: skip
    text = snippets(cell, tiny_study(), str(drawn), prompt).diffusers
    monkeypatch.chdir(tmp_path)
    main(shlex.split(re.search(r"isocost (export .*)", text)[1]))
    size = isocost.load_study("quickstart").data.resolution // 4
    latents = batch_noise([(prompt, 0)], "x_T", (4, size, size))
    taken = text.replace("generator=torch.Generator().manual_seed(0)", "latents=latents, output_type='np'")
    names = {"latents": torch.as_tensor(latents), "__name__": "snippet"}
    exec(taken.replace('image.save("sample.png")', ""), names)
    ours = api.sample(drawn, [prompt], steps=steps, sampler=sampler, guidance_scale=scale)[0]
    assert np.abs(255 * names["image"] - ours).max() < 4


# --- in a browser ---


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_in_a_browser(marked, capsys):
    """Slider, filters, keyboard and a phone's width; no other host is asked, and a caption with HTML stays text."""
    playwright = pytest.importorskip("playwright.sync_api")
    pytest.importorskip("fastapi")
    with served(marked) as address, playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(200_000)  # a machine may be busy
        asked, wrong = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.goto(address)
        page.wait_for_selector("#chart .main-svg")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.title() == "tiny · isocost planner"
        assert EVIL in page.locator("#strip thead").text_content() and page.locator("#strip img[src=x]").count() == 0
        page.focus("#slider")
        page.keyboard.press("End")
        budget = float(page.input_value("#budget"))
        assert page.inner_text("#answer") == isocost.plan(marked, budget).sentence
        page.keyboard.press("Home")
        assert float(page.input_value("#budget")) < budget
        page.check("input[value=gflops]", force=True)
        page.fill("#budget", "3")
        assert page.inner_text("#answer") == isocost.plan(marked, 3, "gflops").sentence
        assert "budget=3" in page.url
        chip = page.locator('[data-filter="guiding"] label', has_text="no guidance")
        assert chip.locator("input").is_checked()
        page.locator('[data-filter="guiding"] label', has_text="CFG").click()
        assert page.inner_text("#answer") == isocost.plan(marked, 3, "gflops", filters={"guiding": "none"}).sentence
        assert "guiding=none" in page.url and "--guiding none" in page.inner_text("#isocost")
        page.locator('[data-filter="best_of"] label', has_text="best of 2").click()
        kept = {"guiding": "none", "best_of": 1}
        assert page.inner_text("#answer") == isocost.plan(marked, 3, "gflops", filters=kept).sentence
        main([*shlex.split(page.inner_text("#isocost").splitlines()[0])[1:], "--json"])
        assert json.loads(capsys.readouterr().out)["sentence"] == page.inner_text("#answer")
        chip.locator("input").focus()
        page.keyboard.press("Space")
        assert "choose at least one of each" in page.inner_text("#answer")
        page.keyboard.press("Space")
        page.fill("#budget", "0.0001")
        assert "The cheapest is" in page.inner_text("#answer")
        browser.close()
    assert wrong == [] and all(url.startswith((address, "data:")) for url in asked)


@contextlib.contextmanager
def served(store: Path):
    """The server's address, while it runs in a thread."""
    import uvicorn

    from isocost.reporting.server import create_app

    server = uvicorn.Server(uvicorn.Config(create_app(store), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
