"""The page in a real browser: what a person sees, with mouse and keyboard, in both languages."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from browser import Browser
from vff_qos.web.files import STATIC

from .harness import Client, eventually, status
from .page_node import PageNode
from .senders import send_through

PORT = 9473
URL = f"http://127.0.0.1:{PORT}/"
ALICE, BOB = "alice@x", "bob@x"
#: A name that a stranger has chosen.
MARKUP = "<img src=x onerror=alert(1)>@x"


@pytest.fixture
def page(tmp_path: Path, trees: tuple[str, str]) -> Iterator[PageNode]:
    made = PageNode(tmp_path)
    made.remember([ALICE, BOB], 3)
    made.start()
    made.come([ALICE, BOB, MARKUP])
    made.run("limit", ALICE, "--download", "4mbit", "--reason", "ticket 7")
    made.serve(f"127.0.0.1:{PORT}")
    yield made
    made.close()


@pytest.fixture
def browser() -> Iterator[Browser]:
    with Browser() as made:
        made.look(False, 1280, 900)
        made.keep(language="en")
        yield made


def shows(browser: Browser, words: str) -> None:
    """Wait for words on the page: a verdict may come of something else before that."""
    browser.until(f"document.body.innerText.includes({words!r})")


def test_a_person_finds_a_user_with_the_keyboard_alone(page: PageNode, browser: Browser) -> None:
    browser.open(URL)
    # Both change while a node begins, one after the other.
    shown = "document.querySelector('#verdict .badge').innerText"
    eventually(lambda: browser.until(shown) == status(page)["verdict"], 30)
    browser.until("document.querySelector('main').innerText.includes('alice@x')")
    browser.press("2")
    browser.until(
        "location.hash == '#/users' && document.querySelectorAll('tr[data-user]').length == 3"
    )
    browser.press("/")
    browser.until("document.activeElement.id == 'search'")
    for letter in "ali":
        browser.press(letter)
    browser.until("document.querySelectorAll('tr[data-user]').length == 1")
    browser.press("Escape")
    browser.press("j")
    browser.until("document.activeElement.dataset.user == 'alice@x'")
    browser.press("Enter")
    browser.until("document.querySelector('h1')?.innerText == 'alice@x'")
    browser.until("document.querySelector('main').innerText.includes('ticket 7')")
    browser.until("document.querySelectorAll('.plot canvas').length == 2")
    shows(browser, "4 Mbit/s")
    browser.press("Escape")
    browser.until("location.hash == '#/users'")
    browser.press("?")
    browser.until("document.querySelector('#help').open")
    browser.press("Escape")
    browser.until("!document.querySelector('#help').open")
    assert browser.complaints == []


def test_what_a_stranger_calls_themselves_is_text(page: PageNode, browser: Browser) -> None:
    browser.open(f"{URL}#/users")
    browser.until("document.querySelectorAll('tr[data-user]').length == 3")
    shows(browser, MARKUP)
    browser.open(
        f"{URL}#/user/{MARKUP.replace('<', '%3C').replace('>', '%3E').replace(' ', '%20')}"
    )
    browser.until(f"document.querySelector('h1')?.innerText == {MARKUP!r}")
    assert browser.ask("document.querySelectorAll('img[src=x]').length") == 0
    assert browser.complaints == []


def test_it_moves_with_the_node_and_says_when_it_cannot(page: PageNode, browser: Browser) -> None:
    browser.open(URL)
    browser.until("document.querySelector('main').innerText.includes('alice@x')")
    minor = page.minors()[BOB]

    def traffic() -> bool:
        with contextlib.suppress(OSError):  # more than bob may: the queue is full
            send_through("wan0", minor, 8)
        first = browser.ask("document.querySelector('tr[data-user]').innerText")
        return str(first).startswith(BOB) and not re.search(r"\t0 bit/s\t0 bit/s", str(first))

    eventually(traffic, 30)
    page.write_policy("users: {alice@x: {download: fast}}\n")
    shows(browser, "'fast'")
    browser.until("document.querySelector('#verdict').className == 'DEGRADED'")
    assert page.page is not None
    page.page.kill()
    browser.until("document.querySelector('#verdict').className == 'lost'")
    shows(browser, "what is shown is old")


def test_every_view_in_both_languages_colours_and_sizes(page: PageNode, browser: Browser) -> None:
    stranger = Client("::1", 4430)
    page.clients.append(stranger)
    page.write(stranger.line(ALICE), stranger.line("mallory@x"))
    expected = {
        "now": "Действует поверх политики",
        "users": "пользователей: ",
        "history": "подсчитано до",
        "restricted": "(restricted) ",
        "events": "ticket 7",
        "doctor": "запуска узла проверки не было",
        "user/alice%40x": "Почему такие пределы",
    }
    grounds = set()
    browser.keep(language="ru")
    for dark, width in ((False, 1280), (True, 390)):
        browser.look(dark, width, 844)
        for view, words in expected.items():
            browser.open(f"{URL}#/{view}")
            browser.until(f"document.querySelector('main').innerText.includes({words!r})")
            # Nothing but tables, which scroll in themselves, is wider than the window.
            assert browser.ask("document.documentElement.scrollWidth") <= width, view
        grounds.add(browser.ask("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2
    assert browser.complaints == []


def test_both_languages_have_every_text_and_no_more() -> None:
    source = (STATIC / "texts.js").read_text()
    english, russian = (
        dict(re.findall(r'(\w+): "((?:[^"\\]|\\.)*)"', part)) for part in source.split("  ru: {")
    )
    assert english.keys() == russian.keys()
    for key, words in english.items():
        assert sorted(re.findall(r"\{\d\}", words)) == sorted(re.findall(r"\{\d\}", russian[key]))
    page = (STATIC / "page.js").read_text() + (STATIC / "index.html").read_text()
    # Some are put together: theme_auto, sort_rate, held_limit, day_7.
    made = ("theme_", "sort_", "held_", "day_")
    assert [key for key in english if key not in page and not key.startswith(made)] == []
