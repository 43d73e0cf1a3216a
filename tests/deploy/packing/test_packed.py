"""What is unpacked is what was packed, to the last byte, or nothing at all."""

import hashlib
import random
import struct
import subprocess
import sys
import tracemalloc
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deploy.packing.codings import (
    Coding,
    _planes,
    best_plan,
    joined_plans,
    read_values,
)
from deploy.packing.lanes import MOST_ROWS, Decoder, Encoder
from deploy.packing.packed import (
    MAGIC,
    PackingError,
    _lanes,
    is_packed,
    pack,
    parts_of,
    unpack,
)
from deploy.packing.streams import Reader, Writer
from deploy.packing.tables import from_weights, geometric, most_levels, uniform
from deploy.packing.text import deflate_symbols, dictionary
from deploy.packing.weigh import entropy_bits, sizes_of
from tests.deploy import tiny_onnx
from tests.drawing import examples

ROOT = Path(__file__).parents[3]


def model_of(*tensors) -> bytes:
    return tiny_onnx.model(
        [("Identity", ["x"], ["y"])],
        inputs={"x": ("float32", ("n", 2))},
        outputs={"y": ("float32", ("n", 2))},
        initializers={f"w{index}": tensor for index, tensor in enumerate(tensors)},
    )


def drawn(seed=0):
    return np.random.default_rng(seed)


def sparse(dtype, size=20_000, share=0.05, seed=0):
    rng = drawn(seed)
    values = np.zeros(size, dtype)
    places = rng.random(size) < share
    values[places] = rng.normal(0, 20, places.sum()).astype(dtype)
    return values


KINDS = {
    "int8": drawn().normal(0, 20, 20_000).astype(np.int8),
    "sparse int8": sparse(np.int8),
    "sparse float": sparse(np.float32),
    "float": drawn().normal(0, 1, 5_000).astype(np.float32),
    "half": drawn().normal(0, 1, 5_000).astype(np.float16),
    "clustered": drawn().choice(drawn(1).normal(0, 1, 16).astype(np.float32), 20_000),
    "int32": drawn().integers(-3_000, 3_000, 500).astype(np.int32),
    "double": drawn().normal(0, 1, 500),
    "one value": np.full(1_000, 7, np.int64),
    "NaN and -0": np.array([np.nan, -0.0, 0.0, np.inf] * 50, np.float32),
    "one other": np.eye(1, 3_000, 2_999, dtype=np.int8)[0],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_comes_back_as_it_was_in_fewer_bytes(kind):
    model = model_of(KINDS[kind])
    packed = pack(model)
    assert unpack(packed, "here") == model
    assert is_packed(packed)
    assert len(packed) < len(model)


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=400))
@example(data=b"\x00\x08\x03\x00\x00\x04")  # a value beyond the number of bytes
def test_any_bytes_come_back_as_they_were_and_grow_by_little(data):
    packed = pack(data)
    assert unpack(packed, "here") == data
    assert len(packed) <= len(data) + 64


@pytest.mark.drawn
@settings(max_examples=examples(100), deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dtypes=st.lists(st.sampled_from(["int8", "uint8", "float16", "float32", "int32", "int64"])),
)
def test_any_tensors_come_back_as_they_were(seed, dtypes):
    rng = drawn(seed)
    tensors = [
        (rng.integers(0, 2, size) * rng.normal(0, 50, size)).astype(dtype)
        if dtype != "uint8"
        else rng.integers(0, 1 + rng.integers(256), size).astype(dtype)
        for dtype in dtypes
        for size in [int(rng.integers(1, 600))]
    ]
    model = model_of(*tensors)
    assert unpack(pack(model), "here") == model


def test_one_tensor_that_is_another_or_a_multiple_of_it_costs_a_few_bytes():
    scales = drawn().random(500).astype(np.float32)
    alone = len(pack(model_of(scales)))
    assert len(pack(model_of(scales, scales))) < alone + 40
    multiples = scales * np.float32(0.0371)
    assert len(pack(model_of(scales, multiples))) < alone + 40
    model = model_of(scales, multiples)
    assert unpack(pack(model), "here") == model


@pytest.mark.parametrize("kind", ["int8", "sparse int8", "sparse float", "clustered", "float"])
def test_a_model_is_within_three_percent_of_its_bound_and_smaller_than_by_other_roads(kind):
    found = sizes_of(model_of(KINDS[kind]))
    assert found.packed_bytes < 1.03 * found.bound_bytes + 60  # a model this small has a header
    assert found.packed_bytes < min(found.gzip_bytes, found.xz_bytes)
    assert found.zstd_bytes is None or found.packed_bytes < found.zstd_bytes


