"""The folder of a run's checkpoints: writes new ones, finds the newest valid one, sets damaged ones aside, deletes old ones.

The order in which a checkpoint comes to be, so that at every instant a kill, a power cut or a full disk leaves the last one
intact and never anything that looks like a checkpoint and is none:

    1. a draft folder beside the target, which nobody takes for a checkpoint
    2. each file: written, hashed on the way, flushed                                        (durable.py, draft.py)
    3. the manifest, last: flushed; then the draft folder itself
    4. rename to its name; flush of the store's folder: from here on it exists
    5. all of it read back from the disk as a reader would; only then are older ones deleted

One process writes to a store at a time (the run's worker; the supervisor's lock sees to it). Any may read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from memsup import folders
from memsup.checkpoint import manifest, retention
from memsup.checkpoint.errors import CheckpointError, Damaged, DamagedWhenWritten, DiskFull, as_write_error
from memsup.checkpoint.info import Info
from memsup.checkpoint.reading import open_folder, read_manifest, verify
from memsup.checkpoint.room import Room, Verdict, judge
from memsup.shared.clock import monotonic_s
from memsup.shared.files import flush_folder, read_small

# What only a writer needs is imported when it writes: the supervisor reads, and counts its megabytes.
if TYPE_CHECKING:
    from memsup.checkpoint.draft import Draft, Saved

_MOST_REASON_BYTES = 64 << 10


@dataclass(frozen=True)
class SetAside:
    """A damaged checkpoint that was put out of the way."""

    path: Path
    """The folder in which it lies now."""
    step: int | None
    """The step that it is named after. None means that its name tells none."""
    reason: str
    moved: bool = True
    """Whether it could be renamed, and is memsup's to rename."""


