"""Models between ``prepare`` and ``convert``: float weights among observers and fake quantizations."""
