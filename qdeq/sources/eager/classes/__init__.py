"""Builders: one short file per family of quantized modules, each turning one module into its float form."""
