"""The console in a browser, in front of a real pool: what it shows, and what may be done with it.

Chromium is driven by Playwright; without them these tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfpool.client.sync import Client
from tfpool.testing.fake_worker import FakePool, model, until
from tfpool.testing.fronts import Web, await_front, free_address

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.process, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]

HOSTILE = "<img/src=x_onerror=document.title='owned'>".replace("/", "-")
LONG = "ranker-" + "of-everything-" * 15
LOOKER, BOSS = "looker-token-00000001", "boss-token-0000000001"
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def shown(directory: Path) -> Iterator[FakePool]:
    """Two workers with a budget, and a gateway that wants tokens."""
    tokens = directory / "tokens"
    tokens.write_text(f"monitor {LOOKER}\nadmin {BOSS}\n")
    tokens.chmod(0o600)
    models = [
        model(directory, "double", nbytes=300 << 20),
        model(directory, "double", "second", versions=(1, 2), version_policy="all", labels=(("stable", ((1, 1),)),)),
        model(directory, "echo", HOSTILE),
        model(directory, "echo", LONG),
        model(directory, "broken"),
        model(directory, "add", nbytes=20 << 20, pin=("cpu0",)),
    ]
    server, gateway = {"http": free_address()}, {"tokens": str(tokens)}
    with FakePool(directory, models, memory=1 << 30, server=server, gateway=gateway) as made:
        await_front(server["http"])
        yield made


@pytest.fixture
def admin(shown: FakePool) -> Iterator[Client]:
    with shown.client(timeout=20.0) as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def tab(browser: Any, shown: FakePool) -> Iterator[Any]:
    """The page, not signed in; an error of its scripts fails the module."""
    made = browser.new_page(viewport=WIDE)
    made.set_default_timeout(5_000)
    errors: list[str] = []
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.on("console", lambda said: errors.append(said.text) if "Content Security" in said.text else None)
    made.goto(f"http://{shown.settings.server.http}/console")
    yield made
    assert errors == []


@pytest.fixture
def page(tab: Any) -> Any:
    """The page of an admin, with nothing open."""
    if not tab.evaluate("sessionStorage.getItem('tfpool.token')"):
        sign_in(tab, BOSS)
    tab.locator("#linktext", has_text="Live").wait_for()
    while tab.locator("dialog").count():
        tab.keyboard.press("Escape")
    tab.get_by_role("searchbox").fill("")
    tab.get_by_role("radio", name="All").check(force=True)
    tab.set_viewport_size(WIDE)
    return tab


def sign_in(tab: Any, token: str) -> None:
    tab.get_by_label("Token").fill(token)
    tab.keyboard.press("Enter")


def row(page: Any, name: str) -> Any:
    return page.locator(".grid-body .row").filter(has=page.get_by_text(name, exact=True))


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name, exact=True)


def state_of(client: Client, name: str, version: int = 1) -> str:
    return next(str(one["state"]) for one in client.models() if (one["name"], one["version"]) == (name, version))


# -- who gets in ---------------------------------------------------------------------------------------------------


def test_only_those_with_a_token_see_anything(tab: Any) -> None:
    dialog = tab.get_by_role("dialog", name="Sign in")
    dialog.wait_for()
    assert not tab.locator("main").is_visible()
    sign_in(tab, "wrong")
    dialog.get_by_text("expected a token").wait_for()
    sign_in(tab, LOOKER)
    tab.locator(".worker").first.wait_for()
    assert tab.inner_text("#who") == "Viewer"
    assert not tab.get_by_role("button", name="Drain worker cpu0").is_visible()
    tab.get_by_role("button", name="Sign out").click()
    dialog.wait_for()


def test_only_admins_change_anything(shown: FakePool) -> None:
    address, unload = str(shown.settings.server.http), "/console/api/unload"
    kind, own = {"content-type": "application/json"}, {"origin": f"http://{address}"}
    asked = [
        (Web(address, LOOKER), {**kind, **own}, 403),
        (Web(address), {**kind, **own}, 401),
        (Web(address, BOSS), {"content-type": "text/plain", **own}, 415),
        (Web(address, BOSS), {**kind, **own}, 404),
    ]
    for web, headers, status in asked:
        answer = web.ask("POST", unload, '{"model": "nobody"}', headers)
        assert (answer.status, list(answer.json)) == (status, ["error"])
        web.close()


# -- what is shown -------------------------------------------------------------------------------------------------


def test_models_and_workers(page: Any, admin: Client) -> None:
    for name in ("double", "second", HOSTILE, LONG):
        assert "Serving" in row(page, name).first.inner_text()
    failed = row(page, "broken")
    assert "Failed" in failed.inner_text()
    assert "broken on purpose" in failed.inner_text()
    assert page.locator("img").count() == 0
    assert "owned" not in page.title()
    tile = page.locator(".tile", has_text="double:1")
    assert "300 MiB" in tile.inner_text()
    picture = page.get_by_role("img", name="Models in the memory of").filter(has=tile)
    assert "double:1 300 MiB" in picture.get_attribute("aria-label")
    assert page.get_by_text("of 1.0 GiB").count() == 2


def test_numbers_are_live(page: Any, admin: Client) -> None:
    def asked() -> bool:
        for _ in range(20):
            admin.predict("double", {"x": np.ones((2, 3), np.float32)})
        text: str = row(page, "double").inner_text()
        return "µs" in text or "ms" in text

    until(asked)
    requests = page.get_by_role("img", name="Requests. requests a second: now").get_attribute("aria-label")
    assert "at most 0;" not in requests


def test_search_filter_and_sort(page: Any) -> None:
    page.get_by_role("searchbox").fill("second stable")
    until(lambda: page.locator(".grid-body .row").count() == 1)
    page.get_by_role("searchbox").fill("")
    page.get_by_role("radio", name="Failed").check(force=True)
    assert page.locator(".model-name").all_inner_texts() == ["broken"]
    page.get_by_role("radio", name="All").check(force=True)
    page.get_by_role("button", name="Memory").click()
    first = page.locator('.grid-body .row[aria-rowindex="2"]')
    assert first.inner_text().startswith("double")
    assert page.get_by_role("columnheader", name="Memory").get_attribute("aria-sort") == "descending"
    button(page, "Model").click()


# -- what is done --------------------------------------------------------------------------------------------------


def test_unloading_and_loading_with_the_keyboard_alone(page: Any, admin: Client) -> None:
    page.get_by_role("searchbox").fill("double")
    page.locator("#grid").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    sheet = page.get_by_role("dialog", name="double:1")
    sheet.get_by_text("serving_default").wait_for()

    def tab_to(button: str) -> None:
        for _ in range(12):
            if page.evaluate("document.activeElement.textContent") == button:
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"the keyboard does not lead to {button}")

    tab_to("Unload…")
    page.keyboard.press("Enter")
    question = page.get_by_role("dialog", name="Unload double:1?")
    assert "frees 300 MiB" in question.inner_text()
    assert page.evaluate("document.activeElement.textContent") == "Cancel"
    page.keyboard.press("Escape")
    assert state_of(admin, "double") == "AVAILABLE"
    tab_to("Unload…")
    page.keyboard.press("Enter")
    tab_to("Unload")
    page.keyboard.press("Enter")
    page.get_by_text("Unloaded double:1.").wait_for()
    assert state_of(admin, "double") == "UNLOADED"
    sheet.locator(".state", has_text="Not loaded").wait_for()
    tab_to("Load…")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    page.get_by_text("Loaded double:1.", exact=True).wait_for()
    assert state_of(admin, "double") == "AVAILABLE"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "grid"
    page.get_by_role("searchbox").fill("")


def test_moving_and_labelling(page: Any, admin: Client) -> None:
    (source,) = next(one["workers"] for one in admin.models() if one["name"] == "second" and one["version"] == 2)
    target = {"cpu0": "cpu1", "cpu1": "cpu0"}[source]
    row(page, "second").first.click()
    button(page, "Move…").click()
    button(page, "Move").click()
    page.get_by_text(f"Moved second:2 to {target}.").wait_for()
    button(page, "Label…").click()
    page.get_by_label("Label", exact=True).fill("canary")
    page.get_by_label("Leads to").fill("1:90,2:10")
    page.get_by_role("button", name="Set label").click()
    page.get_by_text("canary leads to 1:90,2:10").wait_for()
    assert admin.status("second")[0]["label_splits"] == {"stable": "1", "canary": "1:90,2:10"}
    page.get_by_role("button", name="Remove the label stable").click()
    page.get_by_role("button", name="Remove label").click()
    until(lambda: admin.status("second")[0]["label_splits"] == {"canary": "1:90,2:10"})
    page.keyboard.press("Escape")
    move = page.locator("#moves li", has_text=f"Move second:2 from {source} to {target}").first
    assert "Done" in move.inner_text()


def test_an_error_is_said(page: Any) -> None:
    row(page, "add").click()
    button(page, "Move…").click()
    button(page, "Move").click()
    told = page.locator(".toast[data-kind=bad]")
    told.wait_for()
    assert "Moving add:1 to cpu1 failed: " in told.inner_text()
    told.get_by_role("button", name="Dismiss").click()


# -- for everybody -------------------------------------------------------------------------------------------------

LEGIBLE = """() => {
  const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (color) => color.slice(0, 3).map((v) => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color[3] === 1) return color;
    }
    return [255, 255, 255, 1];
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const bad = [];
  let seen = 0;
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    if (!texts.currentNode.textContent.trim() || !node.checkVisibility()) continue;
    if (node.closest(":disabled, .unseen")) continue;
    seen += 1;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) bad.push(`${node.className}: ${texts.currentNode.textContent}`);
  }
  return [seen, bad];
}"""
NAMELESS = """() => [...document.querySelectorAll("button, input, select, [role=img], dialog, [role=grid]")]
  .filter((node) => node.checkVisibility() && !(node.getAttribute("aria-label") || node.textContent.trim() ||
    node.labels?.length || document.getElementById(node.getAttribute("aria-labelledby"))))
  .map((node) => node.outerHTML)"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_everything_can_be_read(page: Any, scheme: str, size: dict[str, int]) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size(size)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    for open_more in (page.bring_to_front, row(page, "broken").click, button(page, "Load…").click):
        open_more()
        seen, bad = page.evaluate(LEGIBLE)
        assert seen > 50
        assert bad == []
        assert page.evaluate(NAMELESS) == []
    assert page.evaluate("document.querySelector('.sheet').scrollWidth") <= size["width"]
    page.emulate_media(color_scheme="light", reduced_motion="no-preference")


