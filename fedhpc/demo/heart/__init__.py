"""Four hospitals: logistic regression on the heart disease data."""
