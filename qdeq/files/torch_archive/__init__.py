"""Read checkpoints of quantized models without torch's loader: no code of the file runs, no quantized dtype is used.

``reader`` maps the file, reads its pickle into descriptions (``unpickler``), finds the tensors (``checkpoint``), names
them as the float model would (:mod:`qdeq.state_dicts.naming`), and reads a weight's bytes when it is asked for.
"""
