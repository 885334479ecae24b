"""Safetensors: files and sets of shards, read and written in blocks (:mod:`~qdeq.files.safetensors.format`)."""
