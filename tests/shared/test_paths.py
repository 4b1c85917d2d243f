"""State and sockets are the user's alone: names that are no names, links and open doors are refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import zmq

from memsup.shared.endpoints import CONTROL_SOCKET, SocketFolder
from memsup.shared.files import replace_file
from memsup.shared.paths import PathError, check_private, make_private, prepare, run_paths, runtime_root


@pytest.mark.parametrize("name", ["default", "夜里", "a.b-c_d", "A" * 64])
def test_names_that_can_be_a_folders(name: str) -> None:
    assert run_paths(name).state.name == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "-x", "a b", "A" * 65, "x\0", "a\nb"])
def test_names_that_could_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(PathError, match="cannot be a run's name"):
        run_paths(name)


def test_a_name_is_no_longer_than_a_folders() -> None:
    """A letter has up to four bytes, a folder's name at most 255; there is room for what is appended to it."""
    letter = "𠀀"
    with pytest.raises(PathError, match=r"256 bytes .* 200 fit"):
        run_paths(64 * letter)
    assert run_paths(40 * letter).name == 40 * letter


def test_whose_folder_it_is_decides_which_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else may have made the folder in /tmp first."""
    for name in ("MEMSUP_STATE_DIR", "MEMSUP_RUNTIME_DIR"):
        folder = tmp_path / name
        folder.write_text("no folder")
        monkeypatch.setenv(name, str(folder))
        with pytest.raises(PathError, match=rf"Choose another with {name}\."):
            check_private(folder)
        with pytest.raises(PathError, match=rf"Choose another with {name}\."):
            make_private(folder / "default")
    if os.geteuid() == 0:
        foreign = tmp_path / "foreign"
        foreign.mkdir()
        os.chown(foreign, 12345, 12345)
        monkeypatch.setenv("MEMSUP_RUNTIME_DIR", str(foreign))
        with pytest.raises(PathError, match=r"belongs to user 12345, .*Choose another with MEMSUP_RUNTIME_DIR"):
            check_private(foreign)


def test_folders_are_made_for_the_user_alone(tmp_path: Path) -> None:
    paths = run_paths("default")
    prepare(paths)
    for folder in (paths.state, paths.runtime, paths.state.parent, paths.runtime.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_others_can_write_to_is_refused_with_the_cure(tmp_path: Path) -> None:
    folder = tmp_path / "open door"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(PathError, match=r"chmod 700 '.*open door'"):
        check_private(folder)


def test_a_link_in_the_place_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PathError):
        make_private(tmp_path / "link")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a folder that belongs to somebody else")
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    with pytest.raises(PathError, match="belongs to user 12345"):
        check_private(folder)


def test_without_a_session_folder_a_private_one_in_tmp_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMSUP_RUNTIME_DIR")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert runtime_root() == Path(f"/tmp/memsup-{os.getuid()}")


def test_a_socket_works_however_long_and_chinese_its_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Unix socket's own path ends at 107 bytes."""
    monkeypatch.setenv("MEMSUP_RUNTIME_DIR", str(tmp_path / ("很长的 名字" * 12) / "x"))
    paths = run_paths("default")
    prepare(paths)
    server_folder, client_folder = SocketFolder(paths), SocketFolder(paths)
    context = zmq.Context()
    server, client = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    for socket in (server, client):
        socket.linger, socket.rcvtimeo = 0, 5000
    server.bind(server_folder.endpoint(CONTROL_SOCKET))
    client.connect(client_folder.endpoint(CONTROL_SOCKET))
    client.send(b"hello")
    assert server.recv_multipart()[1] == b"hello"
    context.destroy()
    server_folder.close()
    client_folder.close()


def test_a_file_is_replaced_whole_and_privately(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    replace_file(file, b"one")
    replace_file(file, b"two")
    assert file.read_bytes() == b"two"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [f.name for f in tmp_path.iterdir()] == ["run.json"]


def test_a_link_planted_beside_the_file_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "run.json.new").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        replace_file(tmp_path / "run.json", b"x")
    assert victim.read_text() == "mine"
