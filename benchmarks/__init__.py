"""Measurements: ratios taken in one run, against a baseline of the same run. They never fail a test."""
