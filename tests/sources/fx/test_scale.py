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


def _seconds(length, times):
    int8 = _chain(length)
    best = float("inf")
    for _ in range(times):
        start = time.process_time()
        dequantize_model(int8)
        best = min(best, time.process_time() - start)
    return best


def test_five_times_the_nodes_take_less_than_nine_times_as_long():
    assert _seconds(5000, 1) < 9 * _seconds(1000, 2)
