"""The command line as a user meets it: what it prints, where, and how it exits."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import qdeq
from qdeq.cli import main
from qdeq.cli.console import rate_text, size_text

PYTHON = [sys.executable, "-W", "ignore", "-m", "qdeq"]
NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A state dict of a static quantized model, as torch saves it."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5)).eval()
    torch.backends.quantized.engine = "fbgemm"
    model.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
    torch.ao.quantization.prepare(model, inplace=True)
    model(torch.rand(2, 3, 4, 4))
    torch.ao.quantization.convert(model, inplace=True)
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.save(model.state_dict(), folder / "int8.pth")
    save_file(
        {
            "0.weight": model[0].weight().dequantize().contiguous(),
            "0.bias": model[0].bias().detach(),
            "2.weight": model[2].weight().dequantize(),
            "2.bias": model[2].bias().detach(),
        },
        folder / "float.safetensors",
    )
    return folder / "int8.pth"


@pytest.fixture
def run(capsys):
    """Run a command in this process: (status, stdout, stderr)."""

    def call(*arguments):
        old = signal.getsignal(signal.SIGTERM)
        try:
            status = main([str(argument) for argument in arguments])
        finally:
            signal.signal(signal.SIGTERM, old)
        return (status, *capsys.readouterr())

    return call


def assert_error(result, *words):
    status, out, err = result
    assert status == 2
    assert out == ""
    assert err.startswith("qdeq: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert "Traceback" not in err


# inspect


def test_inspect_lists_every_weight(run, checkpoint):
    status, out, err = run("inspect", checkpoint)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["name", "shape", "dtype", "scheme", "scales", "ends%", "size"]
    assert [line.split()[0] for line in lines[1:5]] == NAMES
    assert lines[1].split()[1:4] == ["4x3x3x3", "qint8", "channel"]
    assert lines[5] == "4 tensors, 2 of them quantized; 197 values in 224 bytes"
    assert not any(line.endswith(" ") for line in lines)
    assert "\x1b" not in out


def test_inspect_json(run, checkpoint):
    status, out, _ = run("inspect", checkpoint, "--json")
    rows = json.loads(out)
    assert status == 0
    keys = ["name", "shape", "dtype", "qscheme", "scale_min", "scale_max", "saturated_share", "bytes"]
    assert all(list(row) == keys for row in rows)
    assert [row["name"] for row in rows] == NAMES
    weight = qdeq.open(checkpoint)["0.weight"]
    assert rows[0]["shape"] == [4, 3, 3, 3]
    assert (rows[0]["dtype"], rows[0]["qscheme"]) == ("qint8", "per_channel_affine")
    assert (rows[0]["scale_min"], rows[0]["scale_max"]) == (float(weight.scale.min()), float(weight.scale.max()))
    assert rows[0]["saturated_share"] == weight.saturated_share()
    assert rows[0]["bytes"] == 108
    assert rows[1]["qscheme"] is rows[1]["saturated_share"] is None


# convert and verify


@pytest.mark.parametrize("options", [(), ("--dtype", "bfloat16"), ("--dtype", "float16"), ("--keep", "int8")])
def test_convert_then_verify(run, checkpoint, tmp_path, options):
    target = tmp_path / "model.safetensors"
    status, out, err = run("convert", checkpoint, target, *options)
    assert (status, err) == (0, "")
    assert str(target) in out.splitlines()[0]
    assert size_text(target.stat().st_size) in out
    assert "MB/s" in out
    assert "scales of activations" in out
    status, out, err = run("verify", checkpoint, target)
    assert (status, err) == (0, "")
    assert out.startswith("equal: all 4 tensors")


def test_convert_gives_the_float_bits(run, checkpoint, tmp_path):
    target = tmp_path / "model.safetensors"
    run("convert", checkpoint, target)
    got, want = load_file(target), load_file(checkpoint.with_name("float.safetensors"))
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name].view(torch.int32), want[name].view(torch.int32)) for name in want)


def test_convert_in_shards(run, checkpoint, tmp_path):
    target = tmp_path / "model.safetensors"
    status, out, _ = run("convert", checkpoint, target, "--shard-size", "0.4KB")
    assert status == 0
    assert "2 shards" in out
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert not target.exists()
    assert run("verify", checkpoint, target)[0] == 0


def test_a_dry_run_writes_nothing(run, checkpoint, tmp_path):
    status, out, _ = run("convert", checkpoint, tmp_path / "model.safetensors", "--dry-run")
    assert status == 0
    assert all(name in out for name in NAMES)
    assert "nothing was written" in out
    assert os.listdir(tmp_path) == []


def test_a_dry_run_sees_what_is_in_the_way(run, checkpoint, tmp_path):
    (tmp_path / "model.safetensors").write_text("mine")
    assert_error(run("convert", checkpoint, tmp_path / "model.safetensors", "--dry-run"), "no file of this name")


def test_only_and_rename(run, checkpoint, tmp_path):
    target = tmp_path / "model.safetensors"
    options = ("--only", "*.weight", "--rename", "0=features.0", "--rename", "2.weight=fc")
    status, out, _ = run("convert", checkpoint, target, *options)
    assert status == 0
    assert "2 tensors left out by --only: 0.bias, 2.bias" in out
    assert set(load_file(target)) == {"features.0.weight", "fc"}
    assert run("verify", checkpoint, target, *options)[0] == 0
    assert run("verify", checkpoint, target)[0] == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--only", "nothing*"), "'nothing*'"),
        (("--rename", "absent=x"), "'absent'"),
        (("--rename", "x"), "OLD=NEW"),
        (("--rename", "0.weight=2.weight"), "a name for each weight"),
        (("--shard-size", "lots"), "'lots'"),
        (("--dtype", "int8"), "'int8'"),
        (("--keep", "int8", "--dtype", "float16"), "float32 with keep"),
        (("--no-such-option",), "--no-such-option"),
    ],
)
def test_wrong_options_are_one_line(run, checkpoint, tmp_path, options, words):
    assert_error(run("convert", checkpoint, tmp_path / "model.safetensors", *options), words)
    assert os.listdir(tmp_path) == []


def test_convert_never_overwrites_without_force(run, checkpoint, tmp_path):
    target = tmp_path / "model.safetensors"
    target.write_text("mine")
    assert_error(run("convert", checkpoint, target), str(target), "--force")
    assert target.read_text() == "mine"
    assert run("convert", checkpoint, target, "--force")[0] == 0
    assert set(load_file(target)) == set(NAMES)


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_the_source_is_never_the_target(run, checkpoint, tmp_path, link):
    source = tmp_path / "a.safetensors"
    run("convert", checkpoint, source)
    before = source.read_bytes()
    target = source
    if link:
        target = tmp_path / "b.safetensors"
        link(source, target)
    for force in ((), ("--force",)):
        assert_error(run("convert", source, target, *force), "DST: expected another file than SRC")
    assert source.read_bytes() == before


def test_a_shard_of_the_source_is_not_the_target(run, checkpoint, tmp_path):
    run("convert", checkpoint, tmp_path / "a.safetensors", "--shard-size", "400")
    shard = tmp_path / "a-00001-of-00002.safetensors"
    for target in (shard, tmp_path / "a.safetensors"):
        assert_error(run("convert", tmp_path / "a.safetensors", target, "--force"), "DST: expected another file")
    assert run("verify", checkpoint, tmp_path / "a.safetensors")[0] == 0


def test_the_format_is_in_the_name(run, checkpoint, tmp_path):
    assert_error(run("convert", checkpoint, tmp_path / "model.pth"), "try model.safetensors")


@pytest.mark.parametrize("command", [("inspect",), ("convert", "x.safetensors"), ("verify", "x"), ("diff", "x")])
def test_files_that_cannot_be_read(run, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "junk.pth").write_bytes(b"junk" * 100)
    (tmp_path / "cut.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    for name in ("missing.pth", "junk.pth", "cut.safetensors"):
        assert_error(run(command[0], name, *command[1:]), name)


def test_verify_finds_one_changed_bit(run, checkpoint, tmp_path):
    target = tmp_path / "model.safetensors"
    run("convert", checkpoint, target)
    tensors = load_file(target)
    tensors["2.weight"].view(torch.int32)[3, 2] ^= 1
    save_file(tensors, target)
    status, out, _ = run("verify", checkpoint, target)
    assert status == 1
    assert "2.weight" in out
    assert "1 of 80 values differ" in out


@pytest.mark.parametrize("field", ["2.weight", "2.weight_scale", "2.weight_zero_point"])
def test_verify_finds_a_change_in_kept_integers(run, checkpoint, tmp_path, field):
    target = tmp_path / "model.safetensors"
    run("convert", checkpoint, target, "--keep", "int8")
    raw = bytearray(target.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    begin, _ = json.loads(raw[8 : 8 + length])[field]["data_offsets"]
    raw[8 + length + begin] ^= 1
    target.write_bytes(raw)
    status, out, _ = run("verify", checkpoint, target)
    assert status == 1
    assert "2.weight" in out


def test_verify_names_what_is_missing_extra_or_rounded(run, checkpoint, tmp_path):
    target = tmp_path / "model.safetensors"
    run("convert", checkpoint, target)
    tensors = load_file(target)
    tensors["more"] = tensors.pop("0.bias")
    tensors["2.bias"] = tensors["2.bias"].half()
    save_file(tensors, target)
    status, out, _ = run("verify", checkpoint, target)
    assert status == 1
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert rows["0.bias"].endswith("missing")
    assert rows["more"].endswith("not in SRC")
    assert rows["2.bias"].endswith("float16, expected float32")


# diff


def test_diff_of_equal_files_in_two_formats(run, checkpoint):
    status, out, _ = run("diff", checkpoint, checkpoint.with_name("float.safetensors"))
    assert status == 0
    assert "weights: 100.00 % of 188 values" in out
    assert "biases: 100.00 % of 9 values" in out
    assert "equal: 4 tensors" in out


def test_diff_measures_and_names(run, checkpoint, tmp_path):
    tensors = load_file(checkpoint.with_name("float.safetensors"))
    tensors["0.weight"][0, 0, 0, 0] += 1
    tensors["2.bias"] = torch.zeros(6)
    tensors["new"] = tensors.pop("0.bias")
    save_file(tensors, tmp_path / "other.safetensors")
    status, out, _ = run("diff", checkpoint, tmp_path / "other.safetensors")
    assert status == 1
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert rows["0.weight"][:3] == ["values", "99.07", "1"]
    assert float(rows["0.weight"][3]) == pytest.approx(1 / 108, rel=0.01)
    assert rows["2.bias"] == ["5", "and", "6"]
    assert rows["0.bias"] == ["only", "in", "int8.pth"]
    assert rows["new"] == ["only", "in", "other.safetensors"]
    assert "2.weight" not in rows
    assert "different: 1 values, 1 shapes, 1 only in A, 1 only in B" in out


def test_diff_knows_every_name_of_a_bias(run, tmp_path):
    names = ("a.bias", "rnn.bias_ih_l0", "attention.in_proj_bias", "a.weight", "bias.weight", "rnn.weight_hh_l0")
    save_file({name: torch.ones(3) for name in names}, tmp_path / "a.safetensors")
    out = run("diff", tmp_path / "a.safetensors", tmp_path / "a.safetensors")[1]
    assert "weights: 100.00 % of 9 values" in out
    assert "biases: 100.00 % of 9 values" in out


def test_diff_counts_signs_of_zero_and_nan(run, tmp_path):
    nan = float("nan")
    save_file({"a": torch.tensor([0.0, nan, 1.0])}, tmp_path / "a.safetensors")
    save_file({"a": torch.tensor([-0.0, nan, 1.0])}, tmp_path / "b.safetensors")
    status, out, _ = run("diff", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert status == 1
    assert ["a", "values", "66.67", "0", "0"] in [line.split() for line in out.splitlines()]


def test_almost_equal_is_not_100_percent(run, tmp_path):
    a = torch.zeros(200_000)
    save_file({"a": a}, tmp_path / "a.safetensors")
    a[7] = 1
    save_file({"a": a}, tmp_path / "b.safetensors")
    assert "<100 %" in run("diff", tmp_path / "a.safetensors", tmp_path / "b.safetensors")[1]


# The shell around the commands


def test_help_without_arguments(run):
    status, out, err = run()
    assert (status, err) == (0, "")
    assert all(name in out for name in ("inspect", "convert", "verify", "diff", "explain", "info", "completion"))


@pytest.mark.parametrize("command", [(), ("inspect",), ("convert",), ("verify",), ("diff",), ("explain",), ("info",)])
def test_help_fits_80_columns(run, command):
    status, out, _ = run(*command, "--help")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "--debug" in out


def test_info(run):
    status, out, _ = run("info")
    assert status == 0
    assert torch.__version__ in out
    assert "avx" in out or "scalar" in out
    facts = json.loads(run("info", "--json")[1])
    assert facts["kernels"] == qdeq.kernels()
    assert facts["engines"]


def test_usage_errors_are_one_line(run):
    assert_error(run("convert"), "SRC", "qdeq convert --help")
    assert_error(run("nonsense"), "nonsense")


@pytest.mark.parametrize("where", [("--debug", "inspect", "missing"), ("inspect", "missing", "--debug")])
def test_debug_shows_the_traceback(run, where):
    status, _, err = run(*where)
    assert status == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("qdeq: missing:")


def test_unforeseen_errors_are_one_line(run, monkeypatch):
    def broken(path):
        raise ZeroDivisionError("oh\nno")

    monkeypatch.setattr(qdeq, "open", broken, raising=False)
    assert_error(run("inspect", "x"), "ZeroDivisionError: oh no", "--debug")


def test_ctrl_c(run, monkeypatch, checkpoint, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("qdeq.safetensors_io.streaming._write_all", interrupted)
    status, out, err = run("convert", checkpoint, tmp_path / "model.safetensors")
    assert (status, out) == (130, "")
    assert err.strip() == "qdeq: stopped"
    assert os.listdir(tmp_path) == []


def test_missing_packages_are_named(run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert_error(run("info"), "click, rich", 'pip install "qdeq[cli]"')


def test_sizes_and_rates():
    assert [size_text(n) for n in (0, 999, 1000, 1500, 12_345, 113_000_000, 999_600, 2 * 10**9)] == [
        "0 bytes", "999 bytes", "1.00 KB", "1.50 KB", "12.3 KB", "113 MB", "1.00 MB", "2.00 GB",
    ]  # fmt: skip
    assert rate_text(500_000_000, 0.5) == "1000 MB/s"
    assert rate_text(12_800, 0.05) == "0.26 MB/s"


# As processes


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """60 MB as float32: long enough to be interrupted."""
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    weight = qdeq.QuantizedWeight(
        torch.ones(15_000, 1000, dtype=torch.int8), torch.tensor(0.5).double(), torch.tensor(0), None,
        "per_tensor_affine", "qint8", (15_000, 1000),
    )  # fmt: skip
    qdeq.save_safetensors({"w": weight}, path, keep="int8")
    return path


def wait_for_part(folder, process):
    """Wait until the unfinished file is there."""
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        if any(name.endswith(".tmp") for name in os.listdir(folder)):
            return
        time.sleep(0.001)


# The command line with a disk that takes its time, so that a signal finds it at work.
SLOW = """
import sys, time
from qdeq.safetensors_io import streaming
whole = streaming._write_all
def slow(piece, buffer):
    whole(piece, buffer)
    time.sleep(1)
