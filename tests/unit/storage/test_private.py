"""Other users of the machine, and what they put into a profile's directory."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator
from pathlib import Path

import pytest
import trio

from p2pcompute.errors import ConfigError
from p2pcompute.storage import InlineExecutor, open_ledger


@pytest.fixture(autouse=True)
def open_handed() -> Generator[None]:
    """A user whose files are everybody's unless a program says otherwise."""
    before = os.umask(0)
    yield
    os.umask(before)


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


def use(directory: Path) -> dict[str, int]:
    """Open a ledger and write to it; the modes of all files while it is open."""

    async def main() -> dict[str, int]:
        async with open_ledger(directory, executor=InlineExecutor()) as ledger:
            await ledger.verify(full=True)
            return modes(directory)

    return trio.run(main)


FILES = {"ledger.sqlite3", "ledger.sqlite3-wal", "ledger.sqlite3-shm", "ledger.lock"}


def test_files_and_directories_are_their_owners(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    assert stat.S_IMODE(plain.stat().st_mode) == 0o666  # what would come of it
    directory = tmp_path / "home" / "profiles" / "default"
    assert use(directory) == dict.fromkeys(FILES, 0o600)
    for made in (directory, directory.parent, directory.parent.parent):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_a_ledger_of_an_older_version_is_closed_to_others(tmp_path: Path) -> None:
    use(tmp_path)
    for name in FILES:
        path = tmp_path / name
        path.touch()
        path.chmod(0o644)
    assert use(tmp_path) == dict.fromkeys(FILES, 0o600)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o720, 0o702, 0o1777])
def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    directory = tmp_path / "profile"
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(ConfigError, match=rf"mode {mode:04o}.*run `chmod 700 {directory}`"):
        use(directory)
    assert list(directory.iterdir()) == []  # and nothing was left there
    directory.chmod(0o755)  # to be looked at is no harm: the files are closed
    assert use(directory) == dict.fromkeys(FILES, 0o600)


def test_a_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "profile"
    directory.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(directory, 12_345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12_345)
    with pytest.raises(ConfigError, match="belongs to user"):
        use(directory)


def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, precious = tmp_path / "profile", tmp_path / "precious"
    directory.mkdir(mode=0o700)
    (directory / "ledger.lock").symlink_to(precious)
    precious.write_text("the only copy")
    with pytest.raises(ConfigError, match="symbolic link"):
        use(directory)
    assert precious.read_text() == "the only copy"
    precious.unlink()
    with pytest.raises(ConfigError, match="symbolic link"):
        use(directory)
    assert not precious.exists()  # nor is it made through a link to nothing

    precious.write_text("the only copy")
    monkeypatch.setattr(os, "O_NOFOLLOW", 0)
    use(directory)
    assert precious.read_text() == f"{os.getpid()}\n"  # what a link did


@pytest.mark.parametrize("name", sorted(FILES - {"ledger.lock"}))
def test_nor_for_the_ledger_itself(tmp_path: Path, name: str) -> None:
    directory, target = tmp_path / "profile", tmp_path / "target"
    directory.mkdir(mode=0o700)
    (directory / name).symlink_to(target)
    with pytest.raises(ConfigError, match="symbolic link"):
        use(directory)
    assert not target.exists()


def test_a_pipe_in_the_place_of_the_lock_does_not_hang(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    os.mkfifo(tmp_path / "ledger.lock")
    with pytest.raises(ConfigError, match="not a regular file"):
        use(tmp_path)


def test_a_linked_directory_is_fine(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "profile").symlink_to(tmp_path / "elsewhere")
    assert use(tmp_path / "profile") == dict.fromkeys(FILES, 0o600)


def test_a_path_that_can_t_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be used"):
        use(tmp_path / "file" / "profile")