def test_the_bound_is_that_of_shannon():
    assert entropy_bits([np.arange(256, dtype=np.uint8)]) == 2048
    assert entropy_bits([np.zeros(99, np.uint32)]) == 0

    weights = np.where(np.arange(4096) % 2, np.float32(-0.0), np.float32(0))  # pruned: half are −0
    assert entropy_bits([weights.view(np.uint32)]) == 4096 + 32


VECTOR = model_of(np.arange(40, dtype=np.int8) % 5)
MUTATIONS = 1_000
PACKED = (
    "4c5350010090014c0004e3e0b06a05f664b9182b84182ba53881bd6da08f4a2a0d94383ca14c2b06"
    "219692ccbc4a2d230e0d6079cd546ee0a5112502d2c0cfc50bcc959c5ccc428c79c01cc9940414ad"
    "c41085e4530003084401caddd80175e62502986ef40115010544f85b1c65bbf4fc9f"
)


def test_the_format_is_the_one_that_is_written_down():
    """The test vector of docs/packing.md: what this version packed, every later one unpacks."""
    assert unpack(bytes.fromhex(PACKED), "here") == VECTOR


LATER_VECTOR = model_of((np.arange(400) ** 2 % 11 - 5).astype(np.int8))
LATER_PACKED = (
    "4c53500200fb034f1304e3e0b0fac0cc25cbc55821c45829c509ec6d037d545269a0c4e109655a31"
    "08b19464e6556acd61e69800aa9798ca0dbc2630478980f4f073f10233262717b310631e30533225"
    "01452b314421591500fbfde73f0bc3bf7f0c2cfffffc1e650e3c13000008200108cf010073ed0100"
    "4b360100d47fea50"
)


def test_version_two_is_the_one_that_is_written_down():
    assert unpack(bytes.fromhex(LATER_PACKED), "here") == LATER_VECTOR


def test_what_a_reader_of_version_one_can_read_says_that_it_is_version_one():
    assert pack(VECTOR) == bytes.fromhex(PACKED)
    assert pack(LATER_VECTOR)[3] == 2
    as_one = bytearray.fromhex(LATER_PACKED)
    as_one[3] = 1
    with pytest.raises(PackingError, match="a table of kind 4"):
        unpack(bytes(as_one), "here")


def test_of_many_symbols_no_repeats_are_looked_for():
    """zlib takes seconds for them where symbols are alike; every plan of a float has many."""
    few, many = (len(deflate_symbols(bytes(count))) for count in ((1 << 16) - 1, 1 << 16))
    assert few < 200
    assert many >= 1 << 13  # a bit a symbol


def test_no_longer_run_is_deflated_than_the_page_says():
    for count, why in ((1 << 20, "symbols of 5 kinds is deflated"), ((1 << 20) - 1, None)):
        values = (np.arange(count) % 5).astype(np.uint8).tobytes()
        packed = by_hand(values, written_as(deflate_symbols(values)), form=2)
        if why is None:
            assert unpack(packed, "here") == values
        else:
            with pytest.raises(PackingError, match=why):
                unpack(packed, "here")


def layers_alike(count=6, size=24):
    """Return the scales of some layers: floats of one sort, few of them each."""
    return [drawn(seed).normal(0.02, 0.001, size).astype(np.float32) for seed in range(count)]


THIRD_VECTOR = model_of(*layers_alike(3, 8))
THIRD_PACKED = (
    "4c53500300e001543104e3e0b0ba0aecc97231560831564a71027bdb401f95541a2871784299560c"
    "422c25997995c0c29f03583630951b005b2830b62112dbc84b214a0464103f172f30b77272310b31"
    "e601732a531250b4124314927f01b7ff1b08a95cba36c819041fb528f8bc84c2c8e94d8894d4dec1"
    "16b373cd8599ab928c2a417f7099638e74d695362c2d3c00220418cfa31e004f2b0c000c67090006"
    "94c30be7480f12f1e07e285d6ffd6cc9e779a077a2a000b002"
)


def test_version_three_is_the_one_that_is_written_down():
    assert unpack(bytes.fromhex(THIRD_PACKED), "here") == THIRD_VECTOR


