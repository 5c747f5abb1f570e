"""What theory says of landscapes: models that can be sampled, and formulas that predict them."""
