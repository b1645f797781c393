"""The fast forms of chapter 1's products: integer matmuls that this machine has, each equal to a readable form."""
