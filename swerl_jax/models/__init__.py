"""Models that ship with the project, and where they are."""
