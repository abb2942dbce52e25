"""Masked sums through an untrusted relay."""
