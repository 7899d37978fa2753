"""Effect of the strategies on the answers of the embedded model."""
