"""The spectral feature transformation: its mathematics, its layer for training, its fused kernel."""
