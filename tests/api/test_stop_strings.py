"""Stop strings: whatever way the text is cut into pieces, the same text is shown, and nothing of the stop string."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raysgl.api.stop_strings import StopMatcher

text = st.text("abc👩é", max_size=30)
stops = st.lists(st.text("abc👩é", min_size=1, max_size=5), min_size=1, max_size=5).map(tuple)


def plain(whole: str, stops: tuple[str, ...], keep: bool) -> tuple[str, str | None]:
    """By looking at the whole text: the match that ends first, of several the longest."""
    found = [(whole.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in whole]
    if not found:
        return whole, None
    end, _, stop = min(found)
    return whole[: end if keep else end - len(stop)], stop


def cut(whole: str, points: list[int]) -> list[str]:
    points = sorted({min(point, len(whole)) for point in points})
    return [whole[a:b] for a, b in zip([0, *points], [*points, len(whole)], strict=True)]


@given(text, stops, st.lists(st.integers(0, 30)), st.booleans())
def test_cutting_changes_nothing(whole, stops, points, keep):
    matcher = StopMatcher(stops, keep)
    shown = ""
    expected, matched = plain(whole, stops, keep)
    for piece in cut(whole, points):
        shown += matcher.push(piece)
        assert expected.startswith(shown)  # nothing of a stop string leaks, not even for a moment
        if matcher.matched is not None:
            break
    else:
        shown += matcher.flush()
    assert (shown, matcher.matched) == (expected, matched)


@given(text, stops)
def test_no_more_is_held_back_than_needed(whole, stops):
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(char) for char in cut_until_match(whole, stops))
    held = whole[len(shown) : len("".join(cut_until_match(whole, stops)))]
    assert matcher.matched is not None or not held or any(stop.startswith(held) for stop in stops)


def cut_until_match(whole: str, stops: tuple[str, ...]) -> list[str]:
    for end in range(len(whole) + 1):
        if any(stop in whole[:end] for stop in stops):
            return list(whole[:end])
    return list(whole)


def test_overlapping_stops_end_together():
    assert plain("xabc", ("bc", "abc"), False) == ("x", "abc")
    matcher = StopMatcher(("bc", "abc"))
    assert [matcher.push(char) for char in "xabc"] == ["x", "", "", ""]
    assert matcher.matched == "abc"


def test_a_long_stop_string_that_fails_late_is_shown():
    matcher = StopMatcher(("aab",))
    assert [matcher.push(char) for char in "aaab"] == ["", "", "a", ""]
    assert matcher.matched == "aab"
