"""Vendor libraries and device trees; vendor words stop here."""
