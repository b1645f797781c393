"""The fast forms of chapter 1's matrix products, one job a file; each is tested against plain arithmetic."""
