"""How far a name that no engine checked reaches, by the positions of a source's streams."""

from __future__ import annotations

import pytest

from vff_qos.core.claims.accesslog import FREE_TEXT_BYTES, STREAM_POSITIONS
from vff_qos.core.settings import Settings
from vff_qos.follower.voice import Voice

FIRST, SECOND = STREAM_POSITIONS, 2 * STREAM_POSITIONS


@pytest.fixture
def voice() -> Voice:
    settings = Settings(wan="wan0", free_text_ports=((8388, 8388),))
    return Voice(settings, settings.sources[0], set())


def test_it_reaches_from_its_line_so_far(voice: Voice) -> None:
    voice.taint_after(FIRST + 1_000)
    reached = [voice.is_after_free_text(FIRST + 1_000 + n) for n in (1, FREE_TEXT_BYTES - 1)]
    assert reached == [True, True]
    assert not voice.is_after_free_text(FIRST + 1_000 + FREE_TEXT_BYTES)
    # A claim that was kept back is of where it stood.
    assert voice.is_after_free_text(FIRST + 1_001)


def test_one_of_another_stream_takes_nothing_from_it(voice: Voice) -> None:
    """Two files are read side by side after a rotation, two processes in a journal always."""
    voice.taint_after(FIRST + 1_000)
    voice.taint_after(SECOND + 50_000)
    assert voice.is_after_free_text(FIRST + 1_500)
    assert not voice.is_after_free_text(SECOND + 1_500)


def test_it_reaches_into_the_next_stream_while_it_reaches_beyond_what_was_read(
    voice: Voice,
) -> None:
    voice.taint_after(FIRST + 1_000)
    assert voice.is_in_free_text
    assert voice.is_after_free_text(SECOND + 1)
    assert not voice.is_after_free_text(SECOND + FREE_TEXT_BYTES)
    voice.is_after_free_text(FIRST + 1_000 + FREE_TEXT_BYTES)
    assert not voice.is_in_free_text
    assert not voice.is_after_free_text(3 * STREAM_POSITIONS + 1)


def test_what_is_read_first_after_a_restart_may_be_of_one(voice: Voice) -> None:
    assert not voice.is_after_free_text(FIRST)
    voice.begin_within()
    # Killed at once, it is so for the next start, too.
    assert voice.is_in_free_text
    assert voice.is_after_free_text(FIRST)
    # One of several may be through first.
    assert voice.is_after_free_text(SECOND + 100)
    assert not voice.is_after_free_text(FIRST + FREE_TEXT_BYTES)
    assert voice.is_after_free_text(SECOND + 200)
    assert not voice.is_after_free_text(SECOND + FREE_TEXT_BYTES)
    assert not voice.is_in_free_text


def test_streams_are_remembered_in_number(voice: Voice) -> None:
    for number in range(2_000):
        voice.taint_after(number * STREAM_POSITIONS)
    assert len(voice._free) <= 256
    # Those that are through go first.
    voice.is_after_free_text(1_900 * STREAM_POSITIONS + FREE_TEXT_BYTES)
    voice.taint_after(3_000 * STREAM_POSITIONS)
    assert 1_900 not in voice._free and 1_800 in voice._free
    assert voice.is_after_free_text(1_999 * STREAM_POSITIONS + 1)


def test_where_no_inbound_writes_such_names_nothing_is_of_one() -> None:
    settings = Settings(wan="wan0")
    voice = Voice(settings, settings.sources[0], set())
    voice.begin_within()
    assert not voice.is_in_free_text and not voice.is_after_free_text(FIRST)
