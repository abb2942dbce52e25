"""Handwritten digits of scikit-learn as four sites with skewed classes: a small CNN, and data without a real owner."""
