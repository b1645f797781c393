"""Where code that nobody vouches for runs, shut in; what comes out is data."""
