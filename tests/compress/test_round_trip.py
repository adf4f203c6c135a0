import pytest

from deploykit.compress.round_trip import Fallback, NewUnknown, RoundTrip, compare


def row(*pieces: str) -> list[tuple[str, int, tuple[int, int]]]:
    return [(piece, 0, (index, index + 1)) for index, piece in enumerate(pieces)]


def test_known_rows_give_the_known_answer():
    before = [row("a", "b"), row("good", "film", "b"), row("film"), row("?", "x")]
    after = [row("a", "b"), row("go", "##od", "f", "##ilm", "b"), row("f", "##ilm"), row("?", "?")]
    found = compare(before, after, "?")
    assert (found.rows, found.same) == (4, 1)
    assert (found.pieces_before, found.pieces_after) == (8, 11)
    assert (found.unknown_before, found.unknown_after) == (1, 2)
    assert found.new_unknown == (NewUnknown(3, ("x",)),)
    assert found.fallback == (
        Fallback(("film",), ("f", "##ilm"), 1),
        Fallback(("good", "film"), ("go", "##od", "f", "##ilm"), 1),
        Fallback(("x",), ("?",), 1),
    )


def test_another_type_or_place_of_the_same_piece_is_another_row():
    found = compare([[("a", 0, (0, 1))]] * 3, [[("a", 0, (0, 1))], [("a", 1, (0, 1))], [("a", 0, (1, 2))]], None)
    assert (found.same, found.fallback, found.new_unknown) == (1, (), ())


def test_pieces_pushed_out_become_nothing():
    assert compare([row("ab", "c")], [row("a", "b")], None).fallback == (Fallback(("ab", "c"), ("a", "b"), 1),)
    assert compare([row("a", "c")], [row("a")], None).fallback == (Fallback(("c",), (), 1),)


def test_no_rows_and_empty_rows_are_the_same():
    assert compare([], [], "?") == RoundTrip(0, 0, 0, 0, 0, 0, (), ())
    assert compare([[]], [[]], "?").same == 1


def test_rows_that_do_not_pair_up_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        compare([row("a")], [], None)
