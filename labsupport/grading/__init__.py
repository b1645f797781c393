"""Exercises for a class: released from their solutions, graded, reported."""
