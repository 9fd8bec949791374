"""Experiments beyond the reproduction, each one program: python -m experiments.controls."""
