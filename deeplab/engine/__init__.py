"""Running models: training (``train``), evaluation (``evaluate``) and prediction (``predict``)."""
