"""Why two models disagree: findings from the weights, from the structure, and from running both."""
