import os
import pickle
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torchvision
from processes import fork_context

from cifarbn.data import downloads, read_cifar10
from cifarbn.errors import UserError

BASE = "cifar-10-batches-py"


def assert_names_a_remedy(error: pytest.ExceptionInfo) -> None:
    message = str(error.value)
    assert "data=shapes" in message and "data.root=PATH" in message and "CIFARBN_DATA" in message
    assert "\n" not in message


# Damaged files


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def alter(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "harm, fault", [(truncate, "truncated or altered"), (alter, "truncated or altered"), (os.remove, "missing")]
)
def test_every_damaged_file_is_named_and_none_is_replaced(tiny_cifar10, tiny_archive, harm, fault):
    harmed = ["data_batch_2", "batches.meta"]
    for name in harmed:
        harm(tiny_cifar10 / BASE / name)
    before = {file: file.read_bytes() for file in (tiny_cifar10 / BASE).iterdir()}
    with pytest.raises(UserError) as error:
        read_cifar10(tiny_cifar10)
    assert_names_a_remedy(error)
    assert all(f"{name} is {fault}" in str(error.value) for name in harmed)
    assert "test_batch" not in str(error.value) and "Delete that folder" in str(error.value)
    assert {file: file.read_bytes() for file in (tiny_cifar10 / BASE).iterdir()} == before


def test_a_folder_instead_of_a_file_is_named(tiny_cifar10):
    (tiny_cifar10 / BASE / "test_batch").unlink()
    (tiny_cifar10 / BASE / "test_batch").mkdir()
    with pytest.raises(UserError, match="test_batch cannot be read"):
        read_cifar10(tiny_cifar10)


def test_an_altered_file_is_never_unpickled(tiny_cifar10, tmp_path):
    class Malicious:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harm"),))

    (tiny_cifar10 / BASE / "test_batch").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(UserError, match="test_batch is truncated or altered"):
        read_cifar10(tiny_cifar10)
    assert not (tmp_path / "harm").exists()


# Downloading


def test_a_missing_data_set_is_downloaded(tiny_cifar10, tiny_archive, tmp_path, capfd):
    root = tmp_path / "new" / "root"
    assert read_cifar10(root)[0].fingerprint == read_cifar10(tiny_cifar10)[0].fingerprint
    assert [path.name for path in root.iterdir()] == [BASE]
    assert not list(tmp_path.glob(".cifar*"))
    assert "CIFAR-10: 100%" in capfd.readouterr().err


def test_nothing_is_downloaded_if_download_is_false(tiny_archive, tmp_path):
    with pytest.raises(UserError, match="data.download is false") as error:
        read_cifar10(tmp_path / "new", download=False)
    assert_names_a_remedy(error)


def test_without_a_network_one_message_names_the_folder(no_network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="refused") as error:
        read_cifar10("new/root")
    assert str(tmp_path / "new" / "root" / BASE) in str(error.value)
    assert_names_a_remedy(error)
    assert not list(tmp_path.iterdir())


def test_a_download_times_out(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/archive")
        with pytest.raises(UserError, match="timed out") as error:
            read_cifar10(tmp_path / "new")
    assert_names_a_remedy(error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("harm", [truncate, alter])
def test_a_damaged_download_leaves_nothing(tiny_archive, tmp_path, harm):
    harm(tiny_archive)
    with pytest.raises(UserError, match="incomplete or altered") as error:
        read_cifar10(tmp_path / "new")
    assert_names_a_remedy(error)
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".cifar*"))


def test_an_archive_with_a_wrong_file_leaves_nothing(tiny_archive, tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "test_list", [["test_batch", "0" * 32]])
    with pytest.raises(UserError, match="test_batch in the archive is incomplete or altered"):
        read_cifar10(tmp_path / "new")
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".cifar*"))


@pytest.mark.parametrize("step", ["_fetch", "_unpack", "_publish"])
def test_an_interrupted_download_leaves_nothing(tiny_archive, tmp_path, monkeypatch, step):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(downloads, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        read_cifar10(tmp_path / "new")
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".cifar*"))


