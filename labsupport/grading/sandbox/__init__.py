"""Where untrusted code runs, isolated; only data comes out."""
