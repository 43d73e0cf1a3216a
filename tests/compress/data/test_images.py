from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from compress.data.images import read_images
from deploy.errors import UserError

GREY = np.array([[0, 100], [200, 255], [7, 8]], np.uint8)  # 3 high, 2 wide
RED = np.zeros((3, 2, 3), np.uint8) + np.array([255, 0, 0], np.uint8)


def save(path: Path, pixels: np.ndarray, *, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)


def test_folder_names_are_the_labels_in_order(tmp_path):
    save(tmp_path / "dog" / "b.png", GREY)
    save(tmp_path / "dog" / "a.PNG", GREY + 0 * GREY)
    save(tmp_path / "cat" / "z.png", 255 - GREY)
    (tmp_path / "cat" / ".DS_Store").touch()
    (tmp_path / "notes.txt").touch()
    source = read_images(tmp_path)
    assert source.labels == ("cat", "dog")
    assert source.train.y.tolist() == [0, 1, 1]
    assert source.train.x.shape == (3, 3, 2, 1)
    np.testing.assert_array_equal(source.train.x[1, :, :, 0], GREY)
    assert source.test is None


def test_one_image_in_colour_makes_all_have_three_channels(tmp_path):
    save(tmp_path / "a" / "grey.png", GREY)
    save(tmp_path / "b" / "red.png", RED, mode="RGBA")
    x = read_images(tmp_path).train.x
    assert x[0, 0, 1].tolist() == [100, 100, 100]
    assert x[1, 0, 1].tolist() == [255, 0, 0]


def test_a_palette_gives_its_colours(tmp_path):
    save(tmp_path / "a" / "red.png", RED, mode="P")
    assert read_images(tmp_path).train.x[0, 0, 0].tolist() == [255, 0, 0]


def test_a_jpeg_is_read_as_near_as_jpeg_can(tmp_path):
    save(tmp_path / "a" / "red.jpg", RED)
    assert np.abs(read_images(tmp_path).train.x[0].astype(int) - RED).max() <= 2


def test_train_and_test_folders_give_the_parts(tmp_path):
    save(tmp_path / "train" / "a" / "1.png", GREY)
    save(tmp_path / "train" / "b" / "1.png", GREY)
    save(tmp_path / "test" / "b" / "1.png", RED)  # colour in one part is colour in both
    source = read_images(tmp_path)
    assert source.test is not None
    assert source.labels == ("a", "b")
    assert (source.train.y.tolist(), source.test.y.tolist()) == ([0, 1], [1])
    assert source.train.x.shape[1:] == source.test.x.shape[1:] == (3, 2, 3)


def test_images_of_two_sizes_are_both_named(tmp_path):
    save(tmp_path / "a" / "tall.png", GREY)
    save(tmp_path / "b" / "wide.png", GREY.T)
    with pytest.raises(
        UserError, match=r"wide\.png: is 3×2 pixels and .*tall\.png is 2×3; set data\.image_size"
    ):
        read_images(tmp_path)


def test_an_unreadable_image_is_named(tmp_path):
    save(tmp_path / "a" / "good.png", GREY)
    (tmp_path / "a" / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"text\.png: not a readable PNG or JPEG image"):
        read_images(tmp_path)


def test_a_cut_off_image_is_named(tmp_path):
    save(tmp_path / "a" / "cut.png", np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8))
    content = (tmp_path / "a" / "cut.png").read_bytes()
    (tmp_path / "a" / "cut.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"cut\.png: not a readable PNG or JPEG image"):
        read_images(tmp_path)


def test_sixteen_bits_a_channel_are_refused(tmp_path):
    save(tmp_path / "a" / "deep.png", GREY.astype(np.uint16) * 256)
    with pytest.raises(UserError, match=r"deep\.png: needs 8 bits a channel, got mode I"):
        read_images(tmp_path)


def test_another_kind_of_file_among_the_images_is_named(tmp_path):
    save(tmp_path / "a" / "x.gif", GREY)
    with pytest.raises(UserError, match=r"x\.gif: not a \.png or \.jpg image"):
        read_images(tmp_path)


@pytest.mark.parametrize(
    ("folders", "why_not"),
    [
        ((), "holds no sub-folders"),
        (("a",), r"a: holds no images"),
        (("train/a", "test/a", "val/a"), "beside train and test lie val"),
    ],
)
def test_folders_of_another_layout_are_refused(tmp_path, folders, why_not):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(UserError, match=why_not):
        read_images(tmp_path)


def test_a_class_that_only_the_test_folder_has_is_refused(tmp_path):
    save(tmp_path / "train" / "a" / "1.png", GREY)
    save(tmp_path / "test" / "b" / "1.png", GREY)
    with pytest.raises(UserError, match=r"test/b: train has no class of this name, it has a"):
        read_images(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="absent: no such folder"):
        read_images(tmp_path / "absent")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@given(data=st.data())
def test_a_damaged_image_is_refused_or_read(tmp_path_factory, kind, data):
    buffer = io.BytesIO()
    Image.fromarray(RED).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "a" / "x.png"
    path.parent.mkdir()
    path.write_bytes(content)
    with contextlib.suppress(UserError):  # anything else fails the test
        read_images(path.parent.parent)
