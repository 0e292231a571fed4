import pytest
import torch
from data_files import ToyDataset, write_folder

from cifarbn.data import FromDataset, ImageFolder, Shapes, memory
from cifarbn.data.memory import check_memory, free_memory
from cifarbn.errors import UserError


def test_images_that_do_not_fit_are_an_error_with_sizes_and_remedy(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 6_000_000)
    check_memory(1000, (20, 50))  # 2 copies * 1000 images * 3 * 1000 bytes
    message = r"1,001 images of 20x50 pixels need 0.0 GB of memory, and only 0.0 GB are free; .*data.size=.* fewer"
    with pytest.raises(UserError, match=message):
        check_memory(1001, (20, 50))


def test_the_free_memory_is_the_systems_and_at_most_that_of_the_control_group(tmp_path, monkeypatch):
    meminfo, cpu = tmp_path / "meminfo", torch.device("cpu")
    meminfo.write_text("MemTotal:  9 kB\nMemAvailable:       2048 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    for left, free in ((None, 2048 * 1024), (10**9, 2048 * 1024), (700_000, 700_000)):
        monkeypatch.setattr(memory, "memory_left", lambda left=left: left)
        assert free_memory(cpu) == free
    meminfo.unlink()
    assert free_memory(cpu) is None
    check_memory(10**9, (1000, 1000))  # unknown: not checked


@pytest.mark.parametrize("name", ["shapes", "folder", "dataset"])
def test_nothing_is_read_if_it_does_not_fit(name, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    reads = []
    monkeypatch.setattr("cifarbn.data.decoded.read_image", lambda *_: reads.append(1))
    with pytest.raises(UserError, match="use smaller images .data.size"):
        if name == "folder":
            ImageFolder(write_folder(tmp_path / "images"), cache=False).setup()
        elif name == "dataset":
            FromDataset(ToyDataset()).setup()
        else:
            Shapes().setup()
    assert not reads
