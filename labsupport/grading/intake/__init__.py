"""From what a class hands in to one notebook per student and exercise, read without running anything."""
