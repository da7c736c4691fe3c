"""What several commands share: options, loading a network, results, tables."""
