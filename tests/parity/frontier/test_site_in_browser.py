"""The frontier's site in a real browser, from its files: hover, filters, sorting, links back, themes, phone, print, and
no request to the network."""

import json

import boards
import chromium
import pytest

from parity.frontier import site

pytestmark = pytest.mark.skipif(chromium.find() is None, reason="needs a Chromium: apt-get install chromium")

DRAWN = "performance.getEntriesByName('usable').length && document.documentElement.classList.contains('drawn')"
ROWS = "[...document.querySelectorAll('#records-table tbody tr')].filter(row => !row.hidden)"
MARKS = "document.getElementById('frontier-chart').data.at(-1)"
LOCAL = ("file:", "data:", "blob:", "about:")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four sites: 40 attempts, hostile texts, nothing but the public history, and nothing at all."""
    folder = tmp_path_factory.mktemp("sites")
    for name, board, text in (
        ("plain", boards.board(40), ""),
        ("hostile", boards.board(9, text=boards.HOSTILE), boards.HOSTILE),
        ("empty", boards.board(0), ""),
        ("nothing", boards.board(0) | {"reported": None}, ""),
    ):
        site.build(board, folder / name, [boards.page(entry, text) for entry in board["entries"]])
    return folder


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with chromium.browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser.page()


@pytest.fixture
def page(tab):
    """The browser's tab, which at the end has seen no error and asked nothing of the network."""
    tab.problems.clear(), tab.requests.clear()
    tab.send("Storage.clearDataForOrigin", origin="file://", storageTypes="local_storage")
    yield tab
    assert tab.problems == []
    assert tab.requests and [url for url in tab.requests if not url.startswith(LOCAL)] == []


def show(page, folder, path="plain/index.html", state="", **window):
    page.open((folder / path).as_uri() + state, **window)
    page.until(DRAWN if path.endswith("index.html") else "document.readyState === 'complete'")


def choose(page, name, value, form="filters"):
    """Chooses an option of a form as a person does."""
    script = "one.value = value; one.dispatchEvent(new Event('change', {bubbles: true}))"
    select = f"document.querySelector('#{form} [name={name}]')"
    page.run(f"((one, value) => {{ {script} }})({select}, {json.dumps(value)})")


def cells(page, column):
    return page.run(f"{ROWS}.map(row => row.cells[{column}].textContent.trim())")


def attempt_of(folder, name):
    return f"{name}/attempt/{sorted((folder / name / 'attempt').iterdir())[3].name}"


def test_hover_shows_the_point_and_its_curve(page, folder):
    show(page, folder)
    page.run("document.getElementById('frontier-chart').scrollIntoView({block: 'center'})")
    point = page.run(
        f"""(() => {{
            const chart = document.getElementById('frontier-chart'), box = chart.getBoundingClientRect();
            const {{xaxis, yaxis}} = chart._fullLayout, {{x, y}} = {MARKS};
            const at = y.findIndex(loss => loss < yaxis.range[1]);
            const left = box.x + xaxis._offset, top = box.y + yaxis._offset;
            return {{x: left + xaxis.d2p(x[at]), y: top + yaxis.d2p(y[at]), loss: y[at]}};
        }})()"""
    )
    page.move(point["x"] - 3, point["y"] + 40)
    page.move(point["x"], point["y"])
    page.until("document.querySelector('.over.on .tip') !== null", "the tip to show")
    assert f"loss {point['loss']:.4f}" in page.run("document.querySelector('.over.on .tip').innerText")
    page.until(
        "document.querySelector('.over.on polyline').getAttribute('points').split(' ').length === 12",
        "the attempt's curve",
    )


def test_a_filter_hides_all_else(page, folder):
    show(page, folder)
    for name, value, column in (("backend", "torchref", 7), ("kind", "agent", 8), ("hardware", "Apple M2, 8 cores", 9)):
        before = len(cells(page, column))
        choose(page, name, value)
        values = cells(page, column)
        assert set(values) == {value} and len(values) < before
        page.until(f"{MARKS}.x.length === {len(values)}", "the chart to have as many marks as the table has rows")
        assert f"{name}=" in page.run("location.hash")
        page.click("#filters button[type=reset]")
        assert len(cells(page, column)) == before


