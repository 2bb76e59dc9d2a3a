"""The pages in a real headless Chromium: nothing on the console, no request, every chart drawn, no sideways scroll."""

import browser
import pytest
import synthetic

from quantharm.reporting.names import FIGURES

CHROMIUM = browser.chromium()
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine (tests/install.sh installs it, as root on Debian)"
)
VIEWS = {
    "desktop": {"width": 1400},
    "dark": {"width": 1400, "dark": True},
    "phone": {"width": 390, "height": 844, "phone": True},
}


@pytest.fixture(scope="module")
def chromium():
    with browser.Browser(CHROMIUM) as opened:
        yield opened


def pages(reports):
    return [reports.model(model) / "report.html" for model in synthetic.MODELS] + [reports.results / "report.html"]


@pytest.mark.parametrize("view", VIEWS)
def test_pages_are_quiet_and_whole(chromium, reports, tmp_path, view):
    for page in pages(reports):
        chromium.open(page, **VIEWS[view])
        assert chromium.errors() == []
        assert chromium.requests() == [page.as_uri()]
        boxes = chromium.evaluate(
            "[...document.querySelectorAll('figure svg')].map(s => [s.getBoundingClientRect().width,"
            " s.getBoundingClientRect().height, s.querySelectorAll('path,text,line').length])"
        )
        assert len(boxes) >= 3
        assert all(width > 100 and height > 60 and marks > 10 for width, height, marks in boxes), boxes
        assert chromium.evaluate("document.documentElement.scrollWidth <= innerWidth")
        chromium.screenshot(tmp_path / "page.png", whole=False)
        assert (tmp_path / "page.png").stat().st_size > 50_000


def test_every_chart_has_a_text_in_its_place(chromium, reports):
    chromium.open(reports.model("alpha-7b") / "report.html")
    labels = chromium.evaluate("[...document.querySelectorAll('figure [role=img]')].map(f => f.ariaLabel.length)")
    assert len(labels) == len(FIGURES)
    assert min(labels) > 60


def test_tables_sort_by_a_click(chromium, reports):
    chromium.open(reports.model("alpha-7b") / "report.html")
    column = "[...document.querySelectorAll('#table-perplexity tbody tr')].map(r => Number(r.cells[1].dataset.value))"
    button = "document.querySelectorAll('#table-perplexity thead button')[1]"
    chromium.evaluate(f"{button}.click()")
    rising = chromium.evaluate(column)
    assert rising == sorted(rising)
    chromium.evaluate(f"{button}.click()")
    assert chromium.evaluate(column) == rising[::-1]
    state = "document.querySelectorAll('#table-perplexity thead th')[1].getAttribute('aria-sort')"
    assert chromium.evaluate(state) == "descending"


def test_dark_and_light_change_by_the_button(chromium, reports):
    colour = "getComputedStyle(document.body).backgroundColor"
    chromium.open(reports.model("alpha-7b") / "report.html")
    light = chromium.evaluate(colour)
    chromium.evaluate("document.querySelector('button.theme').click()")
    assert chromium.evaluate(colour) != light
    chromium.open(reports.model("alpha-7b") / "report.html", dark=True)
    dark = chromium.evaluate(colour)
    assert dark != light
    chromium.evaluate("document.querySelector('button.theme').click()")
    assert chromium.evaluate(colour) == light


def test_injected_scripts_would_not_run(chromium, reports):
    """The content security policy holds even where escaping would have failed."""
    chromium.open(reports.model("alpha-7b") / "report.html")
    chromium.evaluate(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.owned = true';"
        " document.body.append(s); })()"
    )
    assert chromium.evaluate("window.owned === undefined")
    loaded = "new Promise(done => { const i = new Image(); i.onerror = () => done('refused');"
    loaded += " i.onload = () => done('loaded'); i.src = 'https://example.invalid/x.png'; })"
    assert chromium.evaluate(loaded) == "refused"


def test_prints_to_paper(chromium, reports, tmp_path):
    chromium.open(reports.model("alpha-7b") / "report.html")
    chromium.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
