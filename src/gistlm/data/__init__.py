"""Rows to train on and to measure with; knows no models."""
