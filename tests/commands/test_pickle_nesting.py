"""A pickle is looked at before it is read: what would take endless time to hash is refused."""

import io
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch

from regplug.commands.import_checkpoint.checkpoint import open_checkpoint
from regplug.commands.import_checkpoint.pickle_nesting import DeepPickleError, check_nesting
from regplug.errors import BundleError


def doubled(depth):
    """A tuple that holds another twice, and so on."""
    value = "x"
    for _ in range(depth):
        value = (value, value)
    return value


def lists_between(depth):
    value = "x"
    for _ in range(depth):
        value = ([value], value)
    return value


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("make", [doubled, lists_between])
def test_tuples_are_refused_from_the_seventeenth_level_on(make, protocol):
    stream = io.BytesIO(pickle.dumps({"a": [make(16)]}, protocol) + b"rest")
    check_nesting(stream)
    assert stream.read() == b"rest"
    with pytest.raises(DeepPickleError, match="tuples nested deeper than 16"):
        check_nesting(io.BytesIO(pickle.dumps({"a": [make(17)]}, protocol)))


def test_what_is_no_pickle_is_refused():
    for data in (b"", b"\x80\x02", b"\x80\x02h\x05.", b"\x80\x02\x86.", b"\x80\x02}q", b"\xff"):
        with pytest.raises(DeepPickleError, match="a damaged pickle"):
            check_nesting(io.BytesIO(data))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_of_a_training_run_is_read(tmp_path, zipped):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    content = {"state_dict": module.state_dict(), "optimizer": optimizer.state_dict(), "x": OrderedDict(a=(1, (2, 3)))}
    torch.save(content, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    found = open_checkpoint(tmp_path / "c.pt")
    assert found.read("0.weight").equal(module[0].weight)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_key_that_takes_endless_time_to_hash_is_one_line(tmp_path, zipped):
    path = tmp_path / "c.pt"
    pairs = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
    bomb = b"\x80\x02}X\x01\x00\x00\x00x" + pairs + b"K\x01s."
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", bomb)
            archive.writestr("archive/version", "3\n")
            archive.writestr("archive/byteorder", "little")
    else:
        torch.save({"a": torch.ones(1)}, path, _use_new_zipfile_serialization=False)
        head = path.read_bytes()
        begin = io.BytesIO(head)
        for _ in range(3):
            pickle.load(begin)
        path.write_bytes(head[: begin.tell()] + bomb)
    with pytest.raises(BundleError, match=r"got a damaged \w+ \(tuples nested deeper than 16\)"):
        open_checkpoint(path)
