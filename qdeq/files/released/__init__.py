"""Checkpoints as they are released: a config and shards, whose weights are codes with scales beside them."""
