"""Sums over the classes, and their one derivative: one file per sum."""