def test_a_thousand_models(browser: Any, page: Any, shown: FakePool) -> None:
    frame = page_of(1000)
    many = browser.new_page(viewport=WIDE)
    many.add_init_script(f"sessionStorage.setItem('tfpool.token', '{BOSS}')")
    many.route("**/console/events", lambda route: route.fulfill(body=f"data: {json.dumps(frame)}\n\n"))
    many.goto(f"http://{shown.settings.server.http}/console")
    many.get_by_text("1,000 models").wait_for()
    many.locator("#grid").focus()
    many.keyboard.press("ArrowDown")
    many.keyboard.press("End")
    until(lambda: many.locator(".row[data-active]", has_text="m1000").count() == 1)
    assert many.locator(".grid-body .row").count() < 60
    many.get_by_text("What you see is of").wait_for()
    assert many.inner_text("#linktext") == "Not connected"
    many.close()


def page_of(count: int) -> dict[str, Any]:
    """A frame with so many models."""
    row = {"version": 1, "state": "AVAILABLE", "goal": "serve", "labels": [], "workers": ["cpu0"], "memory": 1}
    more = {"error": None, "crashes": 0, "isolated": False, "forms": {}, "store": "off", "asks": 1.0, "load": 0.1}
    models = {f"m{at}:1": {"name": f"m{at}", **row, **more} for at in range(1, count + 1)}
    head = {"at": 1.8e9, "requests": 1, "errors": 0, "rows": 1, "uptime": 1, "settled": True, "waiting": 0}
    rest = {"codes": {}, "loads": 0, "evictions": 0, "shm": {"leased": 0, "budget": 1}, "broker": 0, "replacing": []}
    put = {"models": models, "workers": {}, "queues": {}, "changes": {}}
    return {"revision": 1, "whole": True, "head": {**head, **rest}, "put": put, "drop": {}, "story": []}


def test_the_page_comes_back_when_the_gateway_does(page: Any, shown: FakePool) -> None:
    (pid,) = shown.children("tfpool-gateway")
    os.kill(pid, signal.SIGKILL)
    page.locator("body[data-link=stale]").wait_for()
    page.locator("body[data-link=live]").wait_for()
    assert page.locator("#banner").is_hidden()


def test_nobody_is_asked_for_those_who_left(page: Any, admin: Client) -> None:
    page.goto("about:blank")
    looks = [admin.stats()]

    def quiet() -> bool:
        """Whether only this test has asked for more than a second."""
        looks.append(admin.stats())
        if looks[-1]["messages"] - looks[0]["messages"] >= len(looks):
            del looks[:-1]
        return bool(looks[-1]["uptime_seconds"] - looks[0]["uptime_seconds"] > 1.2)

    until(quiet)
