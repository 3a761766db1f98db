"""Batch times fitted to measurements, and simulations held against recorded runs."""
