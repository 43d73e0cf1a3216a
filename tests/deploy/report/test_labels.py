from hypothesis import given
from hypothesis import strategies as st

from deploy.report.labels import Box, place_labels

FRAME = Box(0, 0, 300, 200)
SPOT = st.tuples(st.floats(0, 300), st.floats(0, 200))


@given(st.lists(SPOT, min_size=1, max_size=10))
def test_no_label_lies_on_another_on_a_mark_or_out_of_the_frame(points):
    marks = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    boxes = place_labels(points, [(60, 15)] * len(points), marks=marks, lines=[], frame=FRAME)
    placed = [box for box in boxes if box is not None]
    for i, box in enumerate(placed):
        assert FRAME.holds(box)
        assert not any(box.overlaps(other) for other in [*marks, *placed[:i]])


def test_a_label_goes_to_the_right_where_there_is_room():
    (box,) = place_labels([(100, 100)], [(60, 15)], marks=[], lines=[], frame=FRAME)
    assert box == Box(109, 92.5, 169, 107.5)


def test_a_label_crosses_a_line_only_for_want_of_another_place():
    everywhere = Box(0, 0, 300, 200)
    (box,) = place_labels([(100, 100)], [(60, 15)], marks=[], lines=[everywhere], frame=FRAME)
    assert box == Box(109, 92.5, 169, 107.5)
    right = Box(100, 99, 300, 101)
    (box,) = place_labels([(100, 100)], [(60, 15)], marks=[], lines=[right], frame=FRAME)
    assert box is not None
    assert not box.overlaps(right)


def test_a_label_without_room_is_left_out():
    everywhere = Box(0, 0, 300, 200)
    assert place_labels([(9, 9)], [(60, 15)], marks=[everywhere], lines=[], frame=FRAME) == [None]
