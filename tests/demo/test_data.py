import hashlib
import pickle
import urllib.request

import numpy as np
import pytest
import torch

from qdeq.demo import data
from qdeq.demo.__main__ import main
from qdeq.demo.data import load_cifar10, load_digits
from qdeq.demo.model import VGG11
from qdeq.demo.vision import import_torchvision
from qdeq.errors import QdeqValueError

FEW = 4


@pytest.fixture
def cifar_folder(tmp_path, monkeypatch):
    """A few random images in CIFAR10's file format; torchvision is told their checksums. Nothing may be fetched."""
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("tried to download"))
    cifar10 = import_torchvision().datasets.CIFAR10
    folder = tmp_path / cifar10.base_folder
    folder.mkdir()
    random = np.random.default_rng(0)

    def write(name: str, content: dict) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batches(published: list) -> list:
        return [
            [
                name,
                write(
                    name,
                    {
                        "data": random.integers(0, 256, (FEW, 3072), dtype=np.uint8),
                        "labels": random.integers(0, 10, FEW).tolist(),
                    },
                ),
            ]
            for name, _ in published
        ]

    monkeypatch.setattr(cifar10, "train_list", batches(cifar10.train_list))
    monkeypatch.setattr(cifar10, "test_list", batches(cifar10.test_list))
    meta = dict(cifar10.meta)
    meta["md5"] = write(meta["filename"], {meta["key"]: [str(digit) for digit in range(10)]})
    monkeypatch.setattr(cifar10, "meta", meta)
    return tmp_path


def test_digits_are_split_by_class_and_scaled():
    train, test = load_digits()
    assert (len(train), len(test)) == (1437, 360)
    assert sorted(test.labels.unique().tolist()) == list(range(10))
    assert min(test.labels.bincount()) >= 34
    images, labels = test.batch(torch.tensor([5, 3]))
    assert images.shape == (2, 3, 32, 32)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images.min() == -1
    assert 0.9 < images.max() <= 1
    assert labels.tolist() == test.labels[[5, 3]].tolist()
    assert torch.equal(images[:, 0], images[:, 2])


def test_batches_are_all_images_once_and_repeat_with_the_seed():
    _, test = load_digits()
    labels = [torch.cat([y for _, y in test.batches(100, torch.Generator().manual_seed(s))]) for s in (1, 1, 2)]
    assert torch.equal(labels[0], labels[1])
    assert not torch.equal(labels[0], labels[2])
    assert torch.equal(labels[0].bincount(), test.labels.bincount())
    assert torch.equal(torch.cat([y for _, y in test.batches(100)]), test.labels)


def test_training_images_are_moved_a_little_and_test_images_not():
    _, test = load_digits()
    rows = torch.arange(8)
    plain = test.batch(rows)[0]
    assert torch.equal(plain, test.batch(rows)[0])
    moved = [test.batch(rows, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(moved[0], moved[1])
    for images in (moved[0], moved[2]):
        assert images.shape == plain.shape
        assert 0.05 < (images - plain).abs().mean() < 0.5
    assert not torch.equal(moved[0], moved[2])


def test_no_move_is_the_plain_enlargement(monkeypatch):
    _, test = load_digits()
    rows = torch.arange(8)
    monkeypatch.setattr(data, "LARGEST_MOVES", torch.zeros(4))
    torch.testing.assert_close(test.batch(rows, torch.Generator())[0], test.batch(rows)[0])


def test_cifar10_is_read_and_enlarged(cifar_folder):
    train, test = load_cifar10(cifar_folder)
    assert (len(train), len(test)) == (5 * FEW, FEW)
    images, _ = test.batch(torch.tensor([0]))
    assert images.shape == (1, 3, 224, 224)
    stored = pickle.loads((cifar_folder / "cifar-10-batches-py" / "test_batch").read_bytes())["data"][0]
    # Seven times as large: the middle of each 7 x 7 block is the stored pixel.
    middle = images[0, :, 3::7, 3::7]
    torch.testing.assert_close(middle, torch.from_numpy(stored).view(3, 32, 32).float() / 127.5 - 1)


def test_cifar10_that_is_not_there_is_an_error_and_never_fetched(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("tried to download"))
    with pytest.raises(QdeqValueError, match=r"--data-dir: expected .* got .*Unpack cifar-10-python"):
        load_cifar10(tmp_path)
    assert main(["--data", "cifar10", "--data-dir", str(tmp_path)]) == 2
    assert "--download" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_network_at_224_has_25088_features():
    with torch.device("meta"):
        model = VGG11(25088)
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 10)
    weights = sum(value.numel() for name, value in model.named_parameters() if name.endswith("weight"))
    assert weights == 9_217_728 + 25088 * 4096 + 4096 * 10


@pytest.mark.slow
def test_the_whole_story_on_cifar10(cifar_folder, capsys):
    status = main(["--data", "cifar10", "--data-dir", str(cifar_folder), "--quick", "--epochs", "1"])
    output = capsys.readouterr().out
    assert status == 1  # nothing can be learned from random images
    assert "under 95 %" in output
    assert "224 x 224" in output
    assert "10 tensors, 22,067,904 values, 0 differ" in output