streaming._write_all = slow
from qdeq.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_process_leaves_nothing(large, tmp_path, number, status):
    command = [sys.executable, "-W", "ignore", "-c", SLOW, "convert", large, tmp_path / "model.safetensors"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_part(tmp_path, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert b"Traceback" not in err
    if process.returncode == 0:
        pytest.fail(f"finished before the signal: {out!r}")
    assert process.returncode == status
    assert os.listdir(tmp_path) == []


def test_a_file_size_limit_leaves_nothing(large, tmp_path):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000))  # noqa: E731
    done = subprocess.run(
        [*PYTHON, "convert", large, tmp_path / "model.safetensors"], preexec_fn=limit, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "expected room for 60000" in done.stderr
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_terminal_of_80_columns(checkpoint):
    """Colours, and no line longer than the terminal; nothing of a name is lost."""
    main_side, process_side = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    with os.fdopen(main_side, "rb", buffering=0) as screen:
        subprocess.run(
            [*PYTHON, "inspect", checkpoint], stdout=process_side, env=environment, check=True, stdin=process_side
        )
        os.close(process_side)
        text = b""
        while True:
            try:
                part = screen.read(65536)
            except OSError:  # Linux says EIO at the end of a terminal
                break
            if not part:
                break
            text += part
    lines = text.decode().replace("\r", "").splitlines()
    assert "\x1b[1m" in lines[0]
    plain = [line.replace("\x1b[1m", "").replace("\x1b[0m", "") for line in lines]
    assert max(map(len, plain)) <= 80
    assert any(line.startswith("0.weight") for line in plain)


def test_completion():
    environment = {**os.environ, "_QDEQ_COMPLETE": "bash_complete", "COMP_WORDS": "qdeq in", "COMP_CWORD": "1"}
    done = subprocess.run(PYTHON, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["plain,inspect", "plain,info"]
