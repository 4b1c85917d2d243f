"""Promise: other machines are reached at addresses of the person's own networks only, and by those who have the key."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsup.shared.nodes import (
    MOST_FRAME_BYTES,
    PIECE_BYTES,
    Address,
    Piece,
    decoded_offer,
    frames_of,
    is_own_network,
    read_address,
    refuse_short_key,
    refuse_strange_network,
)
from memsup.shared.settings import SettingsError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.1", Address("10.0.0.1", 29400)),
        ("10.0.0.1:5", Address("10.0.0.1", 5)),
        ("fd00::1", Address("fd00::1", 29400)),
        ("[fd00::1]", Address("fd00::1", 29400)),
        ("[fd00::1]:65535", Address("fd00::1", 65535)),
    ],
)
def test_an_address_is_read_as_people_write_it(text: str, address: Address) -> None:
    assert read_address(text) == address
    assert read_address(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", "host", "host:1", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:x", "10.0.0", "[fd00::1", "1.2.3.4:²"]
)
def test_what_is_none_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(SettingsError, match="is no address"):
        read_address(text)


@given(st.text(max_size=60))
def test_whatever_is_written_is_read_or_refused(text: str) -> None:
    try:
        found = read_address(text)
    except SettingsError:
        return
    assert read_address(str(found)) == found


OWN = [
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.7.7",
    "::1",
    "fd12::1",
    "::ffff:10.0.0.1",
]
STRANGE = ["8.8.8.8", "172.32.0.1", "100.64.0.1", "192.0.2.1", "2001:db8::1", "2606:4700::1", "::ffff:8.8.8.8", "198.18.0.1"]


@pytest.mark.parametrize("host", OWN)
def test_own_networks_are_used(host: str) -> None:
    assert is_own_network(host)
    refuse_strange_network(host, any_network=False)


@pytest.mark.parametrize("host", STRANGE)
def test_other_networks_are_used_only_where_a_person_says_so(host: str) -> None:
    with pytest.raises(SettingsError, match="any_network"):
        refuse_strange_network(host, any_network=False)
    refuse_strange_network(host, any_network=True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "224.0.0.1", "ff02::1"])
def test_the_address_of_no_one_machine_is_never_used(host: str) -> None:
    with pytest.raises(SettingsError, match="no one machine"):
        refuse_strange_network(host, any_network=True)


@given(st.ip_addresses())
def test_no_address_that_the_world_routes_is_an_own_network(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert not (is_own_network(str(address)) and address.is_global)


def test_a_short_key_is_refused_and_not_shown() -> None:
    with pytest.raises(SettingsError, match="32 are needed") as error:
        refuse_short_key("s3cr3t")
    assert "s3cr3t" not in str(error.value)


@given(st.lists(st.binary(max_size=50), max_size=3))
def test_what_is_no_answer_is_none(frames: list[bytes]) -> None:
    assert decoded_offer(frames) is None


def test_a_piece_fits_into_a_frame() -> None:
    piece = Piece(file=0, offset=0, content=bytes(PIECE_BYTES))
    assert decoded_offer(frames_of(piece)) == piece
    assert len(frames_of(piece)[1]) < MOST_FRAME_BYTES
