"""Graphs of thousands of nodes take time in proportion to their length."""

from __future__ import annotations

import time

import torch

from qdeq import dequantize_model
from tests.helpers.graphs import hand_built


def _chain(length):
    def call(graph, x):
        for _ in range(length):
            x = graph.call_function(torch.ops.quantized.add, (x, x, 0.05, 64))
        return x

    return hand_built(call)


def _seconds(int8):
    start = time.process_time()
    dequantize_model(int8)
    return time.process_time() - start


def test_five_times_the_nodes_take_less_than_nine_times_as_long():
    """By processor time, which a neighbour stretches, too: of calls right behind each other, four tries."""
    short, long = _chain(1000), _chain(5000)
    ratios = []
    for _ in range(4):
        ratios.append(_seconds(long) / _seconds(short))
        if ratios[-1] < 9:
            return
    raise AssertionError(ratios)
