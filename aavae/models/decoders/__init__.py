"""Decoders: latent `(B, D)` → image mean `(B, 3, H, W)`, in normalised units. One file and one YAML add another."""
