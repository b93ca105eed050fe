"""One process a folder, also where one is refused, tidies or removes what another is about to use."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from aavae.errors import UserError
from aavae.runtime import files
from aavae.runtime.files import locked, only_one, remove_if_empty


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path):
    with only_one(tmp_path), pytest.raises(UserError, match=r"another process .*hydra\.run\.dir="), only_one(tmp_path):
        pass
    with only_one(tmp_path):  # free again
        pass


def test_a_failed_run_frees_its_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), only_one(tmp_path):
        1 / 0  # noqa: B018
    with only_one(tmp_path):
        pass


def test_a_process_that_is_refused_leaves_the_lock_to_its_holder(train):
    Path("run").mkdir()
    with only_one(Path("run")):
        for _ in range(2):  # the second would be the third at work
            ended = train("trainer=debug", "hydra.run.dir=run", "probe=[]")
            assert ended.code == 2 and "another process" in ended.err
        remove_if_empty(Path("run"))
        assert [p.name for p in Path("run").iterdir()] == [".lock"]
    remove_if_empty(Path("run"))
    assert not Path("run").exists()


def test_a_lock_that_was_removed_before_it_was_got_is_no_lock(tmp_path, monkeypatch):
    folder, lock = tmp_path / "run", fcntl.flock
    folder.mkdir()
    removed = []

    def late(handle, how):  # its holder removes it, and the folder, between open and flock
        if not removed:
            removed.append(os.fstat(handle.fileno()).st_ino)
            (folder / ".lock").unlink()
            folder.rmdir()
        lock(handle, how)

    monkeypatch.setattr(files.fcntl, "flock", late)
    with only_one(folder), pytest.raises(UserError, match="another process"), only_one(folder):
        pass
    assert removed and (folder / ".lock").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_disk_without_locks_gets_a_sentence_whose_way_out_works(train, monkeypatch, number):
    def unknown(handle, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.fcntl, "flock", unknown)
    ended = train("trainer=debug", "hydra.run.dir=run", "probe=[]", "trainer.max_steps=1")
    assert ended.code == 2 and ended.err.count("\n") == 1
    assert "cannot lock" in ended.err and "AAVAE_NO_LOCK=1" in ended.err
    monkeypatch.setenv("AAVAE_NO_LOCK", "1")
    assert train("trainer=debug", "hydra.run.dir=run", "probe=[]", "trainer.max_steps=1").code == 0
    with locked(Path("download.lock"), wait=True):
        pass
