"""From what a class hands in to one notebook a student and exercise, read without running anything."""