def test_a_root_that_is_not_a_folder_is_named(tiny_archive, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError) as error:
        read_cifar10(tmp_path / "file" / "data")
    assert str(tmp_path / "file") in str(error.value)
    assert_names_a_remedy(error)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_root_is_named(tiny_archive, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="Permission denied") as error:
        read_cifar10(tmp_path / "locked")
    assert_names_a_remedy(error)


def test_concurrent_downloads_all_read_the_same_images(tiny_cifar10, tiny_archive, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        sets = list(pool.map(lambda _: read_cifar10(tmp_path / "new")[0].fingerprint, range(4)))
    assert set(sets) == {read_cifar10(tiny_cifar10)[0].fingerprint}
    assert [path.name for path in (tmp_path / "new").iterdir()] == [BASE]


def test_the_second_of_two_downloads_keeps_the_files_of_the_first(tiny_cifar10, tmp_path):
    second = tmp_path / "second"
    second.mkdir()
    (second / "half").touch()
    downloads._publish(second, tiny_cifar10 / BASE)
    assert len(read_cifar10(tiny_cifar10)[0]) == 50


# An existing archive, and the leftovers of a killed download


def test_an_archive_in_the_root_is_used_without_a_network(tiny_cifar10, tiny_archive, no_network, tmp_path):
    for download in (True, False):
        root = tmp_path / f"root-{download}"
        root.mkdir()
        shutil.copy(tiny_archive, root / "cifar-10-python.tar.gz")
        assert read_cifar10(root, download)[0].fingerprint == read_cifar10(tiny_cifar10)[0].fingerprint
        assert sorted(path.name for path in root.iterdir()) == [BASE, "cifar-10-python.tar.gz"]


@pytest.mark.parametrize("harm", [truncate, alter])
def test_a_damaged_archive_is_named_and_kept(tiny_archive, no_network, tmp_path, harm):
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy(tiny_archive, root / "cifar-10-python.tar.gz")
    harm(root / "cifar-10-python.tar.gz")
    with pytest.raises(UserError, match="the archive is incomplete or altered: MD5 .* Delete that archive") as error:
        read_cifar10(root)
    assert str(root / "cifar-10-python.tar.gz") in str(error.value)
    assert_names_a_remedy(error)
    assert [path.name for path in root.iterdir()] == ["cifar-10-python.tar.gz"]


def test_leftovers_of_a_killed_download_are_removed(tiny_archive, tmp_path):
    leftover = tmp_path / "data2" / ".cifar-10-download-abc"
    leftover.mkdir(parents=True)
    (leftover / "archive").write_bytes(b"half")
    read_cifar10(tmp_path / "data2")
    assert [path.name for path in (tmp_path / "data2").iterdir()] == [BASE]


def download_for_ever(root, begun):
    with downloads._locked(root, "CIFAR-10") as locked:
        assert locked
        (root / ".cifar-10-download-theirs").mkdir()
        begun.set()
        time.sleep(1000)


@pytest.mark.parametrize("end", ["finished", "killed"])
def test_a_second_process_waits_for_the_first(tiny_cifar10, tiny_archive, tmp_path, capfd, end):
    root = tmp_path / "root"
    root.mkdir()
    begun = fork_context().Event()
    first = fork_context().Process(target=download_for_ever, args=(root, begun))
    first.start()
    assert begun.wait(timeout=300)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(read_cifar10, root)
        output = ""
        while "waiting for it" not in output and not second.done():
            output += capfd.readouterr().out
            time.sleep(0.01)
        assert (root / ".cifar-10-download-theirs").exists() and not second.done()
        if end == "finished":
            (root / ".cifar-10-download-theirs").rmdir()
            shutil.copytree(tiny_cifar10 / BASE, root / BASE)
        first.kill()
        first.join()
        assert len(second.result(timeout=300)[0]) == 50
    assert [path.name for path in root.iterdir()] == [BASE]
