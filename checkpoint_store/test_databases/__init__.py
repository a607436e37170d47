"""Databases of a test run: the process that creates and drops them, and the connection of the tests to it."""
