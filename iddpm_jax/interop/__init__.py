"""Weights in and out of other codebases."""
