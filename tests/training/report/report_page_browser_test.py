"""The report's page in a real browser: its contents, and that it loads nothing."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from tfdeq.programs.workdir import write_json

ROW = {"bits_per_byte": 1.9, "residual": 5e-3, "steps": 6.0}
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PLOTS = [
    *("Loss", "Validation bits per byte", "Residual, forward", "Residual, backward"),
    *("Solver steps, forward", "Solver steps, backward", "Learning rate", "Gradient norm"),
    "Bits per byte by budget",
]


def executables():
    """The browser and its driver; without them the test is skipped, but fails where CI is set."""
    found = shutil.which("chromium"), shutil.which("chromedriver")
    if None in found:
        reason = "no chromium or no chromedriver: apt-get install chromium chromium-driver"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return found


def curves(loss):
    rows = []
    for step in range(20, 420, 20):
        row = {"step": step, "loss": loss + 40 / step, "learning_rate": 1 / step}
        solve = {"residual": 1 / step, "steps": 5.0, "backward_residual": 0.1, "backward_steps": 2}
        rows.append({**row, "gradient_norm": None if step == 40 else 1.0, **solve})
        if step % 100 == 0:
            rows.append({"step": step, **{f"validation_{name}": v for name, v in ROW.items()}})
    return rows


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a finished run and of a running one, whose folders have the same name."""
    executables()
    folder = tmp_path_factory.mktemp("runs")
    for name, loss in (("a/run", 1.0), ("b/run", 2.0)):
        (folder / name).mkdir(parents=True)
        lines = [json.dumps(row) + "\n" for row in curves(loss)]
        (folder / name / "curves.jsonl").write_text("".join(lines))
        config = {"train_steps": 400, "learning_rate": loss, "note": "<img src=x>"}
        write_json(str(folder / name / "config.json"), config)
    starts = {"starts": [{"python": "3.11.7", "packages": {"keras": "3.15.1"}}]}
    write_json(str(folder / "a/run/environment.json"), starts)
    test = {**ROW, "by_budget": {"0.5": {**ROW, "bits_per_byte": 2.1}, "1.0": ROW}}
    write_json(str(folder / "a/run/metrics.json"), {"test": test, "train": {}})
    output = folder / "page.html"
    subprocess.run(
        [
            *(sys.executable, "-m", "trainers.report", f"--output={output}"),
            *(str(folder / name / "run") for name in "ab"),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return output


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    """The browser with the page open, and its log of the network from then on."""
    chromium, driver = executables()
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    # With the given path, selenium does not look for a driver in the network.
    browser = webdriver.Chrome(options=options, service=Service(executable_path=driver))
    try:
        browser.get_log("performance")
        browser.get(page.as_uri())
        yield browser
    finally:
        browser.quit()


def table(browser, caption):
    """Returns the cells of the table whose caption begins with a text."""
    for element in browser.find_elements(By.TAG_NAME, "table"):
        if element.find_element(By.TAG_NAME, "caption").text.startswith(caption):
            rows = element.find_elements(By.TAG_NAME, "tr")
            return [[c.text for c in row.find_elements(By.CSS_SELECTOR, "th, td")] for row in rows]
    raise AssertionError(f"no table is called {caption}")


def test_shows_the_tables(browser):
    assert browser.title == "Training report: a/run, b/run"
    head, first, second = table(browser, "The runs")
    assert head[:4] == ["Run", "State", "Steps", "Test bits per byte"]
    assert first[:4] == ["a/run", "finished", "400", "1.9"]
    assert second[:4] == ["b/run", "in progress at step 400", "400 of 400", "–"]
    assert ["a/run", "0.5 ×", "2.1", "5.0e-03", "6"] in table(browser, "Test figures")
    assert ["--learning_rate", "1.0", "2.0"] in table(browser, "The flags whose values differ")
    assert ["keras", "3.15.1", "–"] in table(browser, "Versions")
    browser.find_element(By.TAG_NAME, "summary").click()
    assert ["--note", "<img src=x>"] in table(browser, "The flags that are the same")


def test_shows_every_plot(browser):
    shown = browser.find_elements(By.TAG_NAME, "figure")
    assert [figure.find_element(By.TAG_NAME, "h3").text for figure in shown] == PLOTS
    for figure in shown:
        image = figure.find_element(By.TAG_NAME, "img")
        assert image.get_property("complete")
        assert image.get_property("naturalWidth") > 0
        assert image.size["width"] > 200
        assert image.size["height"] > 100
        assert image.get_attribute("alt").startswith("Line plot of")
        assert figure.find_element(By.TAG_NAME, "figcaption").text


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.slow
def test_only_tables_scroll_sideways(browser, width):
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_colour_schemes(browser, scheme):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    style = "return getComputedStyle(document.body)"
    ink, ground = (
        int(browser.execute_script(f"{style}.{name}").split("(")[1].split(",")[0])
        for name in ("color", "backgroundColor")
    )
    assert (ink < 60 and ground > 200) if scheme == "light" else (ink > 200 and ground < 60)


def test_says_nothing_and_asks_for_nothing(page, browser):
    # Loads the page again, so that this test does not depend on the order.
    browser.get_log("performance")
    browser.refresh()
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert page.as_uri() in asked
    assert [u for u in asked if not u.startswith("data:") and u != page.as_uri()] == []
    loud = [
        entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
    ]
    assert loud == []
