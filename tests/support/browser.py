"""A real browser: Debian's Chromium, led by Playwright; what it sends, and what it complains of, is kept."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request

SCREENSHOTS: Final = "KEYFERRY_SCREENSHOTS"
"""Names a directory; where it is set, every page that a test looks at is drawn into it."""
WAIT: Final = 180_000
"""Milliseconds that anything may take on a busy machine."""
WIDTHS: Final = {"phone": (390, 844), "desktop": (1280, 800)}
AXE_TAGS: Final = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def problem() -> str | None:
    """Say in one line why no browser can run here, or None."""
    if program() is None:
        return "Chromium is needed (Debian: apt-get install chromium)"
    missing = [name for name in ("playwright", "axe_playwright_python") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} must be installed (the group `test`)" if missing else None


def program() -> str | None:
    """Return where Chromium is."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextlib.asynccontextmanager
async def running_browser() -> AsyncIterator[Browser]:
    """Run one, without a screen."""
    from playwright.async_api import async_playwright  # noqa: PLC0415 - absent where this tier does not run

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program(),
            args=["--no-sandbox"],  # tests run as root, in containers
            timeout=WAIT,
        )
        try:
            yield browser
        finally:
            await browser.close()


@dataclass
class Visitor:
    """One person's browser: its own cookies, its own tab."""

    context: BrowserContext
    page: Page
    complaints: list[str] = field(default_factory=list)
    """Of the console: what the policy forbade above all."""
    requests: list[str] = field(default_factory=list)

    def hosts(self) -> set[str]:
        """Return whom it asked, with ports."""
        return {urlsplit(url).netloc for url in self.requests}

    async def heading(self) -> str:
        """Return what the page is about."""
        return await self.page.locator("h1").inner_text(timeout=WAIT)

    async def wait_for_heading(self, text: str) -> None:
        """Wait until a page says it."""
        await self.page.locator("h1", has_text=text).wait_for(timeout=WAIT)

    async def press(self, button: str) -> None:
        """Press a button, or follow a link that looks like one."""
        found = self.page.get_by_role("button", name=button).or_(self.page.get_by_role("link", name=button))
        await found.first.click(timeout=WAIT)

    async def text(self) -> str:
        """Return what is to be read."""
        return await self.page.locator("main").inner_text(timeout=WAIT)

    async def problems(self) -> list[str]:
        """Return what axe finds against WCAG 2.2 AA and good practice, contrast included; in this scheme and size."""
        script = resources.files("axe_playwright_python") / "axe.min.js"
        await self.page.evaluate(script.read_text("utf-8"))
        options: dict[str, Any] = {
            "runOnly": {"type": "tag", "values": AXE_TAGS},
            "resultTypes": ["violations"],
            "preload": False,  # it would ask for the style sheet by script, which the policy forbids
        }
        found = await self.page.evaluate("options => axe.run(options)", options)
        return [
            f"{violation['id']}: {json.dumps([node['html'] for node in violation['nodes']])[:300]}"
            for violation in found["violations"]
        ]

    async def draw(self, name: str) -> None:
        """Draw the page, small and large, light and dark, where somebody wants to look at it."""
        directory = os.environ.get(SCREENSHOTS)
        if not directory:
            return
        for size, (width, height) in WIDTHS.items():
            await self.page.set_viewport_size({"width": width, "height": height})
            for scheme in ("light", "dark"):
                await self.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
                path = Path(directory) / f"{name}-{size}-{scheme}.png"
                await self.page.screenshot(path=path, full_page=True, animations="disabled")


@contextlib.asynccontextmanager
async def visitor(browser: Browser, **options: Any) -> AsyncIterator[Visitor]:
    """Open a tab in a browser of its own; ``options`` are Playwright's. It has no JavaScript unless they say so."""
    context = await browser.new_context(**{"java_script_enabled": False, **options})
    context.set_default_timeout(WAIT)
    try:
        page = await context.new_page()
        watched = Visitor(context, page)

        def complain(message: ConsoleMessage) -> None:
            if message.type in {"error", "warning"}:
                watched.complaints.append(message.text)

        def note(request: Request) -> None:
            watched.requests.append(request.url)

        context.on("console", complain)
        context.on("request", note)
        yield watched
    finally:
        await context.close()
