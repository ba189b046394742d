"""The pages in a real browser: Debian's headless Chromium, driven through its own chromedriver."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import FakeClassifier, served

selenium = pytest.importorskip("selenium", reason="pip install selenium")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

pytestmark = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="needs Debian's browser: apt-get install chromium chromium-driver",
)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(FakeClassifier(), gpu="simulated") as address:
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=900,1100",
        f"--user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=str(shutil.which("chromedriver")))
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_page_load_timeout(30)
    try:
        yield driver
    finally:
        driver.quit()


def text_of(browser: webdriver.Chrome, selector: str) -> str:
    return str(browser.find_element(By.CSS_SELECTOR, selector).text)


def wait_for(browser: webdriver.Chrome, selector: str, part: str) -> None:
    def there(_: Any) -> bool:
        return part in text_of(browser, selector)

    WebDriverWait(browser, 20).until(there, f"{part!r} does not appear in {selector}: {text_of(browser, selector)!r}")


def complaints(browser: webdriver.Chrome) -> list[str]:
    """What the browser's console holds against the page, and whatever the page loaded from elsewhere."""
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    own = str(browser.execute_script("return location.origin"))
    log = browser.get_log("browser")  # type: ignore[no-untyped-call]
    logged = [str(entry["message"]) for entry in log if entry["level"] == "SEVERE"]
    return logged + [str(name) for name in loaded if not str(name).startswith(own)]


def ask(browser: webdriver.Chrome, sentence: str) -> None:
    field = browser.find_element(By.ID, "query")
    field.clear()
    field.send_keys(sentence)
    field.submit()


def test_a_person_asks_and_sees_the_intent_and_live_figures(
    browser: webdriver.Chrome, address: str, tmp_path: Path
) -> None:
    browser.get(address + "/")
    wait_for(browser, "#model", "fake, on no device")
    ask(browser, "GetWeather")
    wait_for(browser, "#intent", "GetWeather")
    rows = [row.text for row in browser.find_elements(By.CSS_SELECTOR, "#probabilities tr")]
    assert len(rows) == 7
    assert rows[0].split() == ["GetWeather", "90", "%"]
    wait_for(browser, "#gpus", "simulated")
    wait_for(browser, "#gpu-note", "Simulated")
    wait_for(browser, "#gpus", "Duty cycle")
    wait_for(browser, "#requests", "Answered in all\n1")
    for _ in range(2):
        ask(browser, "music")
        wait_for(browser, "#intent", "PlayMusic")
    wait_for(browser, "#requests", "Answered in all\n3")
    assert "NaN" not in text_of(browser, "body")
    assert "undefined" not in text_of(browser, "body")
    assert complaints(browser) == []
    assert browser.save_screenshot(str(tmp_path / "page.png"))


def test_a_refused_sentence_is_explained(browser: webdriver.Chrome, address: str) -> None:
    browser.get(address + "/")
    ask(browser, "   ")
    wait_for(browser, "#problem", "query is empty")
    ask(browser, "music")
    wait_for(browser, "#intent", "PlayMusic")
    assert not browser.find_element(By.ID, "problem").is_displayed()


def test_markup_in_a_label_or_a_sentence_stays_text(browser: webdriver.Chrome, address: str) -> None:
    browser.get(address + "/")
    ask(browser, "<img src=x onerror=document.title='broken'>")
    wait_for(browser, "#intent", "PlayMusic")
    assert browser.title == "BERT intent detection"


def test_the_openapi_page(browser: webdriver.Chrome, address: str) -> None:
    complaints(browser)  # those of the tests before
    browser.get(address + "/docs")
    wait_for(browser, "#operations", "GET /predict")
    wait_for(browser, "#operations", "POST /predict")
    wait_for(browser, "#title", "BERT intent detection")
    assert complaints(browser) == []
