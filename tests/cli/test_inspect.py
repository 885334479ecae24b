"""``qdeq inspect``."""

from __future__ import annotations

import json

import qdeq
from tests.cli.helpers import NAMES


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
    assert all(list(row) == [*keys, "kind", "zero_point"] for row in rows)
    assert [row["name"] for row in rows if row["kind"] == "weight"] == NAMES
    outputs = {row["name"]: (row["scale_min"], row["zero_point"]) for row in rows if row["kind"] == "activation"}
    assert outputs == qdeq.open(checkpoint).activation_qparams != {}
    weight = qdeq.open(checkpoint)["0.weight"]
    assert rows[0]["shape"] == [4, 3, 3, 3]
    assert (rows[0]["dtype"], rows[0]["qscheme"]) == ("qint8", "per_channel_affine")
    assert (rows[0]["scale_min"], rows[0]["scale_max"]) == (float(weight.scale.min()), float(weight.scale.max()))
    assert rows[0]["saturated_share"] == weight.saturated_share()
    assert rows[0]["bytes"] == 108
    assert rows[1]["qscheme"] is rows[1]["saturated_share"] is None


def test_inspect_activations(run, checkpoint):
    status, out, err = run("inspect", checkpoint, "--activations")
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["output", "of", "scale", "zero", "point"]
    listed = {name: (float(scale), int(zero_point)) for name, scale, zero_point in lines[1:-1]}
    assert listed == qdeq.open(checkpoint).activation_qparams
    rows = json.loads(run("inspect", checkpoint, "--activations", "--json")[1])
    assert {row["name"] for row in rows} == listed.keys()
    out = run("inspect", checkpoint, "--activations", "--prefix", "0")[1]
    assert out.splitlines()[1].split()[0] == "(model)"
    assert out.splitlines()[-1] == "not listed: 1 scales of activations outside --prefix: 2"
