"""Promise: neither a manifest nor a safetensors header is believed. What is read is what was written, or it is refused."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import xxhash
from hypothesis import assume, given
from hypothesis import strategies as st

from memsup.checkpoint.errors import Damaged
from memsup.checkpoint.header import (
    DTYPE_BYTES,
    MAX_HEADER_BYTES,
    decode_header,
    decode_index,
    encode_header,
    encode_index,
    header_length,
    plan_shards,
    size_bytes,
)
from memsup.checkpoint.manifest import (
    MAX_BYTES,
    MAX_FILES,
    MAX_STEP,
    MAX_TOTAL_BYTES,
    File,
    Manifest,
    is_file_name,
    seal,
    unseal,
)

HASH = "0123456789abcdef" * 2

file_names = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=60).filter(is_file_name)
files = st.lists(
    st.builds(
        File,
        name=file_names,
        bytes=st.integers(0, 1 << 40),
        xxh3_128=st.binary(min_size=16, max_size=16).map(bytes.hex),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda file: file.name,
)
manifests = st.builds(
    Manifest,
    step=st.integers(0, MAX_STEP - 1),
    created_unix_s=st.floats(0, 1e12),
    metric=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    files=files,
)


def manifest(**changed: Any) -> Manifest:
    one = {"step": 7, "created_unix_s": 1.5, "metric": None, "files": [File(name="state.json", bytes=3, xxh3_128=HASH)]}
    return Manifest(**{**one, **changed})


def forged(document: dict[str, Any]) -> bytes:
    """What an attacker writes: any content, sealed as it should be."""
    covered = msgspec.json.format(msgspec.json.encode({**document, "xxh3_128": "0" * 32}), indent=2)[: -len('"\n}') - 32]
    return covered + xxhash.xxh3_128(covered).hexdigest().encode() + b'"\n}\n'


def as_document(made: Manifest) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(made)
    del document["xxh3_128"]
    return document


# --------------------------------------------------------------------------------------------------------------------
# The manifest


@given(manifests)
def test_a_manifest_comes_back_as_it_was(made: Manifest) -> None:
    """And it is plain JSON, for whoever wants to look."""
    document = seal(made)
    read = unseal(document)
    assert msgspec.structs.replace(read, xxh3_128=made.xxh3_128) == made
    assert msgspec.json.decode(document)["step"] == made.step


@given(manifests, st.data())
def test_no_flipped_bit_goes_unseen(made: Manifest, data: st.DataObject) -> None:
    document = bytearray(seal(made))
    bit = data.draw(st.integers(0, len(document) * 8 - 1))
    document[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Damaged):
        unseal(bytes(document))


@given(manifests, st.data())
def test_no_cut_goes_unseen(made: Manifest, data: st.DataObject) -> None:
    document = seal(made)
    with pytest.raises(Damaged):
        unseal(document[: data.draw(st.integers(0, len(document) - 1))])


@given(st.binary(max_size=300))
def test_garbage_is_refused_and_nothing_else_happens(document: bytes) -> None:
    with pytest.raises(Damaged):
        unseal(document)


def test_the_forgery_used_below_would_pass_if_it_were_harmless() -> None:
    assert unseal(forged(as_document(manifest()))).step == 7


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/passwd",
        "a/../b",
        "a//b",
        "a/.b",
        "/a/b",
        "a/",
        "a/b/c/d/e",
        "..",
        ".",
        "",
        ".hidden",
        "manifest.json",
        "a\0b",
        "a\nb",
        "x" * 201,
        "a\\..\\b",
        "ü",
        "-rf",
    ],
)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    document = as_document(manifest())
    document["files"][0]["name"] = name
    with pytest.raises(Damaged, match="not the plain name"):
        unseal(forged(document))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step", -1),
        ("step", MAX_STEP),
        ("step", 10**40),
        ("step", "7"),
        ("created_unix_s", None),
        ("created_unix_s", -1.0),
        ("metric", "high"),
        ("format", "memsup-checkpoint-99"),
        ("files", []),
        ("files", {}),
        ("files", [{"name": "a", "bytes": -1, "xxh3_128": HASH}]),
        ("files", [{"name": "a", "bytes": MAX_TOTAL_BYTES + 1, "xxh3_128": HASH}]),
        ("files", [{"name": name, "bytes": MAX_TOTAL_BYTES // 2 + 1, "xxh3_128": HASH} for name in "ab"]),
        ("files", [{"name": "a", "bytes": 1, "xxh3_128": HASH}] * 2),
        ("files", [{"name": "a", "bytes": 1, "xxh3_128": HASH.upper()}]),
        ("files", [{"name": "a", "bytes": 1, "xxh3_128": HASH, "link": "/etc"}]),
        ("files", [{"name": f"f{i}", "bytes": 0, "xxh3_128": HASH} for i in range(MAX_FILES + 1)]),
        ("unknown", 1),
    ],
    ids=lambda value: str(value)[:40],
)
def test_senseless_contents_are_refused(field: str, value: Any) -> None:
    with pytest.raises(Damaged):
        unseal(forged({**as_document(manifest()), field: value}))


def test_a_huge_document_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(Damaged, match="larger than"):
        unseal(b"[" * (MAX_BYTES + 1))


def test_a_deeply_nested_document_is_refused() -> None:
    covered = b'{"files": ' + b"[" * 200_000 + b'\n  "xxh3_128": "'
    with pytest.raises(Damaged):
        unseal(covered + xxhash.xxh3_128(covered).hexdigest().encode() + b'"\n}\n')


@pytest.mark.parametrize(
    "changed",
    [{"step": -1}, {"created_unix_s": float("inf")}, {"files": []}, {"files": [File(name="../x", bytes=1, xxh3_128=HASH)]}],
)
def test_nothing_is_written_that_could_not_be_read(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no checkpoint can be made"):
        seal(manifest(**changed))


# --------------------------------------------------------------------------------------------------------------------
# The safetensors header


@dataclass(frozen=True)
class Shaped:
    name: str
    dtype: str
    shape: tuple[int, ...]


shaped = st.builds(
    Shaped,
    name=st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__"),
    dtype=st.sampled_from(sorted(DTYPE_BYTES)),
    shape=st.lists(st.integers(0, 50), max_size=3).map(tuple),
)
many_shaped = st.lists(shaped, max_size=8, unique_by=lambda tensor: tensor.name)


def header_json(document: Any) -> bytes:
    return msgspec.json.encode(document)


@given(many_shaped)
def test_a_header_describes_what_was_put_in(tensors: list[Shaped]) -> None:
    made = encode_header(tensors)
    size = len(made) + sum(map(size_bytes, tensors))
    length = header_length(made[:8], size)
    placed = decode_header(made[8 : 8 + length], size)
    assert 8 + length == len(made)
    assert len(made) % 8 == 0
    assert {(t.name, t.dtype, t.shape, t.end - t.start) for t in placed} == {
        (t.name, t.dtype, t.shape, size_bytes(t)) for t in tensors
    }
    assert [t.start for t in placed[1:]] == [t.end for t in placed[:-1]]


@given(many_shaped, st.integers(1, 5_000))
def test_shards_hold_everything_once_and_no_more_than_they_may(tensors: list[Shaped], shard_bytes: int) -> None:
    shards = plan_shards("model", tensors, shard_bytes)
    assert sorted(t.name for shard in shards.values() for t in shard) == sorted(t.name for t in tensors)
    for shard in shards.values():
        assert len(shard) <= 1 or sum(map(size_bytes, shard)) <= shard_bytes
        place = 0
        for tensor in shard:  # each is aligned to its own type, or torch could not view it
            assert place % DTYPE_BYTES[tensor.dtype] == 0
            place += size_bytes(tensor)
    if len(shards) == 1:
        assert list(shards) == ["model.safetensors"]
    else:
        assert list(shards) == [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
        assert decode_index(encode_index(shards)) == {t.name: file for file, shard in shards.items() for t in shard}


@given(st.binary(max_size=200), st.integers(0, 1000))
def test_garbage_headers_are_refused_and_nothing_else_happens(header: bytes, file_bytes: int) -> None:
    assume(header.strip() not in (b"{}", b""))
    with pytest.raises(Damaged):
        decode_header(header, file_bytes)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
claims = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "F16", "Q4", ""]), "shape": st.lists(st.integers(-3, 2**70), max_size=3)},
    optional={"data_offsets": st.lists(st.integers(-9, 2**70), min_size=1, max_size=3), "more": st.none()},
)


@given(st.dictionaries(st.text(max_size=5), claims | json_values, min_size=1, max_size=4), st.integers(0, 10_000))
def test_a_header_that_is_believed_fills_its_file_exactly(document: dict[str, Any], data_bytes: int) -> None:
    """Whatever JSON an attacker thinks of: refused, or every tensor lies inside the file, in bytes of its own."""
    header = header_json(document)
    try:
        placed = decode_header(header, 8 + len(header) + data_bytes)
    except Damaged:
        return
    assert sum(t.end - t.start for t in placed) == data_bytes
    assert all(8 + len(header) <= t.start <= t.end <= 8 + len(header) + data_bytes for t in placed)


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 15]}}, "contradict"),
        ({"a": {"dtype": "F64", "shape": [4], "data_offsets": [0, 16]}}, "contradict"),
        ({"a": {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}}, "contradict"),
        ({"a": {"dtype": "F31", "shape": [4], "data_offsets": [0, 16]}}, "type that does not exist"),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 32]}}, "other bytes"),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}}, "other bytes"),
        ({"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}}, "should be"),
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}, "should be"),
        ({n: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for n in "ab"}, "other bytes"),
        ({"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 2**64]}}, "should be"),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], "x": 1}}, "no sense"),
        ({"__metadata__": {"format": 1}, "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, "no sense"),
    ],
)  # fmt: skip
def test_hostile_headers_are_refused(entries: dict[str, Any], why: str) -> None:
    """Offsets beyond the file, overlaps, gaps, types that are not, sizes that contradict each other."""
    header = header_json(entries)
    with pytest.raises(Damaged, match=why):
        decode_header(header, 8 + len(header) + 16)


@pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1, 993])
def test_an_absurd_header_length_is_refused_before_anything_is_read(length: int) -> None:
    with pytest.raises(Damaged, match="claims a header"):
        header_length(length.to_bytes(8, "little"), 1000)


def test_a_tensor_cannot_take_the_place_of_the_metadata() -> None:
    with pytest.raises(ValueError, match="cannot be named"):
        encode_header([Shaped("__metadata__", "F32", (1,))])


@pytest.mark.parametrize("file", ["../model.safetensors", "/model.safetensors", "a/model.safetensors", "pytorch_model.bin", ""])
def test_an_index_that_leads_elsewhere_is_refused(file: str) -> None:
    with pytest.raises(Damaged, match="not a safetensors file beside it"):
        decode_index(msgspec.json.encode({"weight_map": {"a": file}}))


@given(json_values)
def test_a_senseless_index_is_refused(document: Any) -> None:
    with pytest.raises(Damaged):
        decode_index(msgspec.json.encode(document))