class Store:
    """The checkpoints in `folder`, which is created at the first save. `keep` newest ones are kept, and the best one."""

    def __init__(self, folder: Path, keep: int = retention.LEAST_KEPT) -> None:
        if keep < retention.LEAST_KEPT:
            raise ValueError(f"at least {retention.LEAST_KEPT} checkpoints are kept")
        self.folder = folder.absolute()
        self.keep = keep

    # ----------------------------------------------------------------------------------------------------------------
    # Reading

    def list(self) -> Sequence[Info]:
        """All checkpoints, the newest first, then those set aside; what memsup did not make is none. Looks at manifests and
        sizes; hashes nothing.
        """
        aside = [self._aside_info(name) for name in self._names() if name.startswith(folders.DAMAGED) and self._is_ours(name)]
        found = [self._info(name) for name in self._checkpoints()]
        return [info for info in found if info.problem is None or self._is_ours(info.path.name)] + aside

    def newest_valid(self, full: bool = True) -> tuple[Info | None, Sequence[SetAside]]:
        """The newest checkpoint that is what was written; and the newer ones that are not: renamed and kept, with the reason.

        `full=False` looks at sizes only. Raises `CheckpointError` where nothing can be said, such as without permission.
        """
        return self._first_valid(self._checkpoints(), full)

    def valid_of(self, step: int) -> tuple[Info | None, Sequence[SetAside]]:
        """A checkpoint of this step that is what was written, as `newest_valid` finds the newest one of all."""
        return self._first_valid([name for name in self._checkpoints() if (folders.order(name) or (None,))[0] == step])

    def _first_valid(self, names: Iterable[str], full: bool = True) -> tuple[Info | None, Sequence[SetAside]]:
        aside: list[SetAside] = []
        for name in names:
            try:
                return self._verify(name, full), aside
            except Damaged as damage:
                # Neither a mark nor a manifest: somebody else's, and there is nothing to tell of it.
                if self._is_ours(name) or os.path.lexists(self.folder / name / manifest.NAME):
                    aside.append(self._set_aside(name, str(damage)))
        return None, aside

    # ----------------------------------------------------------------------------------------------------------------
    # Writing

    def sweep(self) -> Sequence[str]:
        """Removes what a killed save or deletion left, and says what. To be called at start, when nobody else writes."""
        swept = []
        for name in self._names():
            if name.startswith((folders.DRAFT, folders.GONE)) and self._is_ours(name):
                kind = "an unfinished checkpoint" if name.startswith(folders.DRAFT) else "a half-deleted checkpoint"
                try:
                    _remove_ours(self.folder / name)
                    swept.append(f"{name}, {kind} of a process that was killed, was removed.")
                except OSError as error:
                    swept.append(f"{name}, {kind} of a process that was killed, could not be removed: {error.strerror}.")
        return swept

    def room(self, save_bytes: int | None = None, *, emergency: bool = False) -> Room | None:
        """Whether another checkpoint fits: one of `save_bytes`, or as large as the newest. None means that its size is not
        known.
        """
        found = self.list()
        if save_bytes is None:
            save_bytes = next((info.bytes for info in found if info.problem is None), None)
        if save_bytes is None:
            return None
        newest_first = [info for info in found if folders.order(info.path.name)]
        aside = [info for info in found if info.path.name.startswith(folders.DAMAGED)]
        dispensable = aside + retention.deletable(newest_first, retention.LEAST_KEPT)
        return judge(free_bytes(self.folder), save_bytes, dispensable=dispensable, emergency=emergency)

    @contextlib.contextmanager
    def draft(self, step: int, expected_bytes: int | None = None, *, emergency: bool = False) -> Iterator[Draft]:
        """A new checkpoint of `step`: `with store.draft(step) as draft: …; draft.commit()`. Uncommitted it leaves no trace.

        `expected_bytes` is its size. None means that it is not known, and the size of the newest one counts. Where room is
        short, dispensable checkpoints go first. An `emergency` checkpoint may use the room that other saves leave free. Raises
        `DiskFull` (also before anything is written), `NotWritten`, `DamagedWhenWritten`.
        """
        from memsup.checkpoint.draft import Draft

        if not 0 <= step < manifest.MAX_STEP:
            raise ValueError(f"a checkpoint cannot be of step {step}")
        try:
            self._make_room(expected_bytes, emergency)
            folder = self._new_folder(step)
            try:
                draft = Draft(folder, step, self._publish)
                try:
                    yield draft
                finally:
                    draft.close()
            finally:
                # Gone by now, if committed. What cannot be removed is swept at the next start.
                with contextlib.suppress(OSError):
                    _remove_ours(folder)
        except Exception as error:
            plain = as_write_error(error, f"The checkpoint of step {step}")
            if plain is None:
                raise
            raise plain from error

    def retain(self) -> None:
        """Deletes what is older than the checkpoints to be kept. Raises OSError."""
        self._delete(retention.deletable([self._info(name) for name in self._checkpoints()], self.keep))

    def _make_room(self, expected_bytes: int | None, emergency: bool) -> None:
        found = self.room(expected_bytes, emergency=emergency)
        if found is None:
            return
        if found.verdict is Verdict.PAUSE:
            raise DiskFull(found.text)
        self._delete(found.prune)

    def _new_folder(self, step: int) -> Path:
        missing = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in missing:
            flush_folder(folder.parent)
        draft = self.folder / f"{folders.DRAFT}{step:08}-{os.urandom(4).hex()}"
        draft.mkdir(mode=0o700)
        try:
            os.close(os.open(draft / folders.MARK, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except OSError:
            draft.rmdir()
            raise
        return draft

    def _publish(self, draft: Draft, contents: manifest.Manifest) -> Saved:
        """Gives a finished draft its name, from then on it is a checkpoint, and reads it back."""
        from memsup.checkpoint.draft import Saved

        path = self.folder / folders.next_name(draft.step, self._names())
        os.rename(draft.folder, path)
        try:
            flush_folder(self.folder)
        except OSError:
            os.rename(path, draft.folder)  # what cannot be made durable is no checkpoint, and goes the way of the draft
            raise
        note = self._confirm(path, draft.step)
        return Saved(path, draft.step, contents.total_bytes, monotonic_s() - draft.began_s, note)

    def _confirm(self, path: Path, step: int) -> str | None:
        """Reads a new checkpoint back from the disk; older ones are deleted after that and never before. Returns what went
        wrong without harm, or None where nothing did. Raises `DamagedWhenWritten`.
        """
        try:
            self._verify(path.name, full=True, from_disk=True)
        except Damaged as damage:
            aside = self._set_aside(path.name, str(damage))
            raise DamagedWhenWritten(
                f"The checkpoint of step {step} was written, but the disk gives back something else: {damage} "
                "It was set aside and the one before it counts. The disk may be failing.",
                aside.path,
                step,
            ) from None
        try:
            self.retain()
        except (OSError, CheckpointError) as error:
            return f"An older checkpoint could not be deleted: {error}."
        return None

    def _delete(self, infos: Iterable[Info]) -> None:
        """Deletes checkpoints, renamed first, so that a half-deleted one never looks like a damaged one."""
        gone = []
        for info in infos:
            gone.append(info.path.with_name(folders.GONE + info.path.name))
            os.rename(info.path, gone[-1])
        if gone:
            flush_folder(self.folder)
        for path in gone:
            _remove_ours(path)

    def _set_aside(self, name: str, reason: str) -> SetAside:
        """Puts a checkpoint out of the way and keeps it, with the reason in it. Where even that fails, or memsup did not make
        it, it stays where it is and is not used.
        """
        path = self.folder / name
        if not self._is_ours(name):
            return SetAside(path, folders.aside_step(name), reason, moved=False)
        taken = self._names()
        aside = folders.aside_name(name, taken)
        with contextlib.suppress(OSError, Damaged):
            _write_reason(path, reason)
        with contextlib.suppress(OSError):
            os.rename(path, self.folder / aside)
            path = self.folder / aside
            flush_folder(self.folder)
        return SetAside(path, folders.aside_step(aside), reason, moved=path.name == aside)

    # ----------------------------------------------------------------------------------------------------------------
    # Folders

    def all_ours(self) -> Sequence[Path]:
        """Every folder here that memsup made: checkpoints, what was being written or deleted, and what was set aside."""
        return [self.folder / name for name in self._names() if self._is_ours(name)]

    def _names(self) -> Sequence[str]:
        try:
            return sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be read: {error.strerror}.") from None

    def _is_ours(self, name: str) -> bool:
        """Whether memsup made this entry of the folder, and may therefore rename or delete it: it has the mark, or, of an
        earlier version, a manifest that is what memsup wrote; or a kill came just before the mark or just behind it.
        """
        try:
            folder_fd = open_folder(self.folder / name)
        except CheckpointError:
            return False
        try:
            found = os.listdir(folder_fd)
            if folders.MARK in found or not found:
                return bool(found) or folders.may_lack_mark(name)
            read_manifest(folder_fd)
        except (OSError, CheckpointError):
            return False
        finally:
            os.close(folder_fd)
        return True

    def _checkpoints(self) -> Sequence[str]:
        """The names of all checkpoints, the newest first: by step, not by date, since clocks jump."""
        found = [(order, name) for name in self._names() if (order := folders.order(name))]
        return [name for _, name in sorted(found, reverse=True)]

    def _verify(self, name: str, full: bool, *, from_disk: bool = False) -> Info:
        info = verify(self.folder / name, full, from_disk=from_disk)
        named = folders.order(name)
        if named is None or info.step != named[0]:
            raise Damaged(f"it is named {name} but holds step {info.step}.")
        return info

    def _info(self, name: str) -> Info:
        try:
            return self._verify(name, full=False)
        except CheckpointError as error:
            order = folders.order(name)
            return Info(self.folder / name, order[0] if order else None, None, None, None, problem=str(error))

    def _aside_info(self, name: str) -> Info:
        path = self.folder / name
        reason = "It was set aside."
        with contextlib.suppress(OSError):
            reason = (
                read_small(path / folders.WHY, _MOST_REASON_BYTES, follow_links=False).decode(errors="replace")[:2000].strip()
            )
        return Info(path, folders.aside_step(name), None, tree_bytes(path), None, problem=reason)


def remove_tree(path: Path) -> None:
    """Removes a folder with all in it, or whatever else bears the name; links are removed, never followed. Raises OSError."""
    import shutil

    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def _remove_ours(folder: Path) -> None:
    """Removes one of memsup's folders, its mark last, so that a removal that is killed is gone on with. Raises OSError."""
    if not folder.exists():
        return
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name in {folders.MARK, manifest.NAME}):
        remove_tree(entry)
    folder.rmdir()


def tree_bytes(path: Path) -> int:
    """Bytes of the files directly inside a folder; 0 where it cannot be read."""
    try:
        with os.scandir(path) as entries:
            return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    except OSError:
        return 0


def free_bytes(folder: Path) -> int:
    """What this user may still write on the disk of `folder`, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _write_reason(folder: Path, reason: str) -> None:
    folder_fd = open_folder(folder)
    try:
        fd = os.open(folders.WHY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder_fd)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(reason + "\n")
    finally:
        os.close(folder_fd)
