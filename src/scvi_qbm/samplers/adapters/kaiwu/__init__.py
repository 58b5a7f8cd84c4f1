"""Kaiwu's machines."""
