import io
import os
import shutil
import subprocess
import zipfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.bundle import container
from deploy.bundle.container import (
    LIMITS,
    MANIFEST,
    MODEL,
    MOST_TIMES_SMALLER,
    SUMS,
    from_zip,
    read_container,
    seal,
    sums,
    to_zip,
    unpack,
    unseal,
    write_container,
)
from deploy.errors import BundleError, UserError

FILES = {name: name.encode() * 3 for name in LIMITS if name != SUMS}


def zipped(files, **changes):
    """A sealed bundle of any files, sound but for the changes."""
    whole = {**files, **({SUMS: sums(files)} if SUMS not in files else {}), **changes}
    return seal(to_zip(whole, compress=True))


@given(st.dictionaries(st.sampled_from(["a", "b", "c.d"]), st.binary(max_size=300)), st.booleans())
def test_a_zip_gives_back_what_was_put_in_and_nothing_is_left_to_chance(files, compress):
    written = to_zip(files, compress=compress)
    assert from_zip(written, dict.fromkeys(files, 300), "here") == files
    assert to_zip(dict(reversed(files.items())), compress=compress) == written


@given(st.dictionaries(st.sampled_from(["a", "b"]), st.binary(max_size=300)))
def test_pythons_own_zipfile_reads_it(files):
    with zipfile.ZipFile(io.BytesIO(to_zip(files, compress=True))) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == files


@pytest.mark.skipif(not shutil.which("unzip"), reason="no unzip here")
def test_unzip_finds_no_fault_with_a_bundle(lship):
    done = subprocess.run(
        [shutil.which("unzip"), "-t", lship], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="no sha256sum here")
def test_sha256sum_checks_a_folder(folder):
    check = [shutil.which("sha256sum"), "--check", "--strict", SUMS]
    assert subprocess.run(check, cwd=folder, capture_output=True, check=False).returncode == 0
    (folder / MODEL).write_bytes(b"other")
    assert subprocess.run(check, cwd=folder, capture_output=True, check=False).returncode == 1


def test_file_and_folder_hold_the_same(tmp_path):
    write_container(FILES, tmp_path / "a.lship")
    write_container(FILES, tmp_path / "folder")
    assert read_container(tmp_path / "a.lship") == read_container(tmp_path / "folder") == FILES


def test_writing_leaves_nothing_beside_the_bundle(tmp_path):
    write_container(FILES, tmp_path / "a.lship")
    write_container(FILES, tmp_path / "a.lship")
    write_container(FILES, tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.lship", "folder"]


def test_a_folder_that_is_there_is_never_written_over(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="is there already"):
        write_container(FILES, tmp_path / "mine")


def test_what_opening_would_refuse_is_not_written(tmp_path):
    with pytest.raises(UserError, match=r"manifest\.json: has 1,048,577 bytes"):
        write_container({**FILES, MANIFEST: bytes((1 << 20) + 1)}, tmp_path / "a.lship")


def test_zeros_are_stored_as_they_are_because_a_real_file_never_shrinks_so_far():
    nothing = bytes(1_000_000)
    assert len(zlib.compress(nothing)) * MOST_TIMES_SMALLER < len(nothing)
    assert unpack(zipped({**FILES, MODEL: nothing}), "here")[MODEL] == nothing


def test_a_missing_bundle_is_a_mistake_not_damage(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.lship: no such file") as caught:
        read_container(tmp_path / "nowhere.lship")
    assert not isinstance(caught.value, BundleError)


@pytest.mark.parametrize("data", [b"", b"PK\3\4", b"no zip at all" * 20, bytes(200)])
def test_what_is_no_bundle_is_said_to_be_none(data):
    with pytest.raises(BundleError, match="is no bundle, or is cut off"):
        unpack(data, "here")


def resealed(data):
    """Return a changed file with a seal that fits it, as someone would make who knows how."""
    return data[:-64] + seal(data[:-73] + b"\0\0")[-64:]


def test_a_seal_that_fits_does_not_hide_a_changed_byte():
    data = bytearray(zipped(FILES))
    assert resealed(bytes(data)) == bytes(data)
    data[data.index(b"PK\1\2") + 12] ^= 1  # a date in the central directory
    with pytest.raises(BundleError, match="SHA-256"):
        unpack(bytes(data), "here")
    with pytest.raises(BundleError, match="not laid out as a bundle is"):
        unpack(resealed(bytes(data)), "here")


@pytest.mark.parametrize("extra", ["../evil", "/etc/cron.d/evil", "a/../../b", "extra.txt"])
def test_a_name_that_does_not_belong_is_refused(extra):
    with pytest.raises(BundleError, match=r"holds another file|not laid out"):
        unpack(zipped({**FILES, extra: b"x"}), "here")


def test_a_file_that_is_missing_is_refused():
    with pytest.raises(BundleError, match="holds another file where golden"):
        unpack(zipped({name: FILES[name] for name in FILES if name != "golden.npz"}), "here")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice_is_refused():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in sorted(LIMITS):
            archive.writestr(zipfile.ZipInfo(name), b"x")
            archive.writestr(zipfile.ZipInfo(name), b"y")
    with pytest.raises(BundleError, match="holds another file where"):
        from_zip(out.getvalue(), LIMITS, "here")


def test_another_zip_writer_is_refused_even_with_the_right_files():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in sorted(LIMITS):
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), b"x")
    with pytest.raises(BundleError, match="not laid out as a bundle is"):
        from_zip(out.getvalue(), LIMITS, "here")


