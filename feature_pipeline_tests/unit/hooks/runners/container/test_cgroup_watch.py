"""What the kernel's signals about a memory cgroup say, in whatever order they come."""

import os
import shutil
import threading
from pathlib import Path

import pytest

from feature_pipeline.hooks.runners.container.cgroup_watch import MemoryWatch

pytestmark = pytest.mark.skipif(not hasattr(os, "eventfd"), reason="control groups are Linux's")


class Cgroup:
    """A folder as cgroup v1 shows one, and the kernel's part in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\n")
        (folder / "memory.stat").write_text("total_rss 5\ntotal_shmem 2\n")
        self.watch = MemoryWatch(folder, is_v2=False)
        self._eventfd = int((folder / "cgroup.event_control").read_text().split()[0])

    def signal(self) -> None:
        os.eventfd_write(self._eventfd, 1)

    def remove(self) -> None:
        shutil.rmtree(self.folder)


@pytest.fixture
def cgroup(tmp_path: Path):
    cgroup = Cgroup(tmp_path / "cgroup")
    yield cgroup
    cgroup.watch.close()


def test_a_kill_while_it_is_there(cgroup: Cgroup):
    assert not cgroup.watch.was_exceeded()
    cgroup.signal()
    assert cgroup.watch.was_exceeded()


def test_a_removal_is_no_kill(cgroup: Cgroup):
    cgroup.remove()
    cgroup.signal()
    assert not cgroup.watch.was_exceeded()


@pytest.mark.parametrize("delay", [0, 0.1])
def test_a_kill_and_a_removal_that_is_signalled_later(cgroup: Cgroup, delay: float):
    """The folder goes first, and the kernel says so when it comes to it."""
    cgroup.signal()
    cgroup.remove()
    timer = threading.Timer(delay, cgroup.signal)
    timer.start()
    assert cgroup.watch.was_exceeded()
    timer.join()


def test_a_counter_that_was_seen_outlives_the_cgroup(cgroup: Cgroup):
    (cgroup.folder / "memory.oom_control").write_text("oom_kill 1\n")
    cgroup.watch.sample()
    cgroup.remove()
    assert cgroup.watch.was_exceeded()
    assert cgroup.watch.peak_bytes == 7