def test_small_tensors_alike_are_written_together_in_fewer_bytes_than_apart():
    tensors = layers_alike()
    packed = pack(model_of(*tensors))
    assert packed[3] == 3
    assert unpack(packed, "here") == model_of(*tensors)
    apart = [best_plan(tensor.view(np.uint32), "float") for tensor in tensors]
    together = joined_plans(
        [
            (tensor.view(np.uint32), "float", plan)
            for tensor, plan in zip(tensors, apart, strict=True)
        ]
    )
    assert sum(plan.bits for plan in together) < sum(plan.bits for plan in apart)


def test_what_refers_to_another_tensor_and_what_is_large_stays_by_itself():
    scales = layers_alike()
    others = [scales[0], np.full(24, 3, np.float32), drawn().normal(0, 1, 3_000).astype(np.float32)]
    tensors = [*scales, *others, np.arange(40, dtype=np.int32)]
    assert unpack(pack(model_of(*tensors)), "here") == model_of(*tensors)
    known, plans = [], []
    for tensor in tensors:
        values = tensor.view(np.uint32)
        plans.append((values, tensor.dtype.kind, best_plan(values, "float", known)))
        known.append(values)
    together = joined_plans(plans)
    changed = [new is not old for new, (_, _, old) in zip(together, plans, strict=True)]
    assert changed == [True] * len(scales) + [False] * len(others) + [False]


def joined(writer, *, index=0, size=None):
    writer.nibble(Coding.JOINED)
    writer.nibble(index)
    if size is not None:
        writer.number(size)
        ends(writer)


def shared_by_two(writer, size=80):
    joined(writer, size=size)
    joined(writer)


def too_few_for_two(writer):
    shared_by_two(writer, size=79)


def too_many_for_two(writer):
    shared_by_two(writer, size=81)


def shared_from_nowhere(writer):
    joined(writer, size=80)
    joined(writer, index=2)


def shared_beyond_the_model(writer):
    joined(writer, size=150)
    joined(writer, index=1, size=150)


def shared_of_nothing(writer):
    joined(writer, size=0)


def shared_in_another(writer):
    nested(writer, [20])
    joined(writer, size=20)


@pytest.mark.parametrize(
    ("write", "version", "why"),
    [
        (shared_by_two, 2, "a coding 8 of elements of 1 bytes"),
        (too_few_for_two, 3, "40 values of 1 bytes are not left of those shared"),
        (too_many_for_two, 3, "bytes or values that no weights take"),
        (shared_from_nowhere, 3, "refers to shared values 2 of 1"),
        (shared_beyond_the_model, 3, "150 values of 1 bytes are said to be shared"),
        (shared_of_nothing, 3, "0 values of 1 bytes are said to be shared"),
        (shared_in_another, 3, "a coding 8 of elements of 1 bytes"),
    ],
)
def test_shared_values_are_all_taken_by_who_may_and_no_more_than_there_are(write, version, why):
    model = model_of(np.zeros(40, np.int8), np.zeros(40, np.int8))
    assert 150 < len(model) < 300
    writer = Writer()
    shared_by_two(writer)
    assert unpack(by_hand(model, writer, version=3), "here") == model
    writer = Writer()
    write(writer)
    with pytest.raises(PackingError, match=why):
        unpack(by_hand(model, writer, version=version), "here")