def bomb(claimed):
    """A zip of one file ``a`` that unpacks to 50 MB and claims another size."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = deflate.compress(bytes(50_000_000)) + deflate.flush()
    return container._lay_out([container._Member("a", 8, 0, claimed, packed)])


def test_a_bomb_is_refused_by_what_it_claims():
    with pytest.raises(BundleError, match="are allowed"):
        from_zip(bomb(50_000_000), {"a": 1 << 20}, "here")
    with pytest.raises(BundleError, match="says 50,000,000 bytes from 48,"):
        from_zip(bomb(50_000_000), {"a": 1 << 26}, "here")


def test_a_bomb_that_lies_about_its_size_is_not_unpacked_further():
    with pytest.raises(BundleError, match="does not unpack to 1,000 bytes"):
        from_zip(bomb(1000), {"a": 1 << 20}, "here")


def test_a_file_larger_than_any_bundle_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "huge.lship").open("wb") as file:
        file.truncate(1 << 40)  # sparse: takes no room
    with pytest.raises(BundleError, match="is larger than"):
        read_container(tmp_path / "huge.lship")


def test_a_list_of_sums_that_lists_something_else_is_refused():
    with pytest.raises(BundleError, match="is not the one that SHA256SUMS lists"):
        unpack(zipped(FILES, **{SUMS: sums({**FILES, MODEL: b"other"})}), "here")


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_a_folder_with_any_byte_changed_is_refused(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match="is damaged"):
        read_container(folder)


def test_a_folder_with_a_file_too_many_or_too_few_is_refused(folder):
    (folder / "libop.so").write_bytes(b"")
    with pytest.raises(BundleError, match=r"'libop\.so' does not belong"):
        read_container(folder)
    (folder / "libop.so").unlink()
    (folder / MODEL).unlink()
    with pytest.raises(BundleError, match=r"lacks model\.onnx"):
        read_container(folder)


def test_a_link_in_a_folder_is_refused_even_to_the_right_bytes(folder, tmp_path):
    (folder / MODEL).rename(tmp_path / "elsewhere")
    (folder / MODEL).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"model\.onnx has to be a file, not a link"):
        read_container(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_a_pipe_is_not_waited_for(folder, tmp_path):
    os.mkfifo(tmp_path / "pipe.lship")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        read_container(tmp_path / "pipe.lship")
    (folder / MODEL).unlink()
    os.mkfifo(folder / MODEL)
    with pytest.raises(BundleError, match="has to be a file"):
        read_container(folder)


def test_the_seal_comes_off_as_it_went_on():
    written = to_zip(FILES, compress=True)
    assert unseal(seal(written), "here") == written
