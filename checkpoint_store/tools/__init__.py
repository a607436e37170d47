"""Whole-database jobs that run on savers: copying from other savers, page conversion, re-encryption."""
