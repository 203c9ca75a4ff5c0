"""Placement rules: what a learned policy has to beat."""