def test_verified_and_reported_results_are_told_apart_and_each_can_be_hidden(page, folder):
    show(page, folder)
    choose(page, "track", "small")
    assert set(cells(page, 10)) == {"reported"}
    page.until("document.getElementById('frontier-chart').data[0].x.length > 50", "reported marks")
    assert page.run("document.getElementById('frontier-chart').data[0].marker.symbol") == "triangle-up-open"
    assert "reported by others, not verified here" in page.run(
        "document.getElementById('frontier-chart-legend').textContent"
    )
    choose(page, "status", "verified")
    assert cells(page, 10) == []
    choose(page, "track", "pocket")
    assert set(cells(page, 10)) == {"verified"}
    choose(page, "status", "reported")
    assert cells(page, 10) == []


def test_another_axis_has_other_costs_and_other_frontiers(page, folder):
    show(page, folder)
    seconds = page.run("document.getElementById('frontier-chart').data.length")
    choose(page, "axis", "tokens")
    page.until("document.getElementById('frontier-chart').layout.xaxis.title.text.startsWith('Tokens')")
    assert (
        page.run("document.getElementById('frontier-chart').data.length") == 3 < seconds
    )  # a line for every class only in seconds
    assert page.run("document.querySelector('[data-column=cost]').textContent") == "Tokens"
    assert all(int(one.replace(",", "")) % 4096 == 0 for one in cells(page, 4))


def test_a_head_sorts_by_click_and_by_key(page, folder):
    show(page, folder)
    page.click("[data-column=loss] button")
    values = [float(one.split()[0]) for one in cells(page, 3)]
    assert (
        values == sorted(values)
        and page.run("document.querySelector('[data-column=loss]').getAttribute('aria-sort')") == "ascending"
    )
    page.run("document.querySelector('[data-column=loss] button').focus()")
    page.press("Enter")
    values = [float(one.split()[0]) for one in cells(page, 3)]
    assert (
        values == sorted(values, reverse=True)
        and page.run("document.querySelector('[data-column=loss]').getAttribute('aria-sort')") == "descending"
    )
    page.click("[data-column=title] button")
    values = cells(page, 2)
    assert values == page.run(f"{json.dumps(values)}.sort((a, b) => a.localeCompare(b))")


def test_the_way_to_an_attempt_and_back_keeps_the_filters(page, folder):
    show(page, folder, state="#track=pocket&backend=jaxrun&axis=steps")
    before = cells(page, 2)
    page.run(f"{ROWS}[1].querySelector('a').focus()")
    page.press("Enter")
    page.until("location.pathname.includes('/attempt/') && performance.getEntriesByName('usable').length")
    assert page.run("document.querySelector('h1').textContent") in before[1]
    page.click("a.back")
    page.until(f"location.pathname.endsWith('/index.html') && {DRAWN}")
    assert cells(page, 2) == before and page.run("document.querySelector('[name=axis]').value") == "steps"


