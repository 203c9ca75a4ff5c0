"""What a person runs: train, tune, compare, show."""
