from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from system_files import archive, write_folder

from numa_rl.machines import tree as tree_module
from numa_rl.machines.tree import ArchiveTree, FolderTree, is_archive, read_bytes, unpacked

FILES = {"top/sys/a/one": "1\n", "top/sys/a/two": "2\n", "top/proc/mounts": ""}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_every_packing_is_read_alike(mode):
    content = archive(FILES, mode)
    tree = ArchiveTree(content)
    assert is_archive(content)
    assert tree.names("top/sys/a") == ["one", "two"]
    assert tree.names(".") == ["top"]
    assert tree.data("top/sys/a/two") == b"2\n"
    assert tree.data("top/sys/a") is None
    assert tree.data("top/sys/b") is None
    assert tree.names("top/sys/b") == []


names = st.text(st.sampled_from("ab.-é"), min_size=1, max_size=5).filter(lambda name: name not in (".", ".."))


@given(st.dictionaries(st.lists(names, min_size=1, max_size=3).map("/".join), st.binary(max_size=50), max_size=6))
def test_a_folder_and_an_archive_of_it_hold_the_same(tmp_path_factory, files):
    files = {path: data for path, data in files.items() if not any(other.startswith(path + "/") for other in files)}
    root = write_folder(tmp_path_factory.mktemp("tree"), files)
    folder, packed = FolderTree(root), ArchiveTree(archive(files))
    for path, data in files.items():
        assert folder.data(path) == packed.data(path) == data
        above = os.path.dirname(path)
        assert folder.names(above) == packed.names(above)


def test_links_are_followed_inside_the_archive():
    links = {"top/cpu": "sys/a", "top/again": "cpu/one", "top/sys/a/up": "../../proc/mounts", "top/gone": "nowhere"}
    tree = ArchiveTree(archive(FILES, links=links))
    assert tree.data("top/cpu/one") == tree.data("top/again") == b"1\n"
    assert tree.data("top/sys/a/up") == b""
    assert tree.data("top/gone") is None
    assert tree.names("top/cpu") == ["one", "two", "up"]


def test_links_in_a_circle_lead_nowhere():
    tree = ArchiveTree(archive({}, links={"a": "b", "b": "a", "c": "c/c"}))
    assert tree.data("a") is None
    assert tree.data("c") is None


def test_a_hard_link_is_the_file_it_names():
    packed = io.BytesIO(archive({"a": "1"}, "w"))
    with tarfile.open(fileobj=packed, mode="a") as tar:
        member = tarfile.TarInfo("b")
        member.type, member.linkname = tarfile.LNKTYPE, "a"
        tar.addfile(member)
    assert ArchiveTree(packed.getvalue()).data("b") == b"1"


def test_devices_are_left_aside():
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo("null")
        member.type = tarfile.CHRTYPE
        tar.addfile(member)
    assert ArchiveTree(packed.getvalue()).names(".") == []


@pytest.mark.parametrize(
    ("files", "links", "message"),
    [
        ({"../evil": ""}, {}, r"a member's name must stay inside the archive, got '\.\./evil'"),
        ({"a/../../evil": ""}, {}, "a member's name must stay inside the archive"),
        ({"a/../b": ""}, {}, "a member's name must stay inside the archive"),
        ({"/etc/passwd": ""}, {}, "a member's name must stay inside the archive, got '/etc/passwd'"),
        ({}, {"a": "/etc/passwd"}, "a link must stay inside the archive, got 'a' to '/etc/passwd'"),
        ({}, {"a/b": "../../etc/passwd"}, "a link must stay inside the archive"),
        ({"a/" * 3000: ""}, {}, "a member's name must have at most 4096 characters, got"),
    ],
)
def test_an_archive_that_leads_out_of_itself_is_refused(files, links, message):
    with pytest.raises(ValueError, match=message) as error:
        ArchiveTree(archive(files, links=links))
    assert len(str(error.value)) < 300


