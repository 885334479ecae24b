"""State dicts of quantized models: float names for their keys, float values, and the way into a float model."""
