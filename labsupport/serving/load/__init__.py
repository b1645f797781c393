"""The load tester: what it sends, how it measures, and the report."""