BOMBS = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("pack", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_before_it_is_unpacked(pack, monkeypatch):
    monkeypatch.setattr(tree_module, "MAX_UNPACKED_BYTES", 10_000)
    content = pack(bytes(10_000_000))
    assert len(content) < 20_000
    with pytest.raises(ValueError, match="must be at most 10000 bytes when unpacked, got more"):
        unpacked(content)
    assert unpacked(pack(bytes(10_000))) == bytes(10_000)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_an_archive_cut_short_is_refused(mode, part):
    content = archive({f"file{i}": os.urandom(2000) for i in range(20)}, mode)
    with pytest.raises(ValueError, match="must be an archive packed by gzip, bzip2 or xz, whole, got"):
        ArchiveTree(content[: int(len(content) * part)])


def test_a_plain_archive_cut_short_is_refused():
    content = archive({"a": "x" * 5000, "b": "y" * 5000}, "w")
    with pytest.raises(ValueError, match="must be a whole tar archive"):
        ArchiveTree(content[:7000])


@pytest.mark.parametrize(
    "content", [b"", b"\x1f\x8b", b"BZh9 no", gzip.compress(b"no tar" * 200, mtime=0), b"\xfd7zXZ\x00 no"]
)
def test_what_is_no_archive_is_refused(content):
    with pytest.raises(ValueError, match="must be a"):
        ArchiveTree(content)


@given(st.binary(max_size=2000))
def test_damaged_archives_never_end_in_another_error(noise):
    content = bytearray(archive({"a": "x" * 3000}, "w"))
    content[: len(noise)] = bytes(a ^ b for a, b in zip(content, noise, strict=False))
    with contextlib.suppress(ValueError):
        ArchiveTree(bytes(content))


def test_a_large_file_of_an_archive_is_left_aside(monkeypatch):
    monkeypatch.setattr(tree_module, "MAX_FILE_BYTES", 100)
    tree = ArchiveTree(archive({"small": "x" * 100, "large": "x" * 101}))
    assert tree.data("large") is None
    assert len(tree.data("small")) == 100


def test_links_out_of_a_folder_lead_nowhere(tmp_path):
    write_folder(tmp_path, {"secret": "no", "root/file": "yes"})
    (tmp_path / "root" / "out").symlink_to("../secret")
    (tmp_path / "root" / "up").symlink_to("..")
    (tmp_path / "root" / "circle").symlink_to("circle")
    (tmp_path / "root" / "in").symlink_to("file")
    tree = FolderTree(tmp_path / "root")
    assert tree.data("out") is None
    assert tree.data("up/secret") is None
    assert tree.data("../secret") is None
    assert tree.data("circle") is None
    assert tree.names("up") == tree.names("..") == tree.names("circle") == []
    assert tree.data("in") == b"yes"


def test_pipes_and_files_that_may_not_be_read_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert FolderTree(tmp_path).data("pipe") is None


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "closed"
    path.write_text("secret")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file")
    assert FolderTree(tmp_path).data("closed") is None
    with pytest.raises(ValueError, match="origin: must be a file that can be read, got Permission denied"):
        read_bytes(path, 100, "origin")


def test_a_large_file_of_a_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tree_module, "MAX_FILE_BYTES", 100)
    write_folder(tmp_path, {"large": "x" * 101})
    with pytest.raises(ValueError, match="file 'large': must be at most 100 bytes, got more"):
        FolderTree(tmp_path).data("large")


def test_holes_of_a_sparse_member_are_not_filled():
    header = tarfile.TarInfo("sys/hole")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive_file:
        header.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.map": "0,0", "GNU.sparse.size": str(8 * 2**20)}
        archive_file.addfile(header, io.BytesIO(b""))
        plain = tarfile.TarInfo("sys/plain")
        plain.size = 3
        archive_file.addfile(plain, io.BytesIO(b"one"))
    tree = ArchiveTree(packed.getvalue())
    assert tree.data("sys/plain") == b"one"
    assert tree.data("sys/hole") is None
