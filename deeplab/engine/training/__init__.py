"""The parts of a training run; `deeplab.engine.train` puts them together."""
