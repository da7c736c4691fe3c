"""Training a network: `deeplab.training.train` puts the parts together."""
