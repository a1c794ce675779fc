"""Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal 2021) in JAX and Flax."""

__version__ = "0.1.0"
