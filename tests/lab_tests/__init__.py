"""Tests that need a lab node."""