def test_the_chart_is_walked_and_opened_with_keys(page, folder):
    show(page, folder)
    page.run("document.getElementById('frontier-chart').focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.press(key)
    assert "loss" in page.run("document.getElementById('frontier-chart-note').textContent")
    span = "(([a, b]) => b - a)(document.getElementById('frontier-chart')._fullLayout.xaxis.range)"
    before = page.run(span)
    page.press("+")
    page.until(f"{span} < 0.7 * {before}", "the chart to zoom in")
    page.press("0")
    page.until(f"Math.abs({span} - {before}) < 1e-6", "the chart to fit its results again")
    page.press("ArrowRight")
    page.press("Enter")
    page.until("location.pathname.includes('/attempt/')")


def test_an_attempts_curves_show_every_run(page, folder):
    show(page, folder, attempt_of(folder, "plain"))
    page.until("performance.getEntriesByName('usable').length")
    runs = page.run("JSON.parse(document.getElementById('data').textContent).runs.length")
    assert page.run("document.getElementById('curves-chart').data.length") == 2 * runs
    choose(page, "axis", "seconds", "curve-form")
    page.until("document.getElementById('curves-chart').layout.xaxis.title.text.startsWith('Seconds')")
    page.click("#curve-form [name=train]")
    page.until(f"document.getElementById('curves-chart').data.length === {runs}", "training losses to go")


def test_deltas_are_drawn_with_their_intervals_in_loss_and_in_cost(page, folder):
    show(page, folder)
    drawn = "document.getElementById('delta-chart').data?.[0]"
    page.until(f"{drawn}?.x.length === 25", "the newest 25")
    assert page.run(f"{drawn}.error_x.array.every(one => one > 0)")
    page.click("#older")
    page.until(f"{drawn}.x.length < 25", "the older ones")
    choose(page, "measure", "cost", "delta-form")
    page.until("document.getElementById('delta-chart').layout.xaxis.title.text.includes('%')", "per cent of the cost")


def test_light_and_dark_follow_the_system_and_the_button(page, folder):
    ground = "getComputedStyle(document.body).backgroundColor"
    show(page, folder, dark=True)
    dark = page.run(ground)
    page.click("#theme")
    light = page.run(ground)
    assert light == "rgb(255, 255, 255)" != dark
    show(page, folder, attempt_of(folder, "plain"), dark=True)
    assert page.run(ground) == light  # the choice is remembered
    show(page, folder, attempt_of(folder, "plain"))
    page.click("#theme")
    assert page.run(ground) == dark


def test_nothing_is_wider_than_a_phone(page, folder):
    for path in (
        "hostile/index.html",
        attempt_of(folder, "hostile"),
        "hostile/matrices.html",
        "hostile/frontier.html",
        "plain/index.html",
    ):
        show(page, folder, path, width=360, height=740)
        assert page.run("document.documentElement.scrollWidth") <= 360, path


def test_untrusted_texts_run_nothing(page, folder):
    for path in ("hostile/index.html", attempt_of(folder, "hostile"), "hostile/matrices.html", "hostile/frontier.html"):
        show(page, folder, path)
    show(page, folder, "hostile/index.html")
    page.run("document.getElementById('frontier-chart').focus()")
    page.press("ArrowRight")
    assert "<b>bold</b>" in page.run("document.querySelector('.tip').innerText")
    assert (
        page.run("document.querySelectorAll('.tip b, .tip img, .legend b, .legend img').length") == 1
    )  # the title's own
    page.until("document.querySelector('#delta-chart .ytick') !== null")
    assert page.run("document.querySelector('#delta-chart .ytick').textContent").startswith("<b>bold</b></script>")


def test_an_empty_ledger_shows_the_public_history(page, folder):
    show(page, folder, "empty/index.html")
    assert len(cells(page, 2)) == 50 and page.run("document.querySelector('[name=track]').value") == "small"
    page.click("#more")
    assert len(cells(page, 2)) == 94
    show(page, folder, "nothing/index.html")
    assert "Nothing to draw" in page.run("document.getElementById('frontier-chart-note').textContent")


def test_it_prints_in_light_colours_and_is_as_before_afterwards(page, folder, tmp_path):
    show(page, folder, dark=True)
    width = page.run("document.getElementById('frontier-chart').offsetWidth")
    page.run(
        "addEventListener('beforeprint', () => "
        "window.ground = getComputedStyle(document.documentElement).getPropertyValue('--ground'))"
    )
    page.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert page.run("window.ground.trim()") == "#ffffff"
    page.until(
        f"document.getElementById('frontier-chart').querySelector('svg').clientWidth === {width}",
        "the charts to have their width again",
    )


def test_the_time_until_1000_attempts_are_usable_is_measured(page, tmp_path, record_property):
    site.build(boards.board(1000), tmp_path / "big", ())
    for load in ("first", "second"):
        show(page, tmp_path, "big/index.html")
        table_ms, chart_ms = page.run(
            "['table', 'usable'].map(name => performance.getEntriesByName(name)[0].startTime)"
        )
        record_property(f"{load}_load_usable_ms", chart_ms)
        print(f"1,000 attempts, {load} load: table after {table_ms:.0f} ms, chart after {chart_ms:.0f} ms")
    assert len(cells(page, 2)) == 50