def repeated(count):
    """Return so many zeros deflated as shortly as can be, which no packer does of many."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(bytes(count)) + packer.flush()


def with_symbols(data):
    """Return a packed tensor of 300 bytes from 0 to 4, its symbols being what zlib has made."""
    return by_hand(model_of((np.arange(300) % 5).astype(np.int8)), written_as(data))


def written_as(data):
    """Return what writes bytes from 0 to 4 by symbols that zlib has made."""
    writer = Writer()
    writer.nibble(Coding.RANGE)
    writer.number(0)
    writer.number(4)
    writer.nibble(4)
    writer.number(len(data))
    writer.raw += data
    return writer


def by_hand(model, writer, lanes=4, form=0, digest=None, version=2):
    """Return a packed file of a model whose weights are what was written."""
    text = b"" if form == 2 else parts_of(model)[0]
    if digest is None:
        digest = np.frombuffer(hashlib.sha256(model).digest()[: 2 * lanes], "<u2")
    sizes = [*varint(len(model)), *varint(len(text)), *varint(len(writer.raw)), *varint(lanes)]
    head = MAGIC + bytes([version, form, *sizes])
    return head + text + bytes(writer.raw) + writer.encoder.finish(digest, lanes)


def varint(value):
    return [value] if value < 128 else [value & 127 | 128, *varint(value >> 7)]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (deflate_symbols(bytes(299)), "a run of symbols does not inflate to 300"),
        (repeated(1 << 16), "a run of symbols does not inflate to 300"),
        (deflate_symbols(bytes([5] * 300)), "a symbol 5 where 5 are possible"),
        (deflate_symbols(bytes(300))[:-1], "a run of symbols is cut off"),
        (deflate_symbols(bytes(300)) + b"\0", "or something follows it"),
        (b"\xff" * 9, "a run of symbols does not inflate"),
        (deflate_symbols(bytes(300)), "what it unpacks to is not what was packed"),
    ],
)
def test_symbols_that_zlib_made_are_refused_unless_they_are_all_there_and_possible(data, why):
    right = (np.arange(300) % 5).astype(np.uint8).tobytes()
    assert unpack(with_symbols(deflate_symbols(right)), "here")
    with pytest.raises(PackingError, match=why):
        unpack(with_symbols(data), "here")


@settings(max_examples=100, deadline=None)
@given(
    levels=st.lists(st.integers(0, 200), min_size=2, max_size=300).filter(any),
    counts=st.lists(st.integers(1, 300), min_size=1, max_size=8),
    lanes=st.integers(4, 40),
)
def test_lanes_give_back_what_they_took_whether_one_by_one_or_a_row_at_a_time(
    levels, counts, lanes
):
    table, rng, encoder = from_weights(levels), drawn(sum(counts)), Encoder()
    runs = [rng.choice(np.flatnonzero(levels), count) for count in counts]
    for run in runs:
        encoder.put(run, table)
    decoder = Decoder(encoder.finish(np.zeros(lanes, np.uint16), lanes), lanes)
    for run in runs:
        assert decoder.take(len(run), table).tolist() == run.tolist()
    assert decoder.ends(lanes) == bytes(2 * lanes)


def test_the_dictionary_is_the_one_that_is_written_down():
    digest = hashlib.sha256(dictionary()).hexdigest()
    assert digest in (ROOT / "docs/packing.md").read_text(encoding="utf-8"), "a new format version"


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("tf2onnx"), reason="the extra 'compress' is not installed")
def test_the_dictionary_is_made_again_from_the_repository():
    words = [sys.executable, ROOT / "scripts/make_packing_dictionary", "--check"]
    told = subprocess.run(words, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr[-500:]


def damaged(data, rng):
    at, end = sorted(rng.choices(range(len(data)), k=2))
    out = bytearray(data)
    match rng.randrange(5):
        case 0:
            del out[at:]
        case 1:
            out[at] ^= 1 << rng.randrange(8)
        case 2:
            out[at:at] = rng.randbytes(rng.randint(1, 8))
        case 3:
            out[at : at + 4] = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff"])
        case _:
            del out[at:end]
    return bytes(out)


@pytest.mark.parametrize("kind", ["int8", "sparse int8", "sparse float", "clustered"])
def test_no_damage_gives_another_model_or_another_error(kind):
    model = model_of(KINDS[kind][:3_000], KINDS["float"][:50], KINDS["float"][:50])
    packed, rng = pack(model), random.Random(kind)  # noqa: S311  # to be drawn again
    refused = 0
    for _ in range(MUTATIONS):
        changed = damaged(packed, rng)
        if changed == packed:
            continue
        try:
            assert unpack(changed, "here", 1 << 20) == model  # a bit that deflate leaves open
        except PackingError:
            refused += 1
    assert refused > 0.9 * MUTATIONS


def test_hostile_sizes_are_refused_before_room_is_made_for_them():
    huge = (
        MAGIC
        + b"\x01\x00\xff\xff\xff\xff\x0f"
        + b"\x00\x00\x04"
        + struct.pack("<4I", *[1 << 16] * 4)
    )
    tracemalloc.start()
    with pytest.raises(PackingError, match="4,294,967,295 bytes, 536,870,912 are allowed"):
        unpack(huge, "here")
    with pytest.raises(PackingError, match="are allowed"):
        unpack(pack(model_of(np.zeros(9_999, np.int8))), "here", 5_000)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


LARGE = 1 << 21


def gaps_of_zero(writer, count):
    """Write symbols 0 by a table in which there is no other: they take nothing."""
    writer.nibble(1)
    writer.nibble(0)
    writer.encoder.put(np.array([2, 1] + [0] * 62), geometric(6, 2 * most_levels(0)))
    only = np.zeros(64, np.int64)
    only[0] = 1
    writer.encoder.put(np.zeros(count, np.uint8), from_weights(only))


def gaps_deflated(writer, count):
    data = repeated(count)
    writer.nibble(4)
    writer.number(len(data))
    writer.raw += data


def nested(writer, counts, gaps=gaps_of_zero):
    """Write codings in each other: of as many elements as a count says, the next one differ."""
    for others in counts:
        writer.nibble(Coding.SPARSE)
        writer.raw += b"\1"
        writer.nibble(0)
        writer.number(others)
        gaps(writer, others)
        writer.number(others)


def ends(writer, width=1):
    writer.nibble(Coding.CONSTANT)
    writer.raw += bytes(width)


def hostile_sparse(writer):
    """As many others as are taken in each, and symbols that are widest in memory in the last."""
    nested(writer, [LARGE * 3**deep // 4**deep - deep for deep in range(1, 5)])
    writer.nibble(Coding.RANGE)
    writer.number(0)
    writer.number(0)
    writer.nibble(0)
    writer.encoder.put(np.array([0]), uniform(256))


def hostile_codebook(writer):
    writer.nibble(Coding.CODEBOOK)
    writer.number(0)
    writer.raw += bytes(2)
    writer.nibble(0)
    writer.encoder.put(np.array([0]), uniform(256))


def hostile_planes(writer):
    writer.nibble(Coding.PLANES)
    writer.nibble(0)
    for _ in range(2):
        ends(writer)


def hostile_nest(writer):
    nested(writer, [LARGE] * 4)
    ends(writer)


def hostile_deflated_nest(writer):
    nested(writer, [LARGE] * 4, gaps_deflated)
    ends(writer)


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (hostile_sparse, "is damaged"),
        (hostile_codebook, "is damaged"),
        (hostile_planes, "is damaged"),
        (hostile_nest, "its gaps do not fit its weights"),
        (hostile_deflated_nest, "symbols of 64 kinds is deflated"),
    ],
)
def test_a_hostile_file_takes_eight_times_the_size_that_it_says_at_most(write, why):
    writer = Writer()
    write(writer)
    halves = write in {hostile_codebook, hostile_planes}
    model = model_of(np.ones(LARGE // 2, np.float16)) if halves else bytes([9]) * LARGE
    data = by_hand(model, writer, 4096, form=0 if halves else 2)
    assert len(data) < 1 << 16
    tracemalloc.start()
    try:
        with pytest.raises(PackingError, match=why):
            unpack(data, "here")
        assert tracemalloc.get_traced_memory()[1] < 8 * LARGE
    finally:
        tracemalloc.stop()


def test_many_small_tensors_take_no_more_than_that():
    count = 20_000
    model = model_of(*drawn().integers(0, 256, (count, 32), dtype=np.uint8))
    writer = Writer()
    for _ in range(count):
        writer.nibble(Coding.RAW)
    writer.raw += b"".join(drawn().integers(0, 256, (count, 32), dtype=np.uint8))
    data = by_hand(model, writer, 16)
    tracemalloc.start()
    try:
        assert unpack(data, "here") == model
        assert tracemalloc.get_traced_memory()[1] < 8 * len(model)
    finally:
        tracemalloc.stop()


def run_of(symbols, lanes):
    """Return a packed file of bytes that are nearly all 0, in lanes, and those bytes."""
    model = bytes(symbols - 1) + b"\1"
    writer = Writer()
    writer.nibble(Coding.RANGE)
    writer.number(0)
    writer.number(1)
    writer.nibble(0)  # a geometric table
    writer.encoder.put(np.array([0]), uniform(256))
    writer.encoder.put(np.frombuffer(model, np.uint8), geometric(0, 2))
    return by_hand(model, writer, lanes, form=2), model


def test_a_lane_holds_no_more_symbols_than_can_be_decoded_in_a_while():
    """They may cost next to no bits: a file of some bytes would be decoded for half an hour."""
    data, model = run_of(4 * MOST_ROWS, lanes=4)
    assert unpack(data, "here") == model
    data, _ = run_of(4 * MOST_ROWS + 1, lanes=4)
    with pytest.raises(PackingError, match="more symbols than its lanes may hold"):
        unpack(data, "here")


def test_what_is_packed_never_holds_more_than_that():
    writer = Writer()
    for _ in range(3):
        writer.encoder.put(np.zeros(3 * MOST_ROWS, np.uint8), uniform(2))
    assert _lanes(100.0, writer) * MOST_ROWS >= 9 * MOST_ROWS


def test_others_are_taken_where_they_are_less_than_three_quarters_and_only_there():
    for count in range(4, 40):
        limit = (3 * count + 3) // 4  # the least that is not less
        model = bytes(limit - 1) + b"\1" * (count - limit + 1)
        writer = Writer()
        nested(writer, [limit - 1])
        ends(writer)
        assert unpack(by_hand(model, writer, form=2), "here") == model
        writer = Writer()
        nested(writer, [limit])
        ends(writer)
        with pytest.raises(PackingError, match="its gaps do not fit its weights"):
            unpack(by_hand(model, writer, form=2), "here")


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rest=st.integers(-4, 4),
    width=st.sampled_from([1, 2, 4, 8]),
    nests=st.integers(1, 5),
)
def test_what_is_packed_as_sparse_at_the_limit_is_unpacked(seed, rest, width, nests):
    """Each time a quarter of what is left is alike, an element more or less."""
    rng = drawn(seed)
    values = rng.integers(0, 250, 400).astype(f"<u{width}")
    left = np.arange(len(values))
    for alike in range(nests):
        taken = rng.permutation(left)[: len(left) // 4 + rest]
        values[taken] = 250 + alike
        left = np.setdiff1d(left, taken)
    writer = Writer()
    best_plan(values, "int").write(writer)
    decoder = Decoder(writer.encoder.finish(np.zeros(4, np.uint16), 4), 4)
    reader = Reader(decoder, memoryview(bytes(writer.raw)), values.nbytes, writer.version)
    np.testing.assert_array_equal(read_values(reader, len(values), width), values)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is no packed model"),
        (b"PK\3\4", "is no packed model"),
        (b"LSP\x04....", "is packed in version 4, this reads 1 to 3; use a newer lightship"),
        (b"LSP\x00....", "is packed in version 0, this reads 1 to 3$"),
        (b"LSP\x82\x00...", "is packed in version 130, this reads 1 to 3"),
        (b"LSP", "is cut off"),
        (b"LSP\x01", "is cut off"),
        (b"LSP\x01\x00\x08\x00\x00\x03", "says 3 lanes"),
    ],
)
def test_an_error_names_what_is_wrong(data, why):
    with pytest.raises(PackingError, match=why):
        unpack(data, "here")


@pytest.mark.parametrize("place", range(16))
def test_every_word_of_the_digest_of_a_large_model_is_compared(place):
    model = KINDS["int8"].tobytes()
    writer = Writer()
    best_plan(np.frombuffer(model, np.uint8), "int").write(writer)
    assert unpack(by_hand(model, writer, 16, form=2), "here") == model
    digest = np.frombuffer(hashlib.sha256(model).digest(), "<u2").copy()
    digest[place] ^= 1
    data = by_hand(model, writer, 16, form=2, digest=digest)
    with pytest.raises(PackingError, match="what it unpacks to is not what was packed"):
        unpack(data, "here")


def test_so_many_lanes_as_the_digest_needs_are_there_where_a_model_is_large():
    assert _lanes(8 * 512 * 20, Writer()) >= 16


@pytest.mark.parametrize("order", [0, 1, 2])
def test_elements_that_are_cut_into_bytes_come_back_in_every_order_of_their_bits(order):
    weights = drawn().normal(size=50).astype(np.float32)
    model = model_of(weights)
    writer = Writer()
    _planes(weights.view("<u4"), order, 0).write(writer)
    data = by_hand(model, writer)
    assert writer.version == (2 if order == 2 else 1)
    assert unpack(data, "here") == model
    if order == 2:
        with pytest.raises(PackingError, match="planes in an order 2"):
            unpack(data[:3] + b"\x01" + data[4:], "here")


def test_planes_in_an_order_that_there_is_not_are_refused():
    writer = Writer()
    writer.nibble(Coding.PLANES)
    writer.nibble(3)
    with pytest.raises(PackingError, match="planes in an order 3"):
        unpack(by_hand(model_of(np.ones(50, np.float32)), writer), "here")


def test_what_pruning_left_is_within_three_percent_of_its_entropy():
    """Weights above a threshold and below 1/4, or a little above it: the mantissa says which."""
    rng = drawn()
    weights = rng.uniform(0.17, 0.34, 400_000) * rng.choice(
        [-1, 0, 1], 400_000, p=[0.04, 0.92, 0.04]
    )
    model = model_of(weights.astype(np.float32))
    assert len(pack(model)) < 1.02 * sizes_of(model).bound_bytes
