"""The ground floor: arithmetic and checks that the algorithms of several chapters need."""
