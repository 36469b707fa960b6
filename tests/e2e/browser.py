# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page in a real browser: headless Chromium of the distribution, by its own driver."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webelement import WebElement

PROGRAMS = ("chromium", "chromedriver")
# Without those of the second line Chromium asks its maker's hosts for this and that, which answers nothing here.
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"),
    *("--proxy-server=direct://", "--lang=en-US", "--window-size=1280,900"),
)
INPUT, SEND, MODEL = "#chat-input", "#send-message-button", "button[id^='model-selector-']"
ANSWER, WHOLE = "#response-content-container", ".copy-response-button"


def missing() -> str:
    """Return which of the programs are not there, in words; empty when all are."""
    return ", ".join(name for name in PROGRAMS if not shutil.which(name))


@dataclass
class Answer:
    """What was shown, and how long it was at each look where it had grown."""

    text: str
    lengths: list[int] = field(default_factory=list)


class Browser:
    """One person's browser, with a profile of its own below `place`."""

    def __init__(self, place: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for flag in (*FLAGS, f"--user-data-dir={place}"):
            options.add_argument(flag)
        self.driver = webdriver.Chrome(options=options, service=Service(str(shutil.which("chromedriver"))))

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_error: object) -> None:
        self.driver.quit()

    def all(self, selector: str) -> list[WebElement]:
        return list(self.driver.find_elements("css selector", selector))

    def wait(self, seen: Callable[[], Any], what: str, limit_s: float = 30) -> Any:
        """Wait until `seen` returns something. The page draws itself anew at any time, so an element may be gone."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                found = seen()
            except WebDriverException:
                found = None
            if found:
                return found
            assert time.monotonic() < deadline, f"not within {limit_s:.0f} s: {what}"
            time.sleep(0.1)

    def one(self, selector: str, limit_s: float = 30) -> WebElement:
        return self.wait(lambda: self.all(selector), selector, limit_s)[0]

    def click(self, selector: str) -> None:
        self.wait(lambda: self.all(selector)[0].click() or True, f"{selector} to click")

    def sign_in(self, url: str, address: str, password: str) -> None:
        """Sign in and close what greets a new person."""
        self.driver.get(url)
        self.one("input#email").send_keys(address)
        self.one("input#password").send_keys(password)
        self.click("button[type=submit]")
        self.one(INPUT)
        time.sleep(1)
        for button in self.driver.find_elements("xpath", '//button[contains(., "Okay, Let\'s Go")]'):
            button.click()

    def choose(self, model: str) -> list[str]:
        """Open the list of models, choose one, and return all that were offered."""
        self.click(MODEL)
        names: list[str] = self.wait(
            lambda: [str(row.text.split("\n")[0]) for row in self.all("[role=option], [data-value]") if row.text],
            "the list of models",
        )
        self.wait(
            lambda: next(row for row in self.all("[role=option], [data-value]") if model in row.text).click() or True,
            f"{model} to choose",
        )
        return names

    def ask(self, question: str, limit_s: float = 90) -> Answer:
        """Ask and watch the answer come; it is whole when the page lets it be copied."""
        before, whole = len(self.all(ANSWER)), len(self.all(WHOLE))
        box = self.one(INPUT)
        box.click()
        box.send_keys(question)
        self.click(SEND)
        answer = Answer("")
        deadline = time.monotonic() + limit_s

        def text() -> str:
            rows = self.all(ANSWER)
            return str(rows[-1].text) if len(rows) > before else ""

        while True:
            ended = len(self.all(WHOLE)) > whole
            now = str(self.wait(lambda: [text()], "the answer")[0])
            if now != answer.text:
                answer.text = now
                answer.lengths.append(len(now))
            if ended:
                return answer
            assert time.monotonic() < deadline, f"not whole within {limit_s:.0f} s: {answer.text!r}"
            time.sleep(0.05)

    def picture(self, path: Path) -> Path:
        self.driver.save_screenshot(str(path))
        return path
